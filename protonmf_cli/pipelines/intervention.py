"""Edit prototypes and see what changes: on one image, or over labelled images."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.images import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel, parts_of_rows
from protonmf_cli.models.results import Edit, Flip, InterventionOnData, Outcome
from protonmf_cli.options import Form
from protonmf_cli.pipelines.explanation import BEST, predictions
from protonmf_cli.pipelines.progress import SILENT, Progress

VANISHING = 1e-6
"""Sum of the residual shares of a class below which nothing of the residual is left."""


def find_edit(model: PrototypeModel, class_index: int, owner: int, number: int, factor: float) -> Edit:
    """The edit that scales prototype `number` (from 1) of `owner` in the logit of `class_index`.

    Raises:
        InputError: the class has no prototypes, no such prototype, or does not use it.
    """
    name = model.card.classes[class_index].shown
    own, owner_name = model.own(owner), model.card.classes[owner].shown
    if not model.entries(class_index):
        raise InputError(
            f"class {name} has no prototypes in this model"
            f"{' (no images were given for it)' if model.is_additive else ''}, so there is nothing to edit."
        )
    if not 1 <= number <= len(own):
        numbers = f"1 to {len(own)}" if own else "none"
        raise InputError(f"{owner_name} has no prototype {number}; it has {numbers}.")
    prototype = own[number - 1]
    used = model.weights.prototype[model.weights.class_index == class_index].tolist()
    if prototype not in used:
        raise InputError(f"class {name} does not use prototype {number} of {owner_name}, so it cannot be edited there.")
    return Edit(class_index=class_index, prototype_id=prototype, factor=factor)


def apply_edits(model: PrototypeModel, edits: Sequence[Edit], *, form: Form = "plain") -> PrototypeModel:
    """A new model with contributions scaled; the old one is untouched.

    An edit is again a linear head: V_c becomes V_c - (1 - factor) a_cj b_j. In augmented form b_j takes its
    share of the residual with it: V_c - (1 - factor) (a_cj b_j + beta_cj R_c).

    Raises:
        InputError: the factors make the shares of a class cancel, which no model file can hold.
    """
    value = model.weights.value.clone()
    factor = torch.ones_like(value)
    for edit in edits:
        hit = (model.weights.class_index == edit.class_index) & (model.weights.prototype == edit.prototype_id)
        factor[hit] *= edit.factor
    done = tuple(asdict(edit) | {"form": form} for edit in edits)
    edited = replace(
        model,
        weights=replace(model.weights, value=value * factor),
        card=replace(model.card, edits=(*model.card.edits, *done)),
    )
    return _scale_shares(edited, factor, {edit.class_index for edit in edits}) if form == "augmented" else edited


def _scale_shares(model: PrototypeModel, factor: Tensor, classes: Iterable[int]) -> PrototypeModel:
    """Let every share of the residual follow its prototype: R <- m R and beta <- f beta / m with m = sum f beta."""
    share, residual, intercept = (
        model.weights.residual_share.clone(),
        model.residual.clone(),
        model.intercept.clone(),
    )
    for class_index in classes:
        hit = model.weights.class_index == class_index
        scaled = share[hit] * factor[hit]
        left = scaled.sum()
        if float(left.abs()) < VANISHING * max(1.0, float(scaled.abs().sum())):
            if float(scaled.abs().sum()) > VANISHING:
                raise InputError(
                    f"these factors make the residual shares of {model.card.classes[class_index].shown} cancel. "
                    "Give other factors, or --form plain."
                )
            left = torch.zeros_like(left)
        else:
            share[hit] = scaled / left
        residual[class_index] *= left
        intercept[class_index] *= left
    weights = replace(model.weights, residual_share=share)
    return replace(model, weights=weights, residual=residual, intercept=intercept)


def outcome(backbone: Backbone, model: PrototypeModel, crop: Tensor, class_index: int) -> Outcome:
    """Logit of one class and the best classes of one image under a model."""
    logits = _logits(backbone, model, crop[None])[0]
    name = model.card.classes[class_index]
    return Outcome(
        class_index=class_index,
        label=name.label,
        name=name.shown,
        logit=float(logits[class_index]),
        predictions=predictions(model, logits, BEST),
    )


def predicted_class(backbone: Backbone, model: PrototypeModel, crop: Tensor) -> int:
    """The model's top class for one crop."""
    return int(_logits(backbone, model, crop[None])[0].argmax())


def _logits(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> Tensor:
    rows = backbone.read(crops).rows.cpu().double()
    return parts_of_rows(model.exact, rows).logits


def intervene_on_data(
    backbone: Backbone,
    before: PrototypeModel,
    after: PrototypeModel,
    batches: Iterable[ImageBatch],
    progress: Progress = SILENT,
) -> InterventionOnData:
    """Accuracy before and after an edit, and every image whose top class changed."""
    old, new = (model.to(backbone.device, backbone.dtype) for model in (before, after))
    flips: list[Flip] = []
    counts: dict[int, tuple[int, int, int]] = {}
    right_before = right_after = images = 0
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        rows = backbone.read(batch.crops).rows
        tops = [parts_of_rows(model, rows).logits.argmax(dim=1).cpu() for model in (old, new)]
        target = batch.class_index
        right = [int((top == target).sum()) for top in tops]
        count, first, second = counts.get(target, (0, 0, 0))
        counts[target] = (count + len(batch.sources), first + right[0], second + right[1])
        images, right_before, right_after = images + len(batch.sources), right_before + right[0], right_after + right[1]
        for source, b, a in zip(batch.sources, tops[0].tolist(), tops[1].tolist(), strict=True):
            if a != b:
                flips.append(Flip(path=source.path, target=target, before=b, after=a))
    if not images:
        raise InputError("no image of the data could be read")
    return InterventionOnData(
        images=images,
        accuracy_before=right_before / images,
        accuracy_after=right_after / images,
        flips=tuple(flips),
        per_class={c: figures for c, figures in counts.items() if figures[1] != figures[2]},
    )
