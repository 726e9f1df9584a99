"""Edit prototypes and see what changes: on one image, or over labelled images."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.images import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel, logit_parts
from protonmf_cli.models.results import Edit, Flip, InterventionOnData, Outcome
from protonmf_cli.pipelines.explanation import BEST, predictions
from protonmf_cli.pipelines.progress import SILENT, Progress


def find_edit(model: PrototypeModel, class_index: int, owner: int, number: int, factor: float) -> Edit:
    """The edit that scales prototype `number` (from 1) of `owner` in the logit of `class_index`.

    Raises:
        InputError: the class has no prototypes, no such prototype, or does not use it.
    """
    name = model.card.classes[class_index].shown
    own, owner_name = model.own(owner), model.card.classes[owner].shown
    if not model.entries(class_index):
        raise InputError(
            f"class {name} has no prototypes in this model (no images were given for it), so there is nothing to edit."
        )
    if not 1 <= number <= len(own):
        numbers = f"1 to {len(own)}" if own else "none"
        raise InputError(f"{owner_name} has no prototype {number}; it has {numbers}.")
    prototype = own[number - 1]
    used = model.weights.prototype[model.weights.class_index == class_index].tolist()
    if prototype not in used:
        raise InputError(f"class {name} does not use prototype {number} of {owner_name}, so it cannot be edited there.")
    return Edit(class_index=class_index, prototype_id=prototype, factor=factor)


def apply_edits(model: PrototypeModel, edits: Sequence[Edit]) -> PrototypeModel:
    """A new model with contributions scaled; the old one is untouched.

    An edit is again a linear head: V_c becomes V_c - (1 - factor) a_cj b_j.
    """
    value = model.weights.value.clone()
    for edit in edits:
        hit = (model.weights.class_index == edit.class_index) & (model.weights.prototype == edit.prototype_id)
        value[hit] *= edit.factor
    card = replace(model.card, edits=(*model.card.edits, *(asdict(edit) for edit in edits)))
    return replace(model, weights=replace(model.weights, value=value), card=card)


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
    pooled = backbone.read(crops).rows.sum(dim=1).cpu().double()
    return logit_parts(model.to(torch.device("cpu"), torch.float64), pooled).logits


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
        pooled = backbone.read(batch.crops).rows.sum(dim=1)
        tops = [logit_parts(model, pooled).logits.argmax(dim=1).cpu() for model in (old, new)]
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
