"""Why this class: the ledger of one logit for one image (ProtoNMF, eq. 5 and 6)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import logit_share
from protonmf_cli.maths.residual_codes import residual_codes
from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import Projections
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import LogitParts, Response, parts_of_read, pooled_rows, respond, summed
from protonmf_cli.models.results import Contribution, ExampleView, Explanation, Prediction, Unlike
from protonmf_cli.options import Form, MapKind
from protonmf_cli.pipelines.explaining.by_similarity import similarity_contributions
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness

BEST = 5
"""Predictions listed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a model answers to one image; several classes can be explained from it."""

    crop: Tensor
    """uint8 (channels, height, width), what the network sees."""
    rows: Tensor
    """(T, D) float64"""
    logits: Tensor
    """(C,) float64: the network's own, or the model's where the network has no head or the model was edited."""
    parts: LogitParts
    """Of the model, for this image alone."""
    response: Response | None
    """Of models whose evidence does not add up."""


def answers_of(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> list[Answer]:
    """Read some images in one pass of the network.

    Args:
        backbone: the network the model was made from.
        model: prototypes and head.
        crops: uint8 (B, channels, height, width), what the network sees.
    """
    reading, exact = backbone.read(crops), model.exact
    # an edited model no longer answers as the network does: then its own logits are explained
    follows = backbone.readout.has_head and not model.card.edits
    answers = []
    for n, rows in enumerate(reading.rows.cpu().double()):
        response = None if exact.adds_up else respond(exact, rows[None])
        parts = parts_of_read(exact, pooled_rows(rows[None], exact.placed) if response is None else response.evidence)
        logits = reading.logits[n].cpu().double() if follows else parts.logits[0]
        answers.append(Answer(crop=crops[n], rows=rows, logits=logits, parts=parts, response=response))
    return answers


def explain_image(
    backbone: Backbone,
    model: PrototypeModel,
    crop: Tensor,
    *,
    image: str,
    model_name: str,
    class_index: int | None = None,
    map_kind: MapKind = "presence",
    form: Form | None = None,
) -> Explanation:
    """Split the logit of one class into prototypes, residual and bias; nothing is left over.

    Args:
        backbone: the network the model was made from.
        model: prototypes and head.
        crop: uint8 (channels, height, width), what the network sees.
        image, model_name: names for the result.
        class_index: class to explain; the predicted one if None.
        map_kind: which map the boxes are drawn around; both maps are in the result.
        form: whether the prototypes carry the residual; as the model is stored if None.

    Returns:
        An Explanation whose contributions + residual + no place + bias add up to the logit.

    Raises:
        InputError: the augmented form is asked for, but the model has none.
    """
    (answer,) = answers_of(backbone, model, crop[None])
    return explain_answer(
        backbone, model, answer, image=image, model_name=model_name,
        class_index=class_index, map_kind=map_kind, form=form,
    )  # fmt: skip


def explain_answer(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    *,
    image: str,
    model_name: str,
    class_index: int | None = None,
    map_kind: MapKind = "presence",
    form: Form | None = None,
    most: int | None = None,
) -> Explanation:
    """As `explain_image`, for an image that was read before.

    Args:
        answer: of this model.
        backbone, model, image, model_name, class_index, map_kind, form: as in `explain_image`.
        most: contributions in the result, the largest by size; all if None. The ledger counts all of them.
    """
    exact, form = model.exact, chosen_form(model, form)
    best = predictions(exact, answer.logits, BEST)
    chosen = best[0].class_index if class_index is None else class_index
    entries, logit = exact.entries(chosen), float(answer.logits[chosen])
    found = _ledger(backbone, exact, answer, chosen, map_kind, most, augmented=form == "augmented" and bool(entries))
    own = exact.own(chosen)
    return Explanation(
        image=image,
        model=model_name,
        crop=backbone.pictures(answer.crop)[0].permute(1, 2, 0).numpy(),
        predictions=best,
        class_index=chosen,
        label=exact.card.classes[chosen].label,
        name=exact.card.classes[chosen].shown,
        logit=logit,
        bias=found.bias,
        contributions=tuple(sorted(found.contributions, key=lambda c: -abs(c.contribution))[:most]),
        residual=found.residual,
        residual_map=found.residual_map,
        unplaced=found.unplaced,
        intercept=found.intercept,
        residual_codes=found.residual_codes,
        residual_share=_residual_share(exact, answer.parts, chosen, found),
        ledger_error=abs(found.carried + found.residual + (found.unplaced or 0.0) + found.bias - logit),
        map_kind=map_kind,
        form=form,
        kind=exact.evidence.kind,
        without_prototypes=not own,
        best_with_prototypes=None if own else _best_with_prototypes(exact, answer.logits),
        unlike=_unlike(exact, answer),
    )


def _unlike(model: PrototypeModel, answer: Answer) -> Unlike | None:
    """How unlike the training images of the predicted class an image is; None where the model does not say."""
    measure = Unlikeness.of(model)
    if measure is None:
        return None
    return measure.of_image(pooled_rows(answer.rows[None], model.placed)[0, 0], answer.logits)


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    """One class's logit in parts."""

    contributions: tuple[Contribution, ...]
    carried: float
    """Sum of all contributions, also of those that are not listed."""
    residual: float
    unplaced: float | None
    bias: float
    intercept: float
    left: float
    """Share of the residual that is outside the prototypes."""
    residual_map: np.ndarray | None = None
    residual_codes: np.ndarray | None = None


def _ledger(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    class_index: int,
    map_kind: MapKind,
    most: int | None,
    *,
    augmented: bool,
) -> _Ledger:
    parts, rows = answer.parts, answer.rows
    intercept = float(model.intercept[class_index])
    bias, residual = float(parts.bias[class_index]), float(parts.residual[0, class_index])
    if answer.response is not None:
        listed, carried = _by_similarity(backbone, model, answer, answer.response, class_index, most)
        return _Ledger(
            contributions=listed, carried=carried, residual=residual, unplaced=None, bias=bias, intercept=intercept,
            left=1.0,
        )  # fmt: skip
    left = float(model.uncarried[class_index]) if augmented else 1.0
    readers = model.augmented(class_index) if augmented else model.readers(class_index)
    maps = _Maps(backbone, model, rows, readers, left * model.residual[class_index] if left else None)
    contributions = maps.contributions(model.entries(class_index), map_kind)
    if augmented:  # the usual amounts are of prototypes alone; the intercept goes with the residual
        contributions = [replace(c, usual=None) for c in contributions]
        residual, bias, intercept = left * (residual + intercept), bias - intercept, 0.0
    return _Ledger(
        contributions=tuple(contributions),
        carried=sum(c.contribution for c in contributions),
        residual=residual,
        unplaced=float(parts.unplaced[0, class_index])
        if model.placed is not None and model.placed < len(rows)
        else None,
        bias=bias,
        intercept=intercept,
        left=left,
        residual_map=maps.residual,
        residual_codes=maps.residual_codes,
    )


def _by_similarity(
    backbone: Backbone, model: PrototypeModel, answer: Answer, response: Response, class_index: int, most: int | None
) -> tuple[tuple[Contribution, ...], float]:
    """Contributions of the largest `most` prototypes by similarity, and the sum of all."""
    weights, evidence = connections(model, class_index), response.evidence[0]
    sizes = {j: weight * float(evidence[j]) for j, weight in weights.items()}
    ranked = {j: weights[j] for j in sorted(sizes, key=lambda j: -abs(sizes[j]))[:most]}
    views = {j: tuple(example_views(model, j)) for j in ranked}
    listed = similarity_contributions(backbone, model, response, answer.crop, ranked, views)
    return tuple(listed), sum(sizes.values())


def _residual_share(model: PrototypeModel, parts: LogitParts, class_index: int, found: _Ledger) -> float | None:
    """What the prototypes do not carry of the logit; None where that is not defined."""
    if not found.left:
        return 0.0
    if not model.entries(class_index):
        return 1.0 if model.adds_up else None
    share = logit_share(parts.carried, parts.logits, torch.tensor([class_index]), model.active_classes)
    return 1 - float(share) if share.isfinite().all() else None


def chosen_form(model: PrototypeModel, form: Form | None) -> Form:
    """The form that is asked for, else the one the model is stored in.

    Raises:
        InputError: the augmented form is asked for, but the model has none.
    """
    if form == "augmented" and not model.is_augmented:
        raise InputError(
            "the model has no augmented prototypes. Convert with --augment min-norm (or paper), or leave out "
            "--form augmented."
        )
    return form or ("augmented" if model.is_augmented else "plain")


def connections(model: PrototypeModel, class_index: int) -> dict[int, float]:
    """Prototype -> weight to a class, own prototypes first."""
    entries = model.entries(class_index)
    chosen, weights = model.weights.prototype[entries].tolist(), model.weights.value[entries].tolist()
    return dict(zip(chosen, weights, strict=True))


def predictions(model: PrototypeModel, logits: Tensor, count: int) -> tuple[Prediction, ...]:
    """The best classes of logits (C,), strongest first."""
    probability = logits.softmax(dim=0)
    return tuple(
        _prediction(model, logits, probability, c) for c in logits.topk(min(count, len(logits))).indices.tolist()
    )


def _prediction(model: PrototypeModel, logits: Tensor, probability: Tensor, class_index: int) -> Prediction:
    name = model.card.classes[class_index]
    return Prediction(
        class_index=class_index,
        label=name.label,
        name=name.shown,
        logit=float(logits[class_index]),
        probability=float(probability[class_index]),
    )


def _best_with_prototypes(model: PrototypeModel, logits: Tensor) -> Prediction | None:
    classes = model.active_classes
    if not len(classes):
        return None
    best = int(classes[logits[classes].argmax()])
    return _prediction(model, logits, logits.softmax(dim=0), best)


class _Maps:
    """Maps of one class over the placed rows of one image, as (h, w) arrays; None where nothing has a place."""

    def __init__(
        self, backbone: Backbone, model: PrototypeModel, rows: Tensor, readers: Tensor, residual: Tensor | None
    ) -> None:
        self.backbone, self.model, self.readers = backbone, model, readers
        self.rows = rows[: model.placed]
        self.grid = backbone.readout.grid
        self.presence: list[np.ndarray] = []
        self.residual = self.residual_codes = None
        if self.grid is None:
            return
        placed = rows[: backbone.readout.places]
        if residual is not None:
            self.residual = (placed @ residual).reshape(self.grid).numpy()
        codes = summed(model).presence(placed, readers)
        if residual is not None and isinstance(model.evidence, Projections):
            leftover = placed.clamp_min(0) - codes @ readers
            self.residual_codes = residual_codes(leftover, residual).reshape(self.grid).numpy()
        self.presence = [column.reshape(self.grid).numpy() for column in codes.T]

    def contributions(self, entries: Sequence[int], map_kind: MapKind) -> list[Contribution]:
        """One contribution per connection of the class, in the order of the readers."""
        presence = self.presence if self.grid else [None] * len(entries)
        return [
            _contribution(self.backbone, self.model, self.rows, entry, reader, grid, map_kind)
            for entry, reader, grid in zip(entries, self.readers, presence, strict=True)
        ]


def _contribution(
    backbone: Backbone,
    model: PrototypeModel,
    rows: Tensor,
    entry: int,
    reader: Tensor,
    presence: np.ndarray | None,
    map_kind: MapKind,
) -> Contribution:
    prototype = int(model.weights.prototype[entry])
    weight = float(model.weights.value[entry])
    owner = int(model.owner[prototype])
    evidence = rows @ reader
    placed = evidence[: backbone.readout.places]
    both, box = {}, None
    if presence is not None:
        grid = presence.shape
        both = {"contribution": (weight * placed).reshape(grid).numpy(), "presence": presence}
        # a negative weight turns strong evidence into a deep valley: the box is around the evidence
        peak = placed.reshape(grid) if map_kind == "contribution" else torch.from_numpy(presence)
        height, width = backbone.preprocessing.input_size[1:]
        box = peak_box(peak, (height, width))
    localised = weight * float(placed.sum())
    whole = weight * float(evidence.sum())
    return Contribution(
        prototype=model.number(prototype),
        prototype_id=prototype,
        owner_index=owner,
        owner_label=model.card.classes[owner].label,
        owner_name=model.card.classes[owner].shown,
        stability=model.stability(prototype),
        weight=weight,
        evidence=float(evidence.sum()),
        contribution=whole,
        localised=localised,
        unlocalised=whole - localised,
        maps=both,
        box=box,
        examples=tuple(example_views(model, prototype)),
        usual=model.usual_of(prototype),
        peak=model.peak_of(prototype),
    )


def example_views(model: PrototypeModel, prototype: int) -> list[ExampleView]:
    """The stored training patches of one prototype, strongest first."""
    examples, full = model.examples, model.peak_of(prototype)
    space = model.spaces[model.network_of(prototype)]
    views = []
    for number in examples.of(prototype):
        left, top, right, bottom = examples.box[number].tolist()
        grid = examples.map[number].numpy()
        if model.card.members and space.grid is not None:  # smaller grids are filled up
            grid = grid[: space.grid[0], : space.grid[1]]
        views.append(
            ExampleView(
                jpeg=examples.picture(number),
                map=grid if grid.size else None,
                box=(left, top, right, bottom),
                score=float(examples.score[number]),
                path=examples.sources[number].path,
                sha256=examples.sources[number].sha256,
                full=full,
            )
        )
    return views
