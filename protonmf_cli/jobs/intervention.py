"""Edits of prototypes, before and after: on one image, or over labelled images."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from protonmf_cli.errors import UsageError
from protonmf_cli.files.atomic import check_writable
from protonmf_cli.files.last_explanation import recall
from protonmf_cli.files.store import save_model
from protonmf_cli.jobs.images import SkipWatch, labelled_images
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Edit, InterventionOnData, Outcome
from protonmf_cli.options import EditWords, Form, ImageWords, Machine, Output
from protonmf_cli.pipelines.explaining.explanation import chosen_form
from protonmf_cli.pipelines.explaining.intervention import (
    apply_edits,
    find_edit,
    find_edit_everywhere,
    intervene_on_data,
    outcome,
    predicted_class,
    silent_classes,
)
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class Intervention:
    """An edited model, and what the edits change."""

    loaded: Loaded
    """The model before."""
    edited: PrototypeModel
    edits: tuple[Edit, ...]
    path: Path | None
    """Where the edited model was saved."""
    image: str | None
    """The image that was looked at."""
    outcomes: tuple[Outcome, Outcome] | None
    """Before and after, on the image."""
    on_data: InterventionOnData | None
    """The same over labelled images."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is looked at, and which class is edited."""

    image: str | None = None
    class_index: int | None = None
    """The predicted class if None and there is an image."""


def intervene(
    model: Loaded | str | PathLike[str],
    edits: EditWords | Sequence[EditWords],
    image: str | PathLike[str] | None = None,
    *,
    data: ImageWords | str | PathLike[str] | None = None,
    class_name: str | int | None = None,
    everywhere: bool = False,
    form: Form | None = None,
    output: Output | str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Intervention:
    """Remove or scale prototypes of a class, and see what changes; the edited model is saved before anything is said.

    Args:
        model: a file, or a model that is loaded.
        edits: prototypes and factors; each may name its own class.
        image: file to look at.
        data: labelled images to look at instead (the split val where there are two).
        class_name: class whose logit is edited; of an image the predicted one if None.
        everywhere: edit the prototypes in the logit of every class.
        form: "augmented" takes a prototype's share of the residual with it; as the file is stored if None.
        output: file for the edited model; it is not saved if None.
        machine: where and how to compute.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: there is no such class or prototype, or it is not said what to look at.
        InputError: the image, the data or the output cannot be used.
        GateError: too many images could not be read.
    """
    edits = [edits] if isinstance(edits, EditWords) else edits
    if not edits:
        raise UsageError("nothing to do: there is no edit.")
    words = None if data is None else ImageWords.of(data, split="val")
    target = None if output is None else Output.of(output)
    path = model.path if isinstance(model, Loaded) else Path(model)
    check_target(path, target)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        chosen = None if class_name is None else loaded.model.find_class(class_name)
        on = Target(image=None if image is None else str(image), class_index=chosen)
        return intervention(
            loaded, edits, on, words, everywhere=everywhere, form=form, output=target, progress=progress
        )


def check_target(model: Path, output: Output | None) -> None:
    """Refuse an output that exists, cannot be written or is the model itself, before any work.

    Raises:
        UsageError, InputError: naming it.
    """
    if output is None:
        return
    if output.path.resolve() == model.resolve():
        raise UsageError("-o must not be the model that is edited; give another name.")
    check_writable(output.path, output.force)


def last_target(loaded: Loaded, image: str | None, class_name: str | None, *, over_data: bool) -> Target:
    """Image and class as given, else those of the last explanation of the model's file."""
    named = None if class_name is None else loaded.model.find_class(class_name)
    last = recall(loaded.path)
    if last is None:
        return Target(image=image, class_index=named)
    same = image is None or Path(image).resolve() == Path(last.image)
    return Target(
        image=last.image if image is None and not over_data else image,
        class_index=last.class_index if named is None and same else named,
    )


def intervention(
    loaded: Loaded,
    edits: Sequence[EditWords],
    target: Target,
    data: ImageWords | None,
    *,
    everywhere: bool,
    form: Form | None,
    output: Output | None,
    progress: Progress,
) -> Intervention:
    """As `intervene`, of a model that is loaded and an output that was checked."""
    crop = None
    chosen = target.class_index
    if data is None:
        if target.image is None:
            raise UsageError(
                "there is no explanation to go on from: give an image, or run `protonmf explain IMAGE` first."
            )
        progress.note(f"before and after for {target.image}")
        crop = loaded.crop(target.image)
        if chosen is None:
            chosen = predicted_class(loaded.backbone, loaded.model, crop)
    elif chosen is None:
        raise UsageError("which class is to be edited? Give --class NAME (or run `protonmf explain IMAGE` first).")
    found = tuple(_found(loaded.model, chosen, word, everywhere) for word in edits)
    edited = apply_edits(loaded.model, found, form=chosen_form(loaded.model, form))
    for class_index, weight in silent_classes(edited, found):
        progress.warn(
            f"none of {edited.card.classes[class_index].shown}'s own prototypes speaks for it any more "
            f"(largest weight left: {weight:+.2f})"
        )
    before_after = None
    if crop is not None:
        before, after = (outcome(loaded.backbone, model, crop, chosen) for model in (loaded.model, edited))
        before_after = before, after
    on_data = None if data is None else _over_data(loaded, edited, found, data, progress)
    if output is not None:
        save_model(output.path, edited, loaded.backbone.weights() if loaded.embedded else None)
        progress.note(f"wrote {output.path}")
    return Intervention(
        loaded=loaded, edited=edited, edits=found, path=None if output is None else output.path,
        image=None if data is not None else target.image, outcomes=before_after, on_data=on_data,
    )  # fmt: skip


def _found(model: PrototypeModel, chosen: int, word: EditWords, everywhere: bool) -> Edit:
    where = chosen if word.class_name is None else model.find_class(word.class_name)
    owner = where if word.owner is None else model.find_class(word.owner)
    if everywhere:
        return find_edit_everywhere(model, owner, word.number, word.factor)
    return find_edit(model, where, owner, word.number, word.factor)


def _over_data(
    loaded: Loaded, edited: PrototypeModel, edits: Sequence[Edit], data: ImageWords, progress: Progress
) -> InterventionOnData:
    images = labelled_images(data, loaded.model.card.classes)
    watch = SkipWatch()
    progress.stage("before and after", sum(images.counts.values()))
    batches = watch.over(loaded.reader.batches(images.of(images.files)))
    classes = {int(loaded.model.owner[e.prototype_id]) if e.everywhere else e.class_index for e in edits}
    result = intervene_on_data(loaded.backbone, loaded.model, edited, batches, progress, edited=classes)
    watch.check(data.max_skipped, result.images, progress)
    return result
