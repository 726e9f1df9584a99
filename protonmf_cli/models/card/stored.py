"""The tolerant reader: values as a model file keeps them, written by a version that may know other ones."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache
from math import nan
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A group of values. Those without a default are always written, the others where they say something."""

    stored: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)
    """As it was read, with what this version does not know; None of what was never stored."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Self:
        """What a file says. What it lacks has its default, or else the empty value of its type: "", (), 0, NaN, None.

        Raises:
            TypeError: a value has another structure.
        """
        if not isinstance(stored, Mapping):
            raise TypeError(f"{cls.__name__} is {type(stored).__name__}, not names with values")
        found = {
            name: read_value(hint, stored[name], name) if name in stored else _unsaid(cls, name)
            for name, hint in _hints(cls).items()
        }
        return cls(stored=stored, **found)

    def as_json(self) -> dict[str, Any]:
        """Plain values by name; what was read and not changed since is as it was read, in its order."""
        found = dict(self.stored or {})
        for name, hint in _hints(type(self)).items():
            value = getattr(self, name)
            if name in found:
                same = _equal(value, read_value(hint, found[name], name))
            else:
                always = self.stored is None and name in _needed(type(self))
                same = not always and _equal(value, _unsaid(type(self), name))
            if not same:
                found[name] = plain(value)
        return found


@dataclass(frozen=True, kw_only=True)
class StoredOptions(Generic[Options]):
    """What was understood of stored options."""

    options: Options
    """Defaults where something is missing or was not understood."""
    unknown: tuple[str, ...]
    """Names that this version does not know, and name=value where it knows the option but not the value; those of
    groups as group.name."""


def read_options(kind: type[Options], stored: Mapping[str, Any]) -> StoredOptions[Options]:
    """Read options of another version: none of them is a reason to fail.

    Args:
        kind: class of options; all its fields have defaults.
        stored: name -> value as JSON has it.

    Raises:
        TypeError: there are no names.
    """
    if not isinstance(stored, Mapping):
        raise TypeError(f"{kind.__name__} is {type(stored).__name__}, not names with values")
    hints, known, unknown = _hints(kind), {}, []
    for name, value in stored.items():
        if name not in hints:
            unknown.append(name)
        elif is_dataclass(hints[name]) and isinstance(value, Mapping):
            below = read_options(hints[name], value)
            known[name] = below.options
            unknown += [f"{name}.{each}" for each in below.unknown]
        else:
            try:
                known[name] = read_value(hints[name], value, name)
            except TypeError:
                unknown.append(f"{name}={value}")
    return StoredOptions(options=kind(**known), unknown=tuple(unknown))


def read_value(hint: Any, value: Any, name: str) -> Any:
    """A value of JSON as the annotated type: lists become tuples, and mappings of named fields dataclasses.

    Raises:
        TypeError: it has another structure; with the name.
    """
    origin, inner = _anatomy(hint)
    if origin in (Union, UnionType):
        return _read_any(inner, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        each = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(each) == len(value):
            return tuple(read_value(kind, part, name) for kind, part in zip(each, value, strict=True))
    elif origin is Mapping and isinstance(value, Mapping):
        return (
            value
            if inner[1] is Any
            else {key: read_value(inner[1], part, f"{name}.{key}") for key, part in value.items()}
        )
    elif is_dataclass(hint) and isinstance(value, Mapping):
        known = {
            key: read_value(kind, value[key], f"{name}.{key}") for key, kind in _hints(hint).items() if key in value
        }
        if lacking := sorted(_needed(hint) - known.keys()):
            raise TypeError(f"{name} lacks {lacking[0]}")
        return hint(**known)  # type: ignore[operator]
    elif (origin is Literal and value in inner) or (origin is None and _is_one(hint, value)):
        return value
    raise TypeError(f"{name} is {str(value)[:40]!r}")


@cache
def _anatomy(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a type is made from, and of which others: asked for each of many thousand values."""
    return get_origin(hint), get_args(hint)


def plain(value: Any) -> Any:
    """The inverse of `read_value`."""
    if is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def _read_any(kinds: tuple[Any, ...], value: Any, name: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return read_value(kind, value, name)
        except TypeError:
            continue
    return read_value(kinds[-1], value, name)


def _is_one(kind: Any, value: Any) -> bool:
    """Whether a value is of a plain type; true and false are no numbers here."""
    if kind in (int, float):
        return isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    return kind is Any or (not is_dataclass(kind) and isinstance(value, kind))


def _typed_fields(kind: Any) -> dict[str, Any]:
    found = get_type_hints(kind)
    return {each.name: found[each.name] for each in fields(kind) if each.name != "stored"}


_hints: Callable[[Any], dict[str, Any]] = cache(_typed_fields)
"""Fields and their types, in order."""


def _without_default(kind: Any) -> frozenset[str]:
    return frozenset(f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING)


_needed: Callable[[Any], frozenset[str]] = cache(_without_default)
"""Names of fields that have no default."""


def _unsaid(kind: type[Facts], name: str) -> Any:
    """What a field is where nothing is stored."""
    if name not in _needed(kind):
        (one,) = (each for each in fields(kind) if each.name == name)
        return one.default if one.default_factory is MISSING else one.default_factory()
    hint = _hints(kind)[name]
    if NoneType in get_args(hint):
        return None
    if hint is float:
        return nan
    return {} if get_origin(hint) is Mapping else (get_origin(hint) or hint)()


def _equal(one: Any, other: Any) -> bool:
    return one is other or bool(one == other)
