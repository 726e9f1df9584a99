"""protonmf intervene: edit prototypes, before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import Form

if TYPE_CHECKING:
    from torch import Tensor

    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Edit, InterventionOnData

SHOWN_FLIPS = 12


@dataclass(frozen=True)
class _Words:
    """One --zero or --scale as the user wrote it, and the class that it was written for."""

    owner: str | None
    number: int
    factor: float
    class_name: str | None = None

    def said(self, owner: str) -> str:
        """The edit in words."""
        what = f"prototype {self.number}" + (f" of {owner}" if owner else "")
        return f"zero {what}" if self.factor == 0 else f"{what} x {self.factor:g}"


class OrderedCommand(TyperCommand):
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


def intervene(
    context: typer.Context = None,  # type: ignore[assignment]  # typer gives one
    image: Annotated[str | None, typer.Argument(help="Image file. Default: the one explained last.")] = None,
    zero: Annotated[list[str] | None, typer.Option("--zero", help="[OWNER:]N[,N...]: prototypes to remove. Repeatable.")] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", help="[OWNER:]N=FACTOR: prototype to scale. Repeatable.")] = None,
    class_name: Annotated[list[str] | None, typer.Option("--class", help="Class whose logit is edited, by label, description, WordNet id or index; may be repeated, each before its own edits. Default: the class explained last, or the predicted one.")] = None,
    everywhere: Annotated[bool, typer.Option("--everywhere", help="Edit the prototypes in the logit of every class, not only of the one they are from.")] = False,
    form: arguments.FormOption = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    data: Annotated[Path | None, typer.Option("--data", help="Measure over labelled images instead of one image.")] = None,
    split: arguments.Split = "val",
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    max_skipped: arguments.MaxSkipped = 0.01,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the edited model.")] = None,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Zero or scale prototypes of a class and see what changes, on one image or over a data set."""
    shown = Shown(quiet=quiet)
    words = words_of(context.meta[ORDER] if context else [("zero", z) for z in zero or []])
    if image is not None and data is not None:
        raise UsageError("give an image or --data, not both.")
    if output is not None:
        from protonmf_cli.files.atomic import check_writable

        if output.resolve() == model.resolve():
            raise UsageError("-o must not be the model that is edited; give another name.")
        check_writable(output, force)
    from protonmf_cli.cli.opened import open_model

    loaded = open_model(
        model, device=device, dtype=dtype, threads=threads, offline=offline, batch_size=batch_size, workers=workers
    )
    named = loaded.model.find_class(class_name[0]) if class_name else None
    image, chosen = _target(model, image, named, over_data=data is not None)
    crop = None
    if data is None:
        if image is None:
            raise UsageError(
                "there is no explanation to go on from: give an image, or run `protonmf explain IMAGE` first."
            )
        shown.note(f"before and after for {image}")
        crop = loaded.crop(image)
        if chosen is None:
            from protonmf_cli.pipelines.explaining.intervention import predicted_class

            chosen = predicted_class(loaded.backbone, loaded.model, crop)
    elif chosen is None:
        raise UsageError("which class is to be edited? Give --class NAME (or run `protonmf explain IMAGE` first).")
    edits, edited = _edit(loaded.model, chosen, words, form, everywhere)
    _warn_about(edited, edits, shown)
    if crop is not None:
        show, report = _on_image(loaded, edited, str(image), crop, chosen, edits)
    else:
        assert data is not None
        images = _find_images(loaded, data, split, class_map, class_order)
        result = _over_data(loaded, edited, images, shown, max_skipped, edits)
        report = _data_json(loaded.model, result)
        show = partial(_show_data, loaded.model, edits, report)
    if output is not None:
        from protonmf_cli.files.store import save_model

        save_model(output, edited, loaded.backbone.weights() if loaded.embedded else None)
        shown.note(f"wrote {output}")
    if as_json:
        body = {"schema": "protonmf.intervention/1", "edits": [_edit_json(loaded.model, e) for e in edits]}
        shown.json(body | report | {"output": None if output is None else str(output)})
    else:
        show(shown)


def words_of(order: Sequence[tuple[str, Any]]) -> list[_Words]:
    """Every --zero and --scale with the --class it belongs to.

    With one --class all edits are for it, wherever it stands; with several, each edit is for the last one before it.

    Raises:
        UsageError: no edit is given, or an edit stands before the first of several classes.

    >>> [(w.class_name, w.number) for w in words_of([("class_name", "a"), ("zero", "1"), ("class_name", "b"), ("zero", "2")])]
    [('a', 1), ('b', 2)]
    """
    classes = [value for name, value in order if name == "class_name"]
    current = classes[0] if len(classes) == 1 else None
    found: list[_Words] = []
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


def _target(model: Path, image: str | None, named: int | None, *, over_data: bool) -> tuple[str | None, int | None]:
    """Image and class to edit: as given, else those of the last explanation."""
    from protonmf_cli.files.last_explanation import recall

    last = recall(model)
    if last is None:
        return image, named
    same = image is None or Path(image).resolve() == Path(last.image)
    chosen = last.class_index if named is None and same else named
    return (last.image if image is None and not over_data else image), chosen


def _on_image(
    loaded: "Loaded", edited: "PrototypeModel", image: str, crop: "Tensor", chosen: int, edits: Sequence["Edit"]
) -> tuple[Callable[[Shown], None], dict[str, Any]]:
    from protonmf_cli.cli.ledger import outcome_json, show_outcomes
    from protonmf_cli.pipelines.explaining.intervention import outcome

    before, after = (outcome(loaded.backbone, m, crop, chosen) for m in (loaded.model, edited))
    show = partial(show_outcomes, before, after, said_of(loaded.model, edits))
    return show, {"image": image, "before": outcome_json(before), "after": outcome_json(after)}


def _edit(
    model: "PrototypeModel", chosen: int, words: Sequence[_Words], form: Form | None, everywhere: bool
) -> tuple[list["Edit"], "PrototypeModel"]:
    from protonmf_cli.pipelines.explaining.explanation import chosen_form
    from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit, find_edit_everywhere

    edits = []
    for word in words:
        where = chosen if word.class_name is None else model.find_class(word.class_name)
        owner = where if word.owner is None else model.find_class(word.owner)
        if everywhere:
            edits.append(find_edit_everywhere(model, owner, word.number, word.factor))
        else:
            edits.append(find_edit(model, where, owner, word.number, word.factor))
    return edits, apply_edits(model, edits, form=chosen_form(model, form))


def _warn_about(edited: "PrototypeModel", edits: Sequence["Edit"], shown: Shown) -> None:
    from protonmf_cli.pipelines.explaining.intervention import silent_classes

    for class_index, weight in silent_classes(edited, edits):
        shown.warn(
            f"none of {edited.card.classes[class_index].shown}'s own prototypes speaks for it any more "
            f"(largest weight left: {weight:+.2f})"
        )


def _find_images(
    loaded: "Loaded", data: Path, split: str, class_map: Path | None, class_order: bool
) -> "LabelledImages":
    from protonmf_cli.files.images.datasets import ClassMapping, find_images

    return find_images(data, split, loaded.model.card.classes, ClassMapping(file=class_map, by_order=class_order))


def _over_data(
    loaded: "Loaded",
    edited: "PrototypeModel",
    images: "LabelledImages",
    shown: Shown,
    max_skipped: float,
    edits: Sequence["Edit"],
) -> "InterventionOnData":
    from protonmf_cli.jobs.images import SkipWatch
    from protonmf_cli.pipelines.explaining.intervention import intervene_on_data

    watch = SkipWatch()
    with shown.progress() as bars:
        bars.stage("before and after", sum(images.counts.values()))
        batches = watch.over(loaded.reader.batches(images.of(images.files)))
        classes = {int(loaded.model.owner[e.prototype_id]) if e.everywhere else e.class_index for e in edits}
        result = intervene_on_data(loaded.backbone, loaded.model, edited, batches, bars, edited=classes)
    watch.check(max_skipped, result.images, shown)
    return result


def _data_json(model: "PrototypeModel", result: "InterventionOnData") -> dict[str, Any]:
    classes = model.card.classes
    return {
        "images": result.images,
        "before": {"accuracy": result.accuracy_before},
        "after": {"accuracy": result.accuracy_after},
        "flips": [
            {
                "image": flip.path,
                "label": classes[flip.target].label,
                "before": classes[flip.before].label,
                "after": classes[flip.after].label,
            }
            for flip in result.flips
        ],
        "per_class": [
            {"class_index": c, "label": classes[c].label, "images": n, "before": b / n, "after": a / n}
            for c, (n, b, a) in result.per_class.items()
        ],
    }


def _show_data(model: "PrototypeModel", edits: Sequence["Edit"], report: dict[str, Any], shown: Shown) -> None:
    shown.out.print("; ".join(said_of(model, edits)), style="bold", markup=False)
    before, after = report["before"]["accuracy"], report["after"]["accuracy"]
    shown.out.print(
        f"all classes: {before:.1%} -> {after:.1%} of {report['images']} images right, {len(report['flips'])} flipped"
    )
    names = {c.label: c.shown for c in model.card.classes}
    for row in report["per_class"]:
        shown.out.print(
            f"  {names[row['label']]}: {row['before']:.1%} -> {row['after']:.1%} of {row['images']}", markup=False
        )
    for flip in report["flips"][:SHOWN_FLIPS]:
        shown.out.print(f"  {flip['image']}: {names[flip['before']]} -> {names[flip['after']]}", markup=False)
    if len(report["flips"]) > SHOWN_FLIPS:
        shown.out.print(f"  and {len(report['flips']) - SHOWN_FLIPS} more (--json lists all)")


def _edit_json(model: "PrototypeModel", edit: "Edit") -> dict[str, Any]:
    owner = int(model.owner[edit.prototype_id])
    return {
        "class_index": None if edit.everywhere else edit.class_index,
        "label": None if edit.everywhere else model.card.classes[edit.class_index].label,
        "everywhere": edit.everywhere,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "prototype": model.number(edit.prototype_id),
        "prototype_id": edit.prototype_id,
        "factor": edit.factor,
    }


def said_of(model: "PrototypeModel", edits: Sequence["Edit"]) -> list[str]:
    """Edits in words, class by class: "flamingo: zero prototype 2"."""
    said: dict[str, list[str]] = {}
    for edit in edits:
        owner = int(model.owner[edit.prototype_id])
        word = _Words(None, model.number(edit.prototype_id), edit.factor)
        where = "every class" if edit.everywhere else model.card.classes[edit.class_index].shown
        name = "" if owner == edit.class_index else model.card.classes[owner].shown
        said.setdefault(where, []).append(word.said(name))
    return [f"{where}: {', '.join(words)}" for where, words in said.items()]


def _zero_words(text: str) -> list[_Words]:
    owner, _, numbers = text.rpartition(":")
    return [_Words(owner or None, _number(part, "--zero", text), 0.0) for part in numbers.split(",")]


def _scale_words(text: str) -> _Words:
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
    return _Words(owner or None, _number(number, "--scale", text), value)


def _number(text: str, option: str, whole: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise UsageError(f"{option} {whole!r}: {text!r} is not a prototype number (they start at 1).")
    return int(text)
