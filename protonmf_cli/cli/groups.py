"""Option groups on the command line: a parameter that is a group is given as the group's single options."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, get_args, get_origin, get_type_hints

NEEDED = inspect.Parameter.empty


class Group:
    """How a class of options is given in words: one option of the command line for each of its fields."""

    def __init__(self, make: Callable[..., Any], **options: Any) -> None:
        """
        Args:
            make: takes the fields by name, e.g. a dataclass.
            options: field -> annotated type of its option; fields that are not named keep their default.
        """
        self.make, self.options = make, options

    def parameters(self, given: Any) -> list[inspect.Parameter]:
        """One parameter for each field, with the default of an instance, else of the class."""
        signature = inspect.signature(self.make).parameters
        return [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=signature[name].default if given is NEEDED else getattr(given, name),
                annotation=annotation,
            )
            for name, annotation in self.options.items()
        ]

    def taken(self, words: dict[str, Any], given: Any) -> Any:
        """The group made of its fields, which are taken out of `words`; other fields are as in an instance."""
        fields = {name: words.pop(name) for name in self.options}
        kept = {} if given is NEEDED else {n: getattr(given, n) for n in inspect.signature(self.make).parameters}
        return self.make(**kept | fields)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command with single options in place of parameters that are annotated with a `Group`."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, tuple[Group, Any]] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        group = _group_of(hints[name])
        if group is None:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
        else:
            groups[name] = group, parameter.default
            parameters += group.parameters(parameter.default)

    @functools.wraps(command)
    def run(**words: Any) -> None:
        made = {name: group.taken(words, given) for name, (group, given) in groups.items()}
        command(**made, **words)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _group_of(hint: Any) -> Group | None:
    if get_origin(hint) is not Annotated:
        return None
    return next((each for each in get_args(hint)[1:] if isinstance(each, Group)), None)


def given(words: Mapping[str, Any]) -> dict[str, Any]:
    """Options that were given, without those left to their default."""
    return {name: value for name, value in words.items() if value is not None}
