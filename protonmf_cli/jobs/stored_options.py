"""Options as a model file keeps them, read by a version that may know other ones."""

from collections.abc import Mapping
from dataclasses import dataclass, is_dataclass, replace
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from protonmf_cli.models.card import Card
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ConversionOptions, FewShotOptions, ProtoPNetOptions
from protonmf_cli.pipelines.progress import LOGGED, Progress

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")

METHODS: dict[str, "type[DataclassInstance]"] = {
    "protonmf": ConversionOptions,
    "protopnet": ProtoPNetOptions,
    "fewshot": FewShotOptions,
}
"""Method of a card -> options that it stores."""


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
    """
    hints, known, unknown = get_type_hints(kind), {}, []
    for name, value in stored.items():
        if name not in hints:
            unknown.append(name)
        elif is_dataclass(hints[name]) and isinstance(value, Mapping):
            below = read_options(hints[name], value)
            known[name] = below.options
            unknown += [f"{name}.{each}" for each in below.unknown]
        elif _fits(hints[name], value):
            known[name] = tuple(value) if isinstance(value, list) else value
        else:
            unknown.append(f"{name}={value}")
    return StoredOptions(options=kind(**known), unknown=tuple(unknown))


def options_of(model: PrototypeModel, progress: Progress = LOGGED) -> ConversionOptions:
    """The options a model was converted with, for conversions that are compared with it.

    Args:
        model: of any version.
        progress: is told what is stored and not known here.
    """
    stored = dict(model.card.options)
    if model.is_outdated:
        stored |= {"reconstruction": "amounts", "augment": "none"}
    found = read_options(ConversionOptions, stored)
    note_unknown(found.unknown, progress)
    return replace(found.options, group=1)


def unknown_options(card: Card) -> tuple[str, ...]:
    """Stored options that this version does not know, see `StoredOptions`; none of a method that it does not know."""
    kind = METHODS.get(card.method)
    return () if kind is None else read_options(kind, card.options).unknown


def note_unknown(names: tuple[str, ...], progress: Progress) -> None:
    """Say which stored options are left out."""
    if names:
        progress.note(f"the model stores options that this version does not know; they are ignored: {', '.join(names)}")


def _fits(hint: Any, value: object) -> bool:
    """Whether a stored value is one of an annotated type."""
    origin = get_origin(hint)
    if origin is Literal:
        return value in get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(each, value) for each in get_args(hint))
    if origin is tuple:
        return isinstance(value, list | tuple)
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
