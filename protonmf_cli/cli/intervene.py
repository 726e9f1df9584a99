"""protonmf intervene: edit prototypes, before and after."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.cli.help import HelpfulCommand
from protonmf_cli.errors import InputError, UsageError, is_whole
from protonmf_cli.options import EditWords, ImageWords, Machine, Output
from protonmf_cli.output.records.intervention import intervention_json
from protonmf_cli.output.text.intervention import intervention_blocks


class OrderedCommand(HelpfulCommand):
    """A command that knows in which order its options were given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As usual, with (option, value) pairs left in `ctx.meta`."""
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        taken: dict[str, int] = {}
        pairs = []
        for parameter in order:
            values = given.get(parameter.name)
            place = taken.get(parameter.name, 0)
            taken[parameter.name] = place + 1
            pairs.append((parameter.name, values[place] if isinstance(values, list) else values))
        ctx.meta[ORDER] = pairs
        return super().parse_args(ctx, args)


ORDER = "protonmf.order"


@dataclass(frozen=True, kw_only=True)
class Images:
    """Labelled images of an intervention."""

    data: ImageWords | None
    """To measure over."""
    refit: ImageWords | None
    """To refit the last layer on."""


def images_of(
    *,
    data: str | None = None,
    refit: str | None = None,
    split: str = "val",
    class_map: Path | None = None,
    class_order: bool = False,
    max_skipped: float = 0.01,
) -> Images:
    """What is said of images holds for those of --data and of --refit.

    Raises:
        UsageError: neither is given.
    """
    lost = {"--class-map": class_map is not None, "--class-order": class_order}
    if data is None and refit is None and (found := [option for option, said in lost.items() if said]):
        raise UsageError(f"{found[0]} is about the images of --data and --refit: give one of them too.")
    made = [
        None if path is None else ImageWords(
            data=path, split=split, class_map=class_map, class_order=class_order, max_skipped=max_skipped
        )
        for path in (data, refit)
    ]  # fmt: skip
    return Images(data=made[0], refit=made[1])


IMAGES = Group(
    images_of,
    data=Annotated[str | None, typer.Option("--data", metavar="PATH|URL", help="Measure over labelled images instead of one image.")],
    refit=Annotated[str | None, typer.Option("--refit", metavar="PATH|URL", help="Labelled images: after --everywhere, refit the last layer on them so that it keeps away from what was removed.")],
    split=arguments.Split,
    class_map=arguments.ClassMapFile,
    class_order=arguments.ClassOrder,
    max_skipped=arguments.MaxSkipped,
)  # fmt: skip


def intervene(
    context: typer.Context,
    image: Annotated[str | None, typer.Argument(help="Image file. Default: the one explained last.")] = None,
    zero: Annotated[list[str] | None, typer.Option("--zero", help="[OWNER:]N[,N...]: prototypes to remove. Repeatable.")] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", help="[OWNER:]N=FACTOR: prototype to scale. Repeatable.")] = None,
    class_name: Annotated[list[str] | None, typer.Option("--class", help="Class whose logit is edited, by label, description, WordNet id or index. With one, all edits are its own; with several, an edit belongs to the --class before it. Default: the class explained last, or the one that explain is about.")] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Edit the prototypes in the logit of every class, not only of the one they are from.")] = False,
    audit: Annotated[Path | None, typer.Option("--audit", help="What `protonmf audit --json` said of the model.")] = None,
    remove_suspicious: Annotated[int | None, typer.Option("--remove-suspicious", min=1, metavar="N", help="Remove the first N prototypes of --audit from every class.")] = None,
    form: arguments.FormOption = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    *,
    images: Annotated[Images, IMAGES],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the edited model.")] = None,
    machine: Annotated[Machine, arguments.MACHINE] = Machine(),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Zero or scale prototypes of a class and see what changes, on one image or over a data set.

    Example: protonmf intervene img.jpg --class tick --zero 1,3 --class ant --zero 2
    """
    suspicious = suspicious_of(audit, remove_suspicious, context.meta[ORDER])
    edits = [] if suspicious else words_of(context.meta[ORDER])  # of zero and scale, in their order among the classes
    if image is not None and images.data is not None:
        raise UsageError("give an image or --data, not both.")
    target = None if output is None else Output(path=output, force=force)
    jobs.early.check_edited(model, target)
    jobs.early.check(model=model, images=[] if image is None else [image], data=[images.data, images.refit])
    with jobs.machine.threads_of(machine), shown.progress() as bars:
        loaded = jobs.loaded.load(model, machine=machine, progress=bars)
        if suspicious:
            edits = jobs.intervention.suspicious_edits(loaded, *suspicious, progress=bars)
        named = class_name[0] if class_name else None
        over = images.data is not None or images.refit is not None
        found = jobs.intervention.intervention(
            loaded, edits, jobs.intervention.last_target(loaded, image, named, over_data=over), images.data,
            everywhere=everywhere or suspicious is not None, form=form, refit=images.refit, output=target,
            progress=bars,
        )  # fmt: skip
    if shown.as_json:
        shown.json(intervention_json(found))
    else:
        show_blocks(intervention_blocks(found), shown)


def suspicious_of(audit: Path | None, count: int | None, order: Sequence[tuple[str, Any]]) -> tuple[Path, int] | None:
    """The audit and how many of its prototypes are removed; None where --zero and --scale say what is edited.

    Raises:
        UsageError: one of the two is given without the other, or other edits beside them.
    """
    if audit is None and count is None:
        return None
    if audit is None or count is None:
        raise UsageError("--audit FILE and --remove-suspicious N belong together: give both.")
    if others := sorted({name for name, _ in order} & {"zero", "scale", "class_name"}):
        option = f"--{others[0]}".replace("_name", "")
        raise UsageError(f"--remove-suspicious says itself what is removed: leave out {option}, or edit in two steps.")
    return audit, count


def words_of(order: Sequence[tuple[str, Any]]) -> list[EditWords]:
    """Every --zero and --scale with the --class it belongs to.

    With one --class all edits are for it, wherever it stands; with several, each edit is for the last one before it.

    Raises:
        UsageError: no edit is given, or an edit stands before the first of several classes.

    >>> [(w.class_name, w.number) for w in words_of([("class_name", "a"), ("zero", "1"), ("class_name", "b"), ("zero", "2")])]
    [('a', 1), ('b', 2)]
    """
    classes = [value for name, value in order if name == "class_name"]
    current = classes[0] if len(classes) == 1 else None
    found: list[EditWords] = []
    without: set[str] = set(classes)
    for name, value in order:
        if name == "class_name":
            current = value
        if name not in ("zero", "scale"):
            continue
        if len(classes) > 1 and current is None:
            raise UsageError(
                f"--{name} {value} stands before the first of several --class: put each --class before its own edits."
            )
        without.discard(current or "")
        parsed = _zero_words(value) if name == "zero" else [_scale_words(value)]
        found += [replace(word, class_name=current) for word in parsed]
    if not found:
        raise UsageError("nothing to do: give --zero N or --scale N=FACTOR (prototype numbers start at 1).")
    if without:
        raise UsageError(f"--class {sorted(without)[0]} has no edit behind it: put each --class before its own edits.")
    return found


def _zero_words(text: str) -> list[EditWords]:
    owner, _, numbers = text.rpartition(":")
    least = 0 if owner else 1
    return [EditWords(owner=owner or None, number=_number(part, "--zero", text, least)) for part in numbers.split(",")]


def _scale_words(text: str) -> EditWords:
    left, equals, factor = text.rpartition("=")
    owner, _, number = left.rpartition(":")
    if not equals:
        raise UsageError(f"--scale {text!r} is not of the form [OWNER:]N=FACTOR, e.g. 2=0.5.")
    try:
        value = float(factor)
    except ValueError as failure:
        raise UsageError(f"--scale {text!r}: {factor!r} is not a number.") from failure
    if not abs(value) < 1e6:
        raise InputError(f"--scale {text!r}: the factor must be a finite number below a million.")
    return EditWords(owner=owner or None, number=_number(number, "--scale", text, 0 if owner else 1), factor=value)


def _number(text: str, option: str, whole: str, least: int) -> int:
    """Of a prototype; 0 is another class as a whole."""
    if not is_whole(text.strip()) or int(text) < least:
        raise UsageError(f"{option} {whole!r}: {text!r} is not a prototype number (they start at 1).")
    return int(text)
