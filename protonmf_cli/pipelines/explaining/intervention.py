"""Edit prototypes and see what changes: on one image, or over labelled images."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, replace
from typing import assert_never

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.amounts import dual, in_batches, weights_of
from protonmf_cli.models.answers import answers
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_names import words_for
from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import parts_of_rows
from protonmf_cli.models.results import Edit, Flip, InterventionOnData, Outcome
from protonmf_cli.models.wording import part_name
from protonmf_cli.options import Form
from protonmf_cli.pipelines.explaining.choice import best_class, chosen_among
from protonmf_cli.pipelines.explaining.explanation import BEST, answers_of, predictions
from protonmf_cli.pipelines.progress import SILENT, Progress

VANISHING = 1e-6
"""Sum of the residual shares of a class below which nothing of the residual is left."""


def find_edit(model: PrototypeModel, class_index: int, owner: int, number: int, factor: float) -> Edit:
    """The edit that scales prototype `number` (from 1) of `owner` in the logit of `class_index`.

    Raises:
        InputError: there is no such prototype, or the class does not use it.
    """
    name = model.card.classes[class_index].shown
    owner_name = model.card.classes[owner].shown
    if not model.entries(class_index):
        why = " (no images were given for it)" if model.adds_up else ""
        raise InputError(f"class {name} has no prototypes in this model{why}, so there is nothing to edit.")
    prototype = _find_prototype(model, owner, number, class_index)
    entries = [e for e in model.entries(class_index) if int(model.weights.prototype[e]) == prototype]
    if not entries:
        what = f"class {name} does not use {part_name(number, owner_name)}, so it cannot be edited there."
        raise InputError(what + _advice_elsewhere(model, class_index, owner))
    if float(model.weights.value[entries[0]]) == 0:
        raise InputError(
            f"{part_name(number, owner_name)} has the weight 0 in class {name}: there is nothing left to edit."
        )
    return Edit(class_index=class_index, prototype_id=prototype, factor=factor)


def _advice_elsewhere(model: PrototypeModel, class_index: int, owner: int) -> str:
    if model.amounts is None:
        return ""
    whole, also = model.whole(owner), ""
    if whole is not None and whole in _used_by(model, class_index):
        also = f" It weighs {part_name(0, model.card.classes[owner].shown)}: {_zero(model, whole)}."
    return f"{also} Give --everywhere to take it out of every class."


def _used_by(model: PrototypeModel, class_index: int) -> list[int]:
    return model.weights.prototype[model.entries(class_index)].tolist()


def _zero(model: PrototypeModel, prototype: int) -> str:
    """The option that takes a prototype out of a class."""
    owner = words_for(model.card.classes)[int(model.owner[prototype])]
    return f"--zero '{owner}:{model.number(prototype)}'"


def find_edit_everywhere(model: PrototypeModel, owner: int, number: int, factor: float) -> Edit:
    """The edit that scales prototype `number` (from 1) of `owner` in the logit of every class.

    Raises:
        InputError: there is no such prototype, nothing of it is left, or the model does not read amounts.
    """
    _check_everywhere(model)
    prototype = _find_prototype(model, owner, number)
    if not _is_weighed(model, prototype):
        raise InputError(
            f"no class has a weight for {part_name(number, model.card.classes[owner].shown)}: "
            "there is nothing left to edit."
        )
    return Edit(class_index=-1, prototype_id=prototype, factor=factor)


def _is_weighed(model: PrototypeModel, prototype: int) -> bool:
    """Whether any class gives anything for a row that is a prototype; those connected to it are asked first."""
    part = model.prototypes[prototype].cpu().double()

    def says(vectors: Tensor) -> bool:
        least = NOTHING_OF_IT * float(part.norm()) * float(vectors.norm(dim=-1).max())
        return float((vectors @ part).abs().max()) > least

    connected = model.weights.class_index[model.weights.prototype == prototype].tolist()
    return any(says(model.class_head(c).vector) for c in connected) or says(model.head_vectors())


def _check_everywhere(model: PrototypeModel) -> None:
    match model.evidence:
        case Amounts():
            return
        case Projections():
            found, advice = " that reads projections", "Convert again without --recipe paper."
        case NearestPatch() | SoftMatch():
            found, advice = "", "Edit it class by class."
        case other:
            assert_never(other)
    held = f"a {model.card.method} model{found}"
    raise InputError(f"--everywhere needs a model that reads amounts, and this file holds {held}. {advice}")


NOTHING_OF_IT = 1e-6
"""Cosine of head and prototype below which a score is rounding."""


def _find_prototype(model: PrototypeModel, owner: int, number: int, class_index: int | None = None) -> int:
    """Row of a prototype; the number 0 is its owner as a whole, which no explanation of its own has."""
    own = model.own(owner)
    if number == 0 and owner != class_index and (whole := model.whole(owner)) is not None:
        return whole
    if not 1 <= number <= len(own):
        name = model.card.classes[owner].shown
        if not own:
            used = _used_by(model, owner if class_index is None else class_index)
            example = f"; its rows are of other classes: name one of them, e.g. {_zero(model, used[0])}" if used else ""
            raise InputError(f"{name} has no prototypes of its own in this model{example}.")
        raise InputError(f"{name} has no prototype {number}; it has 1 to {len(own)}.")
    return own[number - 1]


def check_different(model: PrototypeModel, edits: Sequence[Edit]) -> None:
    """Refuse edits of which two change the same prototype in the same class.

    Raises:
        InputError: naming it.
    """
    seen: set[tuple[int, int]] = set()
    everywhere = {edit.prototype_id for edit in edits if edit.everywhere}
    for edit in edits:
        key = (edit.class_index, edit.prototype_id)
        if key in seen or (not edit.everywhere and edit.prototype_id in everywhere):
            owner = model.card.classes[int(model.owner[edit.prototype_id])].shown
            raise InputError(
                f"{part_name(model.number(edit.prototype_id), owner)} is edited twice. Give one factor for it."
            )
        seen.add(key)


def apply_edits(model: PrototypeModel, edits: Sequence[Edit], *, form: Form = "plain") -> PrototypeModel:
    """A new model with contributions scaled; the old one is untouched.

    An edit is again a linear head: V_c becomes V_c - (1 - factor) w_cj d_j. Of amounts, d_j is dual to the other
    prototypes, so a row that is another prototype keeps its score; everywhere, every V_c becomes
    V_c - (1 - factor) (V_c . b_j) e_j, after which a row that is b_j scores nothing (factor 0).
    In augmented form a prototype takes its share of the residual with it: V_c - (1 - factor) (w_cj d_j + beta_cj R_c).

    Raises:
        InputError: two edits change the same prototype in the same class, or the factors make the shares of a class
            cancel, which no model file can hold.
    """
    check_different(model, edits)
    single = [edit for edit in edits if not edit.everywhere]
    factor = torch.ones_like(model.weights.value)
    for edit in single:
        factor[_entries_of(model, edit)] *= edit.factor
    done = tuple(asdict(edit) | {"form": form} for edit in edits)
    classes = sorted({edit.class_index for edit in single})
    edited = replace(
        model,
        weights=replace(model.weights, value=model.weights.value * factor + 0.0),  # + 0.0: never -0.0
        card=replace(model.card, edits=(*model.card.edits, *done)),
    )
    if form == "augmented":
        edited = _scale_shares(edited, factor, classes)
    if model.amounts is None:
        return edited
    edited = _with_same_bias(model, edited, classes)
    return _edited_everywhere(edited, [edit for edit in edits if edit.everywhere])


def _entries_of(model: PrototypeModel, edit: Edit) -> Tensor:
    """(E,) the connections that an edit changes."""
    hit = model.weights.prototype == edit.prototype_id
    return hit if edit.everywhere else hit & (model.weights.class_index == edit.class_index)


def _edited_everywhere(model: PrototypeModel, edits: Sequence[Edit]) -> PrototypeModel:
    """Every V_c less (1 - factor) (V_c . b_k) e_k, with the weights that the head has then.

    What the rows without a place add on average stays: the bias takes that up.
    """
    if not edits:
        return model
    assert model.amounts is not None
    mean, value = model.amounts.unplaced_mean.cpu().double(), model.weights.value.clone()
    head, bias = model.head_vectors().clone(), model.bias.to("cpu", torch.float64, copy=True)
    for edit in edits:
        part = model.prototypes[edit.prototype_id].cpu().double()
        reader = model.amounts.edit_readers[edit.prototype_id].cpu().double()
        reader = (1 - edit.factor) / (reader @ part) * reader
        scores = head @ part
        head.addr_(scores, reader, alpha=-1.0)
        bias += scores * (reader @ mean)
        value[_entries_of(model, edit)] *= edit.factor  # nothing is left of what is taken out, not even rounding
    edited = replace(model, weights=replace(model.weights, value=value), bias=bias.to(model.bias))
    return reweighed(edited, head)


def reweighed(model: PrototypeModel, head: Tensor) -> PrototypeModel:
    """The model of another head: weights are its rows on the prototypes, and the residual takes up the rest.

    So every weight follows the head, also that of a class as a whole whose part was taken out. A weight of zero stays
    zero, also one that was taken out of its class alone.

    Args:
        model: that reads amounts.
        head: (C, D) float64
    """
    exact = model.exact
    assert exact.amounts is not None
    value = exact.weights.value.clone()
    entries = [exact.entries(c) for c in range(len(exact.bias))]
    for classes, chosen in in_batches(entries, exact.prototypes.shape[1]):
        basis = exact.prototypes[exact.weights.prototype[chosen]]
        value[chosen] = weights_of(head[classes], basis, dual(basis, exact.amounts.ridge).carried)
    value[exact.weights.value == 0] = 0
    moved = replace(model, weights=replace(model.weights, value=value.to(model.weights.value)))
    return replace(moved, residual=(head - moved.exact.prototype_vectors).to(model.residual))


def _with_same_bias(model: PrototypeModel, edited: PrototypeModel, classes: Sequence[int]) -> PrototypeModel:
    """The edited model with what its rows without a place add on average as before: an edit takes a part alone.

    Args:
        model, edited: before and after.
        classes: that were edited.
    """
    assert model.amounts is not None
    mean, bias = model.amounts.unplaced_mean.cpu().double(), edited.bias.clone()
    for c in classes:
        lost = (model.class_head(c).vector - edited.class_head(c).vector) @ mean
        bias[c] = (bias[c].double() + lost).to(bias)
    return replace(edited, bias=bias)


def _scale_shares(model: PrototypeModel, factor: Tensor, classes: Iterable[int]) -> PrototypeModel:
    """Let every share of the residual follow its prototype: R <- m R and beta <- f beta / m with m = sum f beta."""
    share, residual, intercept = (
        model.weights.residual_share.clone(),
        model.residual.clone(),
        model.intercept.clone(),
    )
    for class_index in classes:
        hit = model.weights.class_index == class_index
        if not share[hit].any():  # a class without images of its own: its residual stands apart
            continue
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


def outcomes(backbone: Backbone, model: PrototypeModel, crop: Tensor, classes: Sequence[int]) -> list[Outcome]:
    """Logits of some classes and the best classes of one image under a model, in one pass of the network."""
    logits = _logits(backbone, model, crop[None])[0]
    return [outcome_of(model, logits, c) for c in classes]


def outcome_of(model: PrototypeModel, logits: Tensor, class_index: int) -> Outcome:
    """The same of one class, from the logits (C,) of an image that was read before."""
    name = model.card.classes[class_index]
    return Outcome(
        class_index=class_index,
        label=name.label,
        name=name.shown,
        logit=float(logits[class_index]),
        predictions=predictions(model, logits, BEST),
        multi_label=model.multi_label,
    )


def explained_class(backbone: Backbone, model: PrototypeModel, crop: Tensor) -> int:
    """The class that an explanation of one crop is about where none is named."""
    return best_class(model, _logits(backbone, model, crop[None])[0], chosen_among(model, None))


def _logits(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> Tensor:
    (answer,) = answers_of(backbone, model, crops)
    return answer.logits[None]


def intervene_on_data(
    backbone: Backbone,
    before: PrototypeModel,
    after: PrototypeModel,
    batches: Iterable[ImageBatch],
    progress: Progress = SILENT,
    *,
    edited: Collection[int] = (),
    unrefitted: PrototypeModel | None = None,
) -> InterventionOnData:
    """Accuracy before and after an edit, and every image whose top class changed, or what is said of one of its labels.

    Args:
        backbone, before, after: the network and both models.
        batches: labelled images.
        progress: advanced by the images.
        edited: classes that are counted whether or not anything changed for them.
        unrefitted: the model of the edit alone, where the last layer was refitted after it; counted too.

    Raises:
        InputError: no image could be read.
    """
    models = [before, after, *([] if unrefitted is None else [unrefitted])]
    moved = [model.to(backbone.device, backbone.dtype) for model in models]
    flips: list[Flip] = []
    counts: dict[int, tuple[int, int, int]] = {}
    right_in_all, images = [0] * len(models), 0
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        rows, target = backbone.read(batch.crops).rows, batch.class_index
        logits = [parts_of_rows(model, rows).logits for model in moved]
        tops = [answers(each, target, multi_label=before.multi_label).cpu() for each in logits]
        right = [int((top == target).sum()) for top in tops]
        count, first, second = counts.get(target, (0, 0, 0))
        counts[target] = (count + len(batch.sources), first + right[0], second + right[1])
        images += len(batch.sources)
        right_in_all = [sum(pair) for pair in zip(right_in_all, right, strict=True)]
        for source, b, a in zip(batch.sources, tops[0].tolist(), tops[1].tolist(), strict=True):
            if a != b:
                flips.append(Flip(path=source.path, target=target, before=b, after=a))
    if not images:
        raise InputError("no image of the data could be read")
    return InterventionOnData(
        images=images,
        accuracy_before=right_in_all[0] / images,
        accuracy_after=right_in_all[1] / images,
        accuracy_unrefitted=None if unrefitted is None else right_in_all[2] / images,
        flips=tuple(flips),
        per_class={c: figures for c, figures in counts.items() if figures[1] != figures[2] or c in edited},
    )


def silent_classes(model: PrototypeModel, edits: Sequence[Edit]) -> list[tuple[int, float]]:
    """Edited classes for which no own prototype speaks any more, with the largest weight that these have left."""
    found = []
    for class_index in sorted({e.class_index if not e.everywhere else int(model.owner[e.prototype_id]) for e in edits}):
        own = set(model.own(class_index))
        left = [
            float(model.weights.value[entry])
            for entry in model.entries(class_index)
            if int(model.weights.prototype[entry]) in own
        ]
        if left and max(left) <= 0:
            found.append((class_index, max(left)))
    return found
