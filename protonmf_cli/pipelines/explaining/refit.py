"""A step of the last layer, on labelled images, for what prototypes were taken out of every class.

The images are seen as they are, and once for each of those prototypes with one of its training patches pasted in, under
their own label: what one direction of the rows leaves of a part shows there. No labels of shortcuts are needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.head_refit import Candidate, HeadProblem, cross_validated, refitted
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import RefitFacts
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, digest_of_images
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import pooled_rows
from protonmf_cli.models.results import HeldOut, Refit, RefitCandidate
from protonmf_cli.options import REFIT_FOLDS, REFIT_RIDGES
from protonmf_cli.pipelines.explaining.intervention import reweighed
from protonmf_cli.pipelines.explaining.pasting import PartPatch
from protonmf_cli.pipelines.fewshot.folds import fold_numbers
from protonmf_cli.pipelines.progress import SILENT, Progress

FEWEST = 2
"""Images of a class of which one can be held out."""


@dataclass(frozen=True, kw_only=True)
class RefitImages:
    """What the last layer reads of labelled images, and of the same with patches in them."""

    rows: Tensor
    """(N, D) float64 sum of all rows of an image."""
    labels: Tensor
    """(N,) int64"""
    origin: Tensor
    """(N,) int64 number of the image in `sources`."""
    pasted: Tensor
    """(N,) int64 prototype whose patch was pasted into it; -1 for none."""
    sources: tuple[ImageSource, ...]


def read_refit_images(
    backbone: Backbone,
    batches: Iterable[ImageBatch],
    patches: Mapping[int, Sequence[PartPatch]],
    owner: Tensor,
    progress: Progress = SILENT,
) -> RefitImages:
    """Read every image once, and once more with a patch of each prototype that is of another class.

    Args:
        backbone: the network.
        batches: labelled images.
        patches: of each prototype; an image takes them in turn.
        owner: (P,) classes of the prototypes.
        progress: advanced by the images.

    Raises:
        InputError: no image could be read.
    """
    rows, labels, origin, pasted_in, sources = (
        list[Tensor](),
        list[int](),
        list[int](),
        list[int](),
        list[ImageSource](),
    )
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        numbers = range(len(sources), len(sources) + len(batch.sources))
        strange = [prototype for prototype in patches if int(owner[prototype]) != batch.class_index]
        for prototype in (-1, *strange):
            crops = batch.crops
            if prototype >= 0:
                chosen = [patches[prototype][n % len(patches[prototype])] for n in numbers]
                crops = torch.stack([patch.on(crop) for crop, patch in zip(crops, chosen, strict=True)])
            rows.append(pooled_rows(backbone.read(crops).rows.cpu().double(), None)[:, 0])
            labels += [batch.class_index] * len(numbers)
            origin += numbers
            pasted_in += [prototype] * len(numbers)
        sources += batch.sources
    if not sources:
        raise InputError("no image of --refit could be read.")
    return RefitImages(
        rows=torch.cat(rows),
        labels=torch.tensor(labels),
        origin=torch.tensor(origin),
        pasted=torch.tensor(pasted_in),
        sources=tuple(sources),
    )


def removed_everywhere(model: PrototypeModel) -> tuple[int, ...]:
    """Prototypes that the edits of a model took out of every class, rising."""
    edits = model.card.edits
    return tuple(
        sorted({int(edit["prototype_id"]) for edit in edits if edit["class_index"] < 0 and not edit["factor"]})
    )


def refit_head(before: PrototypeModel, edited: PrototypeModel, images: RefitImages) -> tuple[PrototypeModel, Refit]:
    """The edited model after a step of its head that brings back nothing of what was taken out of every class.

    The weight of the step is the one of the least cross-entropy on images held out, with and without patches, among
    those with which no class whose prototypes were taken out has fewer of them right, as they are, than with the edit
    alone; or there is no step.

    Args:
        before: the model before the edits, for its figures.
        edited: with prototypes that were taken out of every class.
        images: labelled.

    Returns:
        The model, which is the edited one where no step was taken, and what was tried.

    Raises:
        InputError: nothing was taken out of every class, or the images differ in nothing else.
        NotExactError: the solver failed.
    """
    removed, exact = removed_everywhere(edited), edited.exact
    if not removed:
        raise InputError(
            "--refit is for prototypes that were removed from every class: give --everywhere and --zero N."
        )
    problem = HeadProblem(
        rows=images.rows, labels=images.labels, head=edited.head_vectors(), bias=exact.bias,
        removed=exact.prototypes[list(removed)],
    )  # fmt: skip
    bare = images.pasted < 0
    few, candidates = _too_few(images.labels[bare]), list[Candidate]()
    if not few and problem.nothing_left:
        raise InputError(
            "the images of --refit differ in nothing but what was removed, so the last layer cannot be refitted on "
            "them. Give other images with --refit, or remove fewer prototypes."
        )
    folds = fold_numbers(images.labels[bare], REFIT_FOLDS, 0)[images.origin]
    owners = sorted({int(edited.owner[j]) for j in removed})
    choice = _Choice(None, few)
    if not few:
        candidates = cross_validated(problem, REFIT_RIDGES, folds)
        choice = _chosen(candidates, torch.where(bare, images.labels, -1), owners, edited)
    found = _figures(before, problem, images, candidates, choice, folds, removed)
    if choice.ridge is None:
        return edited, found
    facts = RefitFacts(
        images=len(images.sources), digest=digest_of_images(images.sources), classes=found.classes, ridge=choice.ridge,
        removed=removed,
    )  # fmt: skip
    return with_head(edited, refitted(problem, choice.ridge), facts), found


def _too_few(labels: Tensor) -> str:
    """Why no step can be chosen on these images; empty where it can."""
    counts = labels.bincount()
    fewest = int(counts[counts > 0].min())
    if int((counts > 0).sum()) < 2:
        return "the images are of one class"
    return "" if fewest >= FEWEST else f"a class has only {fewest} image, and {FEWEST} of each are needed"


@dataclass(frozen=True)
class _Choice:
    """The step that is taken, or why there is none."""

    ridge: float | None
    reason: str


def _chosen(candidates: Sequence[Candidate], labels: Tensor, owners: Sequence[int], model: PrototypeModel) -> _Choice:
    """Of candidates the first of which is no step; labels (N,) are -1 where an image does not count for a class."""
    none, *steps = candidates
    better = sorted((step for step in steps if step.loss < none.loss), key=lambda step: step.loss)
    if not better:
        return _Choice(None, "none lowers the loss on images that were held out")
    right = [{c: int((step.top[labels == c] == c).sum()) for c in owners} for step in (none, *better)]
    losing = [[c for c in owners if each[c] < right[0][c]] for each in right[1:]]
    for step, classes in zip(better, losing, strict=True):
        if not classes:
            return _Choice(step.ridge, "")
    names = ", ".join(model.card.classes[c].shown for c in losing[0])
    return _Choice(None, f"with it fewer held-out images of {names} are right than with the edit alone")


def _figures(
    before: PrototypeModel,
    problem: HeadProblem,
    images: RefitImages,
    candidates: Sequence[Candidate],
    choice: _Choice,
    folds: Tensor,
    removed: tuple[int, ...],
) -> Refit:
    """Counts of the images that are held out once: of the model before, the edit alone, and the step."""
    labels, counted, bare = images.labels, folds >= 0, images.pasted < 0
    old = problem.rows @ before.head_vectors().mT + before.exact.bias
    steps = sorted(candidates[1:], key=lambda step: (step.ridge != choice.ridge, step.loss))
    tops = [old.argmax(dim=1), problem.logits(problem.head).argmax(dim=1), *(step.top for step in steps[:1])]

    def among(chosen: Tensor, wanted: Tensor) -> HeldOut:
        held_out = counted & chosen
        hits = [int((held_out & (top == wanted)).sum()) for top in tops]
        return HeldOut(
            images=int(held_out.sum()), before=hits[0], edited=hits[1], refitted=hits[2] if steps else None
        )  # fmt: skip

    owner = {j: int(before.owner[j]) for j in removed}
    return Refit(
        images=len(images.sources),
        classes=len(problem.moving),
        removed=removed,
        ridge=choice.ridge,
        reason=choice.reason,
        candidates=tuple(
            RefitCandidate(ridge=each.ridge, loss=each.loss, right=int((bare & (each.top == labels)).sum()))
            for each in candidates
        ),
        whole=among(bare, labels),
        per_class={c: among(bare & (labels == c), labels) for c in sorted(set(owner.values())) if c in problem.moving},
        taken_along={
            j: among(images.pasted == j, torch.full_like(labels, owner[j])) for j in removed if j in images.pasted
        },
    )


def with_head(edited: PrototypeModel, head: Tensor, facts: RefitFacts) -> PrototypeModel:
    """The model of a refitted head, see `reweighed`.

    Args:
        edited: that reads amounts.
        head: (C, D) float64
        facts: for the card.
    """
    found = reweighed(edited, head)
    return replace(found, card=replace(found.card, refits=(*found.card.refits, facts)))
