"""Why this class: the ledger of one logit for one image (ProtoNMF, eq. 5 and 6)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.maths.metrics import logit_share
from protonmf_cli.maths.residual_codes import residual_codes
from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.models.answers import probabilities, said
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import Projections
from protonmf_cli.models.prototype import ClassHead, PrototypeModel
from protonmf_cli.models.readouts.readout import spread
from protonmf_cli.models.response import (
    LogitParts,
    Response,
    parts_of_class,
    parts_of_evidence,
    pooled_rows,
    respond,
    summed,
)
from protonmf_cli.models.results import Contribution, ExampleView, Explanation, Prediction, Unlike
from protonmf_cli.options import Among, Form, MapKind
from protonmf_cli.pipelines.explaining.by_similarity import similarity_contributions
from protonmf_cli.pipelines.explaining.choice import best_class, chosen_among
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness

BEST = 5
"""Predictions listed; more where more labels are said."""
MOST_LABELS = 20
"""Labels that are listed because they are said."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """What a model answers to one image; several classes can be explained from it."""

    crop: Tensor
    """uint8 (channels, height, width), what the network sees."""
    rows: Tensor
    """(T, D) float64"""
    read: Tensor
    """(1, S, D) float64 pooled rows of an additive model, else (1, P) evidence."""
    logits: Tensor
    """(C,) float64: the network's own; the model's of classes that were edited, or where the network has no head."""
    response: Response | None
    """Of models whose evidence does not add up."""

    def parts(self, model: PrototypeModel, head: ClassHead) -> LogitParts:
        """The logit of one class in parts, see `parts_of_class`; of models whose evidence adds up."""
        return parts_of_class(model, head, self.read)


MOST_KEPT = 256
"""Classes, and prototypes, of which `Kept` holds what it made."""


class Kept:
    """What explanations of several images by one model share, kept once it was made."""

    def __init__(self, model: PrototypeModel) -> None:
        self.head = lru_cache(MOST_KEPT)(model.class_head)
        self.views = lru_cache(MOST_KEPT)(partial(_views, model))
        self.said = lru_cache(MOST_KEPT)(partial(_said, model))
        self.unlikeness = Unlikeness.of(model)


def _views(model: PrototypeModel, prototype: int) -> tuple[ExampleView, ...]:
    return tuple(example_views(model, prototype))


def _said(model: PrototypeModel, prototype: int) -> dict[str, Any]:
    """What a contribution says of its prototype, whichever image it is of."""
    owner = int(model.owner[prototype])
    return {
        "prototype": model.number(prototype),
        "prototype_id": prototype,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "owner_name": model.card.classes[owner].shown,
        "stability": model.stability(prototype),
        "usual": model.usual_of(prototype),
        "peak": model.peak_of(prototype),
        "caption": model.caption(prototype),
    }


def answers_of(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> list[Answer]:
    """Read some images in one pass of the network.

    Args:
        backbone: the network the model was made from.
        model: prototypes and head.
        crops: uint8 (B, channels, height, width), what the network sees.

    Raises:
        InputError: an answer is no finite number.
    """
    reading = backbone.read(crops)
    if not (reading.rows.isfinite().all() and reading.logits.isfinite().all()):
        raise backbone.no_numbers("rows or logits")
    answers = []
    for n, rows in enumerate(reading.rows.cpu().double()):
        if model.adds_up:
            response, read = None, pooled_rows(rows[None], model.placed)
            logits = logits_of(backbone, model, read, reading.logits[n : n + 1])[0]
        else:
            response = respond(model.exact, rows[None])
            read, logits = response.evidence, response.logits[0]
        if not (read.isfinite().all() and logits.isfinite().all()):
            raise backbone.no_numbers("logits")
        answers.append(Answer(crop=crops[n], rows=rows, read=read, logits=logits, response=response))
    return answers


def logits_of(backbone: Backbone, model: PrototypeModel, read: Tensor, answered: Tensor) -> Tensor:
    """(B, C) float64 logits of an additive model: of classes that were not edited those of the network.

    Args:
        backbone, model: the network and its prototypes.
        read: (B, S, D) float64 pooled rows.
        answered: (B, C) by the network.
    """
    edited = model.edited_classes
    if edited is None or not backbone.readout.has_head:
        return read.sum(dim=1) @ model.head_vectors().mT + model.bias.cpu().double()
    logits = answered.to("cpu", torch.float64, copy=True)  # of an inference tensor, which is not written to
    for c in edited:
        logits[:, c] = parts_of_class(model, model.class_head(c), read).logits[:, 0]
    return logits


def explain_image(
    backbone: Backbone,
    model: PrototypeModel,
    crop: Tensor,
    *,
    image: str,
    model_name: str,
    class_index: int | None = None,
    among: Among | None = None,
    map_kind: MapKind = "presence",
    form: Form | None = None,
) -> Explanation:
    """Split the logit of one class into prototypes, residual and bias; nothing is left over.

    Args:
        backbone: the network the model was made from.
        model: prototypes and head.
        crop: uint8 (channels, height, width), what the network sees.
        image, model_name: names for the result.
        class_index: class to explain; the best one if None.
        among: of which classes it is the best, see `chosen_among`.
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
        class_index=class_index, among=among, map_kind=map_kind, form=form,
    )  # fmt: skip


def explain_answer(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    *,
    image: str,
    model_name: str,
    class_index: int | None = None,
    among: Among | None = None,
    map_kind: MapKind = "presence",
    form: Form | None = None,
    most: int | None = None,
    kept: Kept | None = None,
) -> Explanation:
    """As `explain_image`, for an image that was read before.

    Args:
        answer: of this model.
        backbone, model, image, model_name, class_index, among, map_kind, form: as in `explain_image`.
        most: contributions in the result, the largest by size; all if None. The ledger counts all of them.
        kept: of this model, where several images are explained.
    """
    kept, form = kept or Kept(model), chosen_form(model, form)
    best = predictions(model, answer.logits, BEST)
    chosen, asked = class_index, None
    if chosen is None:
        asked = chosen_among(model, among)
        chosen = best_class(model, answer.logits, asked)
    logit, own = float(answer.logits[chosen]), model.own(chosen)
    if answer.response is None:
        found = _ledger(backbone, model, answer, chosen, map_kind, kept, augmented=form == "augmented")
    else:
        found = _by_similarity(backbone, model.exact, answer, answer.response, chosen, most, kept)
    error = abs(found.carried + found.residual + (found.unplaced or 0.0) + found.bias - logit)
    _check_exact(backbone, model, answer, error)
    explanation = Explanation(
        image=image,
        model=model_name,
        crop=backbone.pictures(answer.crop)[0].permute(1, 2, 0).numpy(),
        predictions=best,
        class_index=chosen,
        label=model.card.classes[chosen].label,
        name=model.card.classes[chosen].shown,
        logit=logit,
        probability=float(probabilities(answer.logits, multi_label=model.multi_label)[chosen]),
        multi_label=model.multi_label,
        named_by=model.named_by,
        among=asked,
        bias=found.bias,
        contributions=tuple(sorted(found.contributions, key=lambda c: -abs(c.contribution))[:most]),
        residual=found.residual,
        residual_map=found.residual_map,
        unplaced=found.unplaced,
        intercept=found.intercept,
        residual_codes=found.residual_codes,
        residual_share=found.residual_share,
        ledger_error=error,
        map_kind=map_kind,
        form=form,
        kind=model.evidence.kind,
        without_prototypes=not own,
        best_with_prototypes=None if own else _best_with_prototypes(model, answer.logits),
        own_against=model.own_against(chosen),
        own=len(own),
        unlike=_unlike(model, answer, kept),
    )
    return _checked_numbers(backbone, explanation)


def _checked_numbers(backbone: Backbone, explanation: Explanation) -> Explanation:
    """The same.

    Raises:
        InputError: a number of it is not finite.
    """
    if not _is_finite(explanation):
        raise backbone.no_numbers("explanations")
    return explanation


def _is_finite(value: Any) -> bool:
    """Whether every number of a result is finite, arrays of floats included."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind != "f" or bool(np.isfinite(value).all())
    if isinstance(value, dict):
        value = value.values()
    elif is_dataclass(value):
        value = vars(value).values()
    elif not isinstance(value, tuple):
        return True
    return all(map(_is_finite, value))


WRONG = 1e-2
"""Difference of a logit from the sum of its parts, in spreads of the logits, that no rounding explains."""


def _check_exact(backbone: Backbone, model: PrototypeModel, answer: Answer, error: float) -> None:
    """Refuse parts that do not add up to what the network itself answers.

    Raises:
        NotExactError: its rows are read in another way than when the model was made.
    """
    if backbone.readout.has_head and model.edited_classes == [] and not error <= WRONG * spread(answer.logits):
        raise NotExactError(
            f"the parts of a logit of {model.card.source.name} differ by {error:.1e} from the logit, which no rounding "
            "explains: the network does not compute what it did when the model was made. Convert it again."
        )


def _unlike(model: PrototypeModel, answer: Answer, kept: Kept) -> Unlike | None:
    """How unlike the training images of the predicted class an image is; None where the model does not say."""
    if kept.unlikeness is None:
        return None
    return kept.unlikeness.of_image(pooled_rows(answer.rows[None], model.placed)[0, 0], answer.logits)


@dataclass(frozen=True, kw_only=True)
class _Ledger:
    """One class's logit in parts."""

    contributions: tuple[Contribution, ...]
    carried: float
    """Sum of all contributions, also of those that are not listed."""
    bias: float
    intercept: float
    residual: float = 0.0
    unplaced: float | None = None
    residual_share: float | None = None
    """What the prototypes do not carry of the logit; None where that is not defined."""
    residual_map: np.ndarray | None = None
    residual_codes: np.ndarray | None = None


def _ledger(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    class_index: int,
    map_kind: MapKind,
    kept: Kept,
    *,
    augmented: bool,
) -> _Ledger:
    head = kept.head(class_index)
    augmented = augmented and bool(head.entries)
    parts, intercept = answer.parts(model, head), head.intercept
    bias, residual = float(parts.bias), float(parts.residual)
    left = head.uncarried if augmented else 1.0
    readers = head.augmented if augmented else head.readers
    maps = _Maps(backbone, model, answer.rows, readers, left * head.residual if left else None)
    contributions = maps.contributions(head, map_kind, kept)
    if augmented:  # the usual amounts are of prototypes alone; the intercept goes with the residual
        contributions = [replace(c, usual=None) for c in contributions]
        residual, bias, intercept = left * (residual + intercept), bias - intercept, 0.0
    return _Ledger(
        contributions=tuple(contributions),
        carried=sum(c.contribution for c in contributions),
        residual=residual,
        unplaced=float(parts.unplaced) if has_rest(model, answer) else None,
        bias=bias,
        intercept=intercept,
        residual_share=_residual_share(backbone, model, answer, head, parts) if left else 0.0,
        residual_map=maps.residual,
        residual_codes=maps.residual_codes,
    )


def has_rest(model: PrototypeModel, answer: Answer) -> bool:
    """Whether there are rows without a place, beside those that amounts are read from."""
    return model.placed is not None and model.placed < len(answer.rows)


def _by_similarity(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    response: Response,
    class_index: int,
    most: int | None,
    kept: Kept,
) -> _Ledger:
    """Contributions of the largest `most` prototypes by similarity."""
    weights, evidence = connections(model, class_index), response.evidence[0]
    sizes = {j: weight * float(evidence[j]) for j, weight in weights.items()}
    ranked = {j: weights[j] for j in sorted(sizes, key=lambda j: -abs(sizes[j]))[:most]}
    views = {j: kept.views(j) for j in ranked}
    intercept = float(model.intercept[class_index])
    return _Ledger(
        contributions=tuple(similarity_contributions(backbone, model, response, answer.crop, ranked, views)),
        carried=sum(sizes.values()),
        bias=float(model.bias[class_index]) + intercept,
        intercept=intercept,
        residual_share=_share_of_similarities(model, answer, class_index) if weights else None,
    )


def _share_of_similarities(model: PrototypeModel, answer: Answer, class_index: int) -> float | None:
    """Nothing, where it is defined: there is no residual."""
    parts = parts_of_evidence(model, answer.read)
    share = logit_share(parts.carried, parts.logits, torch.tensor([class_index]), model.active_classes)
    return 1 - float(share) if share.isfinite().all() else None


def _residual_share(
    backbone: Backbone, model: PrototypeModel, answer: Answer, head: ClassHead, parts: LogitParts
) -> float | None:
    """1 - logit share, see `maths.metrics.logit_share`, from the means over the classes that are compared."""
    if not head.entries:
        return 1.0
    among = model.active_classes
    size = float(parts.logits) - float(answer.logits[among].mean())
    if len(among) < 2 or size == 0:
        return None
    left = float(parts.residual + parts.unplaced) - _mean_left(backbone, model, answer)
    return left / size


def _mean_left(backbone: Backbone, model: PrototypeModel, answer: Answer) -> float:
    """What prototypes leave of a logit beside the bias, as a mean over the classes that have some."""
    among = model.active_classes
    left = float(answer.read[0, 0] @ model.mean_residual) - float(model.intercept[among].double().mean())
    if model.amounts is None or not has_rest(model, answer):
        return left
    rest = answer.read[0, 1] - model.amounts.unplaced_mean.double()
    return left + float(head_times(backbone, model, rest)[among].mean())


def head_of(backbone: Backbone, model: PrototypeModel) -> Tensor:
    """(C, D) rows V_c of the head on the CPU: of classes that were not edited the network's own, which need no sums."""
    edited = model.edited_classes
    if edited is None or not backbone.readout.has_head:
        return model.head_vectors()
    vectors = backbone.readout.vectors.cpu()
    if edited:
        vectors = vectors.clone()
        vectors[edited] = torch.stack([model.class_head(c).vector for c in edited]).to(vectors)
    return vectors


def head_times(backbone: Backbone, model: PrototypeModel, row: Tensor) -> Tensor:
    """(C,) float64 V_c . row of every class, for a row (D,) in float64; computed where the network computes."""
    edited = model.edited_classes
    if edited is None or not backbone.readout.has_head:
        return model.head_vectors() @ row
    vectors = backbone.readout.vectors
    found = (vectors @ row.to(vectors)).cpu().double()
    for c in edited:
        found[c] = model.class_head(c).vector @ row
    return found


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
    """The best classes of logits (C,), strongest first; all labels that are said, where an image may have several."""
    probability = probabilities(logits, multi_label=model.multi_label)
    if model.multi_label:
        count = max(count, min(MOST_LABELS, int(said(logits, multi_label=True).sum())))
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
    if not len(model.active_classes):
        return None
    probability = probabilities(logits, multi_label=model.multi_label)
    return _prediction(model, logits, probability, best_class(model, logits, "prototypes"))


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

    def contributions(self, head: ClassHead, map_kind: MapKind, kept: Kept) -> list[Contribution]:
        """One contribution per connection of the class, in the order of the readers."""
        evidence = self.readers @ self.rows.T
        placed = evidence[:, : self.backbone.readout.places]
        wholes, places, weights = evidence.sum(dim=1).tolist(), placed.sum(dim=1).tolist(), head.weights.tolist()
        maps = self._maps(placed, head.weights, map_kind)
        return [
            Contribution(
                weight=weight, evidence=whole, contribution=weight * whole, localised=weight * at_places,
                unlocalised=weight * whole - weight * at_places, maps=both, peak_box=box,
                examples=kept.views(prototype), **kept.said(prototype),
            )
            for prototype, weight, whole, at_places, (both, box) in zip(
                head.prototypes, weights, wholes, places, maps, strict=True
            )
        ]  # fmt: skip

    def _maps(self, placed: Tensor, weights: Tensor, map_kind: MapKind) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
        """Maps of each connection and what finds its box, from evidence by place (s, places)."""
        if self.grid is None:
            yield from (({}, None) for _ in placed)
            return
        size = self.backbone.preprocessing.input_size[1:]
        added = (weights[:, None] * placed).reshape(-1, *self.grid).numpy()
        # a negative weight turns strong evidence into a deep valley: the box is around the evidence
        peaks = placed.reshape(-1, *self.grid) if map_kind == "contribution" else map(torch.from_numpy, self.presence)
        for contribution, presence, peak in zip(added, self.presence, peaks, strict=True):
            yield {"contribution": contribution, "presence": presence}, partial(peak_box, peak, size)


def example_maps(model: PrototypeModel, prototype: int) -> list[tuple[np.ndarray | None, str]]:
    """Maps of the stored training patches of one prototype, strongest first, and the sha256 of their images."""
    examples, space = model.examples, model.spaces[model.network_of(prototype)]
    found: list[tuple[np.ndarray | None, str]] = []
    for number in examples.of(prototype):
        grid = examples.map[number].numpy()
        if model.card.members and space.grid is not None:  # smaller grids are filled up
            grid = grid[: space.grid[0], : space.grid[1]]
        found.append((grid if grid.size else None, examples.sources[number].sha256))
    return found


def example_views(model: PrototypeModel, prototype: int) -> list[ExampleView]:
    """The stored training patches of one prototype, strongest first."""
    examples, full = model.examples, model.peak_of(prototype)
    views = []
    for number, (grid, sha256) in zip(examples.of(prototype), example_maps(model, prototype), strict=True):
        left, top, right, bottom = examples.box[number].tolist()
        views.append(
            ExampleView(
                jpeg=examples.picture(number),
                map=grid,
                box=(left, top, right, bottom),
                score=float(examples.score[number]),
                path=examples.sources[number].path,
                sha256=sha256,
                full=full,
            )
        )
    return views
