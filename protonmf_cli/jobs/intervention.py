"""Edits of prototypes, before and after: on one image, or over labelled images; and a refit of the last layer."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.audits import read_ranking
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.files.last_explanation import recall
from protonmf_cli.files.store import decision_digest, save_model
from protonmf_cli.jobs.audit import Audited
from protonmf_cli.jobs.early import check_edited
from protonmf_cli.jobs.images import SkipWatch, images_of_model
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.class_names import words_for
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Edit, InterventionOnData, Outcome, Refit
from protonmf_cli.options import EditWords, Form, ImageWords, Machine, Output
from protonmf_cli.pipelines.explaining.explanation import chosen_form
from protonmf_cli.pipelines.explaining.intervention import (
    apply_edits,
    explained_class,
    find_edit,
    find_edit_everywhere,
    intervene_on_data,
    outcomes,
    silent_classes,
)
from protonmf_cli.pipelines.explaining.pasting import patches_of
from protonmf_cli.pipelines.explaining.refit import read_refit_images, refit_head, removed_everywhere
from protonmf_cli.pipelines.progress import LOGGED, Progress

MOST_REFIT_IMAGES = 4000
"""That a refit reads, or two of each class: their rows, with and without patches, are held in memory."""


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
    refit: Refit | None = None
    """The last layer after the edits, where images were given for it."""
    also: tuple[tuple[Outcome, Outcome], ...] = ()
    """Before and after, on the image, of further classes that are edited."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is looked at, and which class is edited."""

    image: str | None = None
    class_index: int | None = None
    """The class that `explain` is about if None and there is an image."""


def intervene(
    model: Loaded | str | PathLike[str],
    edits: EditWords | Sequence[EditWords],
    image: str | PathLike[str] | None = None,
    *,
    data: ImageWords | str | PathLike[str] | None = None,
    class_name: str | int | None = None,
    everywhere: bool = False,
    form: Form | None = None,
    refit: ImageWords | str | PathLike[str] | None = None,
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
        class_name: class whose logit is edited; of an image the one that `explain` is about if None.
        everywhere: edit the prototypes in the logit of every class.
        form: "augmented" takes a prototype's share of the residual with it; as the file is stored if None.
        refit: labelled images (the split val where there are two) on which the last layer takes a step after edits of
            every class, in which no class gives anything for what was removed; none if that is not better.
        output: file for the edited model; it is not saved if None.
        machine: where and how to compute.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: there is no such class or prototype, it is not said what to look at, or `refit` is given and nothing
            is removed from every class.
        InputError: the image, the data or the output cannot be used, or the last layer cannot be refitted on the images.
        GateError: too many images could not be read.
    """
    edits = [edits] if isinstance(edits, EditWords) else edits
    if not edits:
        raise UsageError("nothing to do: there is no edit.")
    words, refit_words = (None if given is None else ImageWords.of(given, split="val") for given in (data, refit))
    target = None if output is None else Output.of(output)
    path = model.path if isinstance(model, Loaded) else Path(model)
    check_edited(path, target)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        chosen = None if class_name is None else loaded.model.find_class(class_name)
        on = Target(image=None if image is None else str(image), class_index=chosen)
        return intervention(
            loaded, edits, on, words, everywhere=everywhere, form=form, refit=refit_words, output=target,
            progress=progress,
        )  # fmt: skip


def suspicious_edits(
    model: Loaded | str | PathLike[str],
    audit: Audited | str | PathLike[str],
    count: int,
    *,
    progress: Progress = LOGGED,
) -> list[EditWords]:
    """Edits that remove what an audit ranks first, for `intervene` with `everywhere`.

    Args:
        model: the one that was audited, or its file.
        audit: what `audit` found, or a file that `protonmf audit --json` wrote.
        count: prototypes to remove, from the head of the ranking; at least 1.
        progress: is warned of those that do not look like a shortcut.

    Raises:
        UsageError: `count` is not from 1 to the length of the ranking.
        InputError: the file is no audit, or that of another model.
    """
    found = audit.ranking if isinstance(audit, Audited) else read_ranking(audit)
    model = loaded_from(model, None, progress)
    if found.model_digest != decision_digest(model.model):
        raise InputError(
            f"{found.name} is of another model than {model.path}. Give the model that was audited, or run "
            "`protonmf audit --json` on this one."
        )
    if not 1 <= count <= len(found.ranked):
        raise UsageError(
            f"--remove-suspicious {count}: {found.name} ranks {len(found.ranked)} prototypes, so N is a number "
            f"from 1 to {len(found.ranked)}."
        )
    first, names = found.ranked[:count], words_for(model.model.card.classes)
    if doubtful := [f"prototype {each.prototype} of {each.class_name}" for each in first if not each.shortcut]:
        progress.warn(
            f"{', '.join(doubtful)}: the audit does not call {'it a shortcut' if len(doubtful) == 1 else 'them shortcuts'}"
            f"; removed as asked."
        )
    return [EditWords(number=each.prototype, owner=names[each.class_index]) for each in first]


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
    refit: ImageWords | None = None,
    output: Output | None,
    progress: Progress,
) -> Intervention:
    """As `intervene`, of a model that is loaded and an output that was checked."""
    if refit is not None:
        _check_removing(edits, everywhere)
    crop, chosen = _looked_at(loaded, target, edits, data, refit, everywhere, progress)
    found = tuple(_found(loaded.model, chosen, word, everywhere) for word in edits)
    alone = edited = apply_edits(loaded.model, found, form=chosen_form(loaded.model, form))
    refitted, seen = None, frozenset[str]()
    if refit is not None:
        edited, refitted, seen = _refitted(loaded, alone, refit, progress)
    for class_index, weight in silent_classes(edited, found):
        progress.warn(
            f"none of {edited.card.classes[class_index].shown}'s own prototypes speaks for it any more "
            f"(largest weight left: {weight:+.2f})"
        )
    before_after: list[tuple[Outcome, Outcome]] = []
    if crop is not None and chosen is not None:
        classes = list(dict.fromkeys([chosen, *(edit.class_index for edit in found if not edit.everywhere)]))
        sides = [outcomes(loaded.backbone, model, crop, classes) for model in (loaded.model, edited)]
        before_after = list(zip(*sides, strict=True))
    models = (loaded.model, edited, *([] if edited is alone else [alone]))
    on_data = None if data is None else _over_data(loaded, models, found, data, seen, progress)
    if output is not None:
        save_model(output.path, edited, loaded.backbone.weights() if loaded.embedded else None)
        progress.note(f"wrote {output.path}")
    return Intervention(
        loaded=loaded, edited=edited, edits=found, path=None if output is None else output.path,
        image=None if data is not None or target.image is None else printable(target.image), outcomes=next(iter(before_after), None), on_data=on_data,
        refit=refitted, also=tuple(before_after[1:]),
    )  # fmt: skip


def _check_removing(edits: Sequence[EditWords], everywhere: bool) -> None:
    """Refuse a refit after edits that remove nothing from every class."""
    if not everywhere:
        raise UsageError(
            "--refit is a step of the last layer for what no class may use any more: give --everywhere too."
        )
    if all(word.factor != 0 for word in edits):
        raise UsageError("--refit is for prototypes that are removed, and --scale leaves some of each: give --zero N.")


def _looked_at(
    loaded: Loaded,
    target: Target,
    edits: Sequence[EditWords],
    data: ImageWords | None,
    refit: ImageWords | None,
    everywhere: bool,
    progress: Progress,
) -> tuple[Tensor | None, int | None]:
    """The image that is looked at, if it is one, and the class that is edited where an edit does not say which."""
    if data is None and target.image is not None:
        progress.note(f"before and after for {target.image}")
        crop = loaded.crop(target.image)
        chosen = target.class_index
        return crop, explained_class(loaded.backbone, loaded.model, crop) if chosen is None else chosen
    if data is None and refit is None:
        raise UsageError("there is no explanation to go on from: give an image, or run `protonmf explain IMAGE` first.")
    says_itself = all(word.class_name is not None or (everywhere and word.owner is not None) for word in edits)
    if target.class_index is None and not says_itself:
        raise UsageError("which class is to be edited? Give --class NAME (or run `protonmf explain IMAGE` first).")
    return None, target.class_index


def _found(model: PrototypeModel, chosen: int | None, word: EditWords, everywhere: bool) -> Edit:
    where = chosen if word.class_name is None else model.find_class(word.class_name)
    owner = where if word.owner is None else model.find_class(word.owner)
    assert owner is not None  # see _looked_at
    if everywhere or where is None:
        return find_edit_everywhere(model, owner, word.number, word.factor)
    return find_edit(model, where, owner, word.number, word.factor)


def _refitted(
    loaded: Loaded, edited: PrototypeModel, words: ImageWords, progress: Progress
) -> tuple[PrototypeModel, Refit, frozenset[str]]:
    """The edited model with its last layer refitted, what was tried, and the digests of the images."""
    if edited.multi_label:
        raise InputError("--refit takes a step of a softmax, and the labels of this model do not exclude each other.")
    found = images_of_model(words, edited.card)
    for note in found.notes:
        progress.note(note)
    found = found.limited(max(2, MOST_REFIT_IMAGES // len(found.files)), seed=0)
    if left_out := sum(found.left_out.values()):
        progress.note(f"a step needs few images: {left_out} of --refit are left out, as many of each class stay.")
    watch = SkipWatch()
    progress.stage("images of --refit", sum(found.counts.values()))
    batches = watch.over(loaded.reader.batches(found.of(found.files)))
    patches = patches_of(
        edited,
        removed_everywhere(edited),
        lambda example: crop_of_jpeg(edited.examples.picture(example), loaded.reader.channels),
    )
    images = read_refit_images(loaded.backbone, batches, patches, edited.owner, progress)
    watch.check(words.max_skipped, len(images.sources), progress)
    model, result = refit_head(loaded.model, edited, images)
    if result.ridge is None:
        progress.warn(f"no step of the last layer was taken: {result.reason}.")
    return model, result, frozenset(source.sha256 for source in images.sources)


def _over_data(
    loaded: Loaded,
    models: Sequence[PrototypeModel],
    edits: Sequence[Edit],
    data: ImageWords,
    seen: Collection[str],
    progress: Progress,
) -> InterventionOnData:
    """The model before, the edited one and, where they differ, that of the edit alone, on labelled images."""
    before, after, *alone = models
    images = images_of_model(data, before.card)
    for note in images.notes:
        progress.note(note)
    watch, shared = SkipWatch(), list[str]()
    progress.stage("before and after", sum(images.counts.values()))

    def batches() -> Iterator[ImageBatch]:
        for batch in watch.over(loaded.reader.batches(images.of(images.files))):
            shared.extend(source.path for source in batch.sources if source.sha256 in seen)
            yield batch

    classes = {int(before.owner[e.prototype_id]) if e.everywhere else e.class_index for e in edits}
    result = intervene_on_data(
        loaded.backbone, before, after, batches(), progress, edited=classes, unrefitted=alone[0] if alone else None
    )
    watch.check(data.max_skipped, result.images, progress)
    if alone and shared:
        progress.note(
            f"{len(shared)} of the {result.images} images of --data were also given to --refit: of those, only the "
            "held-out figures are of heads that had not seen the image."
        )
    return result
