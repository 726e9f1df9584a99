"""protonmf intervene: edit prototypes, before and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import Form

if TYPE_CHECKING:
    from protonmf_cli.files.datasets import LabelledImages
    from protonmf_cli.library import Loaded
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Edit, InterventionOnData

SHOWN_FLIPS = 12


@dataclass(frozen=True)
class _Words:
    """One --zero or --scale as the user wrote it."""

    owner: str | None
    number: int
    factor: float

    def said(self, owner: str) -> str:
        """The edit in words."""
        what = f"prototype {self.number}" + (f" of {owner}" if self.owner else "")
        return f"zero {what}" if self.factor == 0 else f"{what} x {self.factor:g}"


def intervene(
    image: Annotated[str | None, typer.Argument(help="Image file. Default: the one explained last.")] = None,
    zero: Annotated[list[str] | None, typer.Option("--zero", help="[OWNER:]N[,N...]: prototypes to remove. Repeatable.")] = None,
    scale: Annotated[list[str] | None, typer.Option("--scale", help="[OWNER:]N=FACTOR: prototype to scale. Repeatable.")] = None,
    class_name: arguments.ClassName = None,
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
    words = [w for text in zero or [] for w in _zero_words(text)] + [_scale_words(text) for text in scale or []]
    if not words:
        raise UsageError("nothing to do: give --zero N or --scale N=FACTOR (prototype numbers start at 1).")
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
    named = None if class_name is None else loaded.model.find_class(class_name)
    image, chosen = _target(model, image, named, over_data=data is not None)
    if data is not None:
        if chosen is None:
            raise UsageError("which class is to be edited? Give --class NAME (or run `protonmf explain IMAGE` first).")
        images = _find_images(loaded, data, split, class_map, class_order)
        edits, edited = _edit(loaded.model, chosen, words, form)
        result = _over_data(loaded, edited, images, shown, max_skipped)
        report = _data_json(loaded.model, result)
        if not as_json:
            _show_data(loaded.model, chosen, words, report, shown)
    else:
        if image is None:
            raise UsageError(
                "there is no explanation to go on from: give an image, or run `protonmf explain IMAGE` first."
            )
        shown.note(f"before and after for {image}")
        edits, edited, report = _on_image(loaded, image, chosen, words, form, shown, as_json)
    if output is not None:
        from protonmf_cli.files.store import save_model

        save_model(output, edited, loaded.backbone.weights() if loaded.embedded else None)
        shown.note(f"wrote {output}")
    if as_json:
        body = {"schema": "protonmf.intervention/1", "edits": [_edit_json(loaded.model, e) for e in edits]}
        shown.json(body | report | {"output": None if output is None else str(output)})


def _target(model: Path, image: str | None, named: int | None, *, over_data: bool) -> tuple[str | None, int | None]:
    """Image and class to edit: as given, else those of the last explanation."""
    from protonmf_cli.files.state import recall

    last = recall(model)
    if last is None:
        return image, named
    same = image is None or Path(image).resolve() == Path(last.image)
    chosen = last.class_index if named is None and same else named
    return (last.image if image is None and not over_data else image), chosen


def _on_image(
    loaded: "Loaded",
    image: str,
    chosen: int | None,
    words: list[_Words],
    form: Form | None,
    shown: Shown,
    as_json: bool,
) -> tuple[list["Edit"], "PrototypeModel", dict[str, Any]]:
    from protonmf_cli.cli.ledger import outcome_json, show_outcomes
    from protonmf_cli.pipelines.intervention import outcome, predicted_class

    crop = loaded.crop(image)
    chosen = predicted_class(loaded.backbone, loaded.model, crop) if chosen is None else chosen
    edits, edited = _edit(loaded.model, chosen, words, form)
    before, after = (outcome(loaded.backbone, m, crop, chosen) for m in (loaded.model, edited))
    if not as_json:
        show_outcomes(before, after, _said(words, loaded.model), shown)
    return edits, edited, {"image": image, "before": outcome_json(before), "after": outcome_json(after)}


def _edit(
    model: "PrototypeModel", chosen: int, words: list[_Words], form: Form | None
) -> tuple[list["Edit"], "PrototypeModel"]:
    from protonmf_cli.pipelines.explanation import chosen_form
    from protonmf_cli.pipelines.intervention import apply_edits, find_edit

    edits = []
    for word in words:
        owner = chosen if word.owner is None else model.find_class(word.owner)
        edits.append(find_edit(model, chosen, owner, word.number, word.factor))
    return edits, apply_edits(model, edits, form=chosen_form(model, form))


def _find_images(
    loaded: "Loaded", data: Path, split: str, class_map: Path | None, class_order: bool
) -> "LabelledImages":
    from protonmf_cli.files.datasets import ClassMapping, find_images

    return find_images(data, split, loaded.model.card.classes, ClassMapping(file=class_map, by_order=class_order))


def _over_data(
    loaded: "Loaded", edited: "PrototypeModel", images: "LabelledImages", shown: Shown, max_skipped: float
) -> "InterventionOnData":
    from protonmf_cli.cli.reading import SkipWatch
    from protonmf_cli.pipelines.intervention import intervene_on_data

    watch = SkipWatch()
    with shown.progress() as bars:
        bars.stage("before and after", sum(images.counts.values()))
        batches = watch.over(loaded.reader.batches(images.of(images.files)))
        result = intervene_on_data(loaded.backbone, loaded.model, edited, batches, bars)
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


def _show_data(model: "PrototypeModel", chosen: int, words: list[_Words], report: dict[str, Any], shown: Shown) -> None:
    said = ", ".join(_said(words, model))
    shown.out.print(f"{model.card.classes[chosen].shown}: {said}", style="bold", markup=False)
    before, after = report["before"]["accuracy"], report["after"]["accuracy"]
    shown.out.print(
        f"accuracy over {report['images']} images: {before:.1%} before, {after:.1%} after, {len(report['flips'])} flipped"
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
        "class_index": edit.class_index,
        "label": model.card.classes[edit.class_index].label,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "prototype": model.number(edit.prototype_id),
        "prototype_id": edit.prototype_id,
        "factor": edit.factor,
    }


def _said(words: list[_Words], model: "PrototypeModel") -> list[str]:
    return [w.said("" if w.owner is None else model.card.classes[model.find_class(w.owner)].shown) for w in words]


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
