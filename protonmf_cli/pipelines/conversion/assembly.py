"""From finished classes to one prototype model: head reconstruction, order, and the figures of the card (eq. 4-5)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.amounts import cancellation
from protonmf_cli.maths.metrics import logit_share, median_share
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import ClassFigures, ConversionFigures, DataFacts, ReadoutFacts
from protonmf_cli.models.class_part import ClassPart, PartExamples
from protonmf_cli.models.evidence import Projections
from protonmf_cli.models.image_batches import ImageSource, Skipped, digest_of_images
from protonmf_cli.models.prototype import Examples, PrototypeModel
from protonmf_cli.models.readouts.readout import FORMULA_NOISE, spread
from protonmf_cli.models.response import logit_parts
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.reconstruction import (
    ALIKE,
    Bases,
    Reconstruction,
    order_by_contribution,
    reconstruct_heads,
)
from protonmf_cli.pipelines.conversion.residual_shares import augment_model
from protonmf_cli.pipelines.conversion.usual_images import with_usual_images
from protonmf_cli.pipelines.model_cards import bare_card, readout_facts
from protonmf_cli.pipelines.progress import SILENT, Progress

ILL_CONDITIONED = 1e6


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What the first pass over the finished classes leaves."""

    bases: Bases
    orders: Mapping[int, Tensor]
    """class -> final order of its prototypes"""


def assemble_model(
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    options: ConversionOptions,
    *,
    data: DataFacts,
    progress: Progress = SILENT,
) -> PrototypeModel:
    """Solve the head of all classes at once and measure the result on the training images.

    The parts are visited five times, one at a time, so that memory does not grow with the images.

    Args:
        backbone: the classifier.
        finished: class -> part, as left by `convert_classes`.
        options: recorded in the card.
        data: facts about the data for the card.
        progress: told about ill-conditioned classes.

    Raises:
        InputError: no class has a readable image.
        NotExactError: the solver failed.
    """
    progress.stage("reconstructing the head", 3 * len(finished))
    vectors = backbone.readout.vectors.double().cpu()
    summary = _summarise(finished, vectors, progress)
    bias = backbone.readout.bias.double().cpu()
    heads = reconstruct_heads(vectors, bias, summary.bases, finished, options, progress)
    bare = PrototypeModel(
        prototypes=heads.prototypes,
        owner=summary.bases.owner,
        weights=heads.weights,
        residual=heads.residual.float(),
        bias=bias.float(),
        intercept=torch.zeros(len(vectors)),
        evidence=heads.amounts or Projections(),
        examples=_no_examples(),
        card=bare_card(
            backbone, options, method="protonmf", similarity="dual" if heads.amounts else "dot", pooling="sum",
            readout=readout_facts(backbone), data=data,
        ),
    )  # fmt: skip
    _warn(bare, summary.bases.classes, heads, progress)
    whole = _measure(bare, backbone, finished, summary.orders, heads, progress)
    whole = with_usual_images(whole, finished, progress)
    return augment_model(whole, options.augment, finished, progress)


def _summarise(finished: Mapping[int, ClassPart], vectors: Tensor, progress: Progress) -> _Summary:
    classes, found, means = [], [], []
    for class_index in sorted(finished):
        part = finished[class_index]
        progress.advance()
        if len(part.prototypes):
            classes.append(class_index)
            found.append(part.prototypes)
            means.append(part.pooled[:, 0].mean(dim=0, dtype=torch.float64))
    if not classes:
        raise InputError("no image of any class could be read")
    orders = order_by_contribution(vectors[classes].numpy(), found, means)
    sizes = torch.tensor([len(basis) for basis in found])
    bases = Bases(
        classes=classes,
        prototypes=torch.cat([basis[order] for basis, order in zip(found, orders, strict=True)]),
        owner=torch.repeat_interleave(torch.tensor(classes), sizes),
    )
    return _Summary(bases=bases, orders=dict(zip(classes, orders, strict=True)))


MOST_PAIRS = 100
"""Pairs of nearly equal prototypes that a file names."""


def _with_condition(figures: ConversionFigures, heads: Reconstruction) -> ConversionFigures:
    """The same figures with how well the weights are defined."""
    figures = replace(figures, condition=float(heads.condition.max()))
    if heads.amounts is None:
        return figures
    return replace(figures, ridge=heads.amounts.ridge, alike=tuple(heads.alike[:MOST_PAIRS]))


def _warn(model: PrototypeModel, classes: Sequence[int], heads: Reconstruction, progress: Progress) -> None:
    """Name what makes weights or residuals mean little."""
    named = model.card.classes

    def names(chosen: Sequence[int]) -> str:
        return ", ".join(named[c].shown for c in chosen[:5]) + (", ..." if len(chosen) > 5 else "")

    bad = [c for c, value in zip(classes, heads.condition, strict=True) if value > ILL_CONDITIONED]
    if bad:
        progress.warn(
            f"the prototypes of {len(bad)} classes are nearly dependent (condition above {ILL_CONDITIONED:.0e}), their "
            f"weights mean little: {names(bad)}. Give a smaller -p."
        )
    if heads.nothing_left:
        progress.warn(
            f"the prototypes of {len(heads.nothing_left)} classes span all {heads.residual.shape[1]} directions of the "
            f"rows, so nothing is left for their residual: {names(heads.nothing_left)}. Such an explanation is a "
            "change of basis; give a smaller -p or --near."
        )
    if heads.alike:
        first, second = (f"{named[int(model.owner[j])].shown} {model.number(j)}" for j in heads.alike[0][:2])
        progress.warn(
            f"{len(heads.alike)} pairs of prototypes are nearly the same (cosine from {ALIKE}), e.g. {first} and "
            f"{second}: what both hold is shared out between them, and an edit of one leaves it to the other."
        )
    if not heads.accurate:
        progress.warn("the solver reports a head reconstruction of reduced accuracy; the logits stay exact")


@dataclass(kw_only=True)
class _Totals:
    """Sums over the second pass."""

    model_difference: float = 0.0
    spread: list[float] = field(default_factory=list)
    agree: int = 0
    right_black_box: int = 0
    right_model: int = 0
    shares: list[Tensor] = field(default_factory=list)
    cancelled: list[Tensor] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)
    images_per_class: dict[int, int] = field(default_factory=dict)
    per_class: dict[str, ClassFigures] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    stability: list[Tensor] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)


def _measure(
    model: PrototypeModel,
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    orders: Mapping[int, Tensor],
    heads: Reconstruction,
    progress: Progress,
) -> PrototypeModel:
    """Second pass: figures on the training images, and the examples in their final order."""
    totals, gathered = _Totals(), _Gathered()
    vectors = backbone.readout.vectors.double().cpu().numpy()
    head = torch.from_numpy(vectors).float()
    for class_index in sorted(finished):
        part = finished[class_index]
        progress.advance()
        totals.skipped += part.skipped
        totals.figures.append(dict(part.figures))
        totals.images += part.images
        totals.images_per_class[class_index] = len(part.images)
        if part.figures.get("curve"):
            totals.curves[str(class_index)] = part.figures["curve"]
        if class_index in orders:
            totals.stability.append(part.stability[orders[class_index]])
            _add_figures(totals, model, head, class_index, part)
            gathered.add(part.examples, orders[class_index])
    count = len(totals.images)
    data = replace(
        model.card.data,
        images=count,
        images_per_class={str(c): n for c, n in totals.images_per_class.items()},
        digest=digest_of_images(totals.images),
        skipped=tuple(totals.skipped),
    )
    card = replace(
        model.card,
        readout=_exactly(model.card.readout, backbone, totals, count),
        data=data,
        measured=_with_condition(_figures(totals, model, vectors[sorted(orders)], sorted(orders)), heads),
    )
    return replace(model, examples=_as_amounts(gathered.examples(), model), card=card)


def _figures(totals: _Totals, model: PrototypeModel, vectors: np.ndarray, classes: Sequence[int]) -> ConversionFigures:
    """What the card says of the training images; `vectors` of the head, of the classes with images."""
    error = sum(f.get("squared_error", 0.0) for f in totals.figures)
    size = sum(f.get("squared_norm", 0.0) for f in totals.figures)
    count = len(totals.images)
    return ConversionFigures(
        agreement=totals.agree / count,
        accuracy_black_box=totals.right_black_box / count,
        accuracy_prototype_model=totals.right_model / count,
        feature_relative_error=error / size if size else 0.0,
        head_relative_error=float(model.residual[classes].double().square().sum() / np.square(vectors).sum()),
        residual_share=_one_minus(median_share(torch.cat(totals.shares))),
        cancellation=_cancellation_figures(torch.cat(totals.cancelled)),
        per_class=totals.per_class,
        stability=tuple(
            round(value, 4) if math.isfinite(value) else None for value in torch.cat(totals.stability).tolist()
        ),
        curves=totals.curves,
    )


def _as_amounts(examples: Examples, model: PrototypeModel) -> Examples:
    """Codes of unit prototypes in units of the prototypes as they are stored."""
    if model.amounts is None or not len(examples.prototype):
        return examples
    length = model.prototypes.norm(dim=1)[examples.prototype].clamp_min(torch.finfo(torch.float32).tiny)
    return replace(examples, score=examples.score / length, map=examples.map / length[:, None, None])


def _add_figures(totals: _Totals, model: PrototypeModel, head: Tensor, class_index: int, part: ClassPart) -> None:
    parts = logit_parts(model, part.pooled)
    expected = part.pooled.sum(dim=1) @ head.mT + model.bias
    target = torch.full((len(part.images),), class_index)
    top = parts.logits.argmax(dim=1)
    totals.model_difference = max(totals.model_difference, float((parts.logits - expected).abs().max()))
    totals.spread.append(spread(expected))
    totals.agree += int((top == part.predicted).sum())
    right = int((top == target).sum())
    share = logit_share(parts.carried, parts.logits, target, model.active_classes)
    totals.right_model += right
    totals.right_black_box += int((part.predicted == target).sum())
    totals.shares.append(share)
    weighted = model.weights.value[model.entries(class_index), None] * model.readers(class_index)
    totals.cancelled.append(cancellation(part.pooled[:, 0] @ weighted.mT))
    totals.per_class[str(class_index)] = ClassFigures(
        accuracy=right / len(part.images), residual_share=_one_minus(median_share(share))
    )


def _exactly(readout: ReadoutFacts, backbone: Backbone, totals: _Totals, count: int) -> ReadoutFacts:
    """Network against rows, measured image by image, plus rows against prototypes: together an upper bound."""
    rows_difference = max(f["max_abs_difference"] for f in totals.figures)
    relative = max(f["max_rel_difference"] for f in totals.figures)
    return replace(
        readout,
        max_abs_logit_difference=rows_difference + totals.model_difference,
        relative_difference=relative + totals.model_difference / min(totals.spread),
        formula_difference=max(backbone.formula_difference, FORMULA_NOISE),  # so that equal models are equal bytes
        images_checked=count,
        negative_share=float(np.mean([f["negative_share"] for f in totals.figures])),
        clipped_share=float(np.mean([f["clipped_share"] for f in totals.figures])),
    )


@dataclass
class _Gathered:
    """Examples of all classes, one class after the other."""

    parts: list[tuple[PartExamples, Tensor]] = field(default_factory=list)

    def add(self, examples: PartExamples, order: Tensor) -> None:
        self.parts.append((examples, order))

    def examples(self) -> Examples:
        if not any(part.crops for part, _ in self.parts):
            return _no_examples()
        prototype, crop, blob, sources = [], [], [], []
        first, end = 0, 0
        for part, order in self.parts:
            spans = []
            for jpeg in part.crops:
                spans.append((end, end + len(jpeg)))
                blob.append(jpeg)
                end += len(jpeg)
            for rank, k in enumerate(order.tolist()):
                for image in part.image[k].tolist():
                    prototype.append(first + rank)
                    crop.append(spans[image])
                    sources.append(part.sources[image])
            first += len(order)
        return Examples(
            prototype=torch.tensor(prototype),
            score=torch.cat([part.score[order].flatten() for part, order in self.parts]),
            box=torch.cat([part.box[order].flatten(0, 1) for part, order in self.parts]),
            map=torch.cat([part.map[order].flatten(0, 1) for part, order in self.parts]),
            crop=torch.tensor(crop),
            jpeg=torch.frombuffer(bytearray(b"".join(blob)), dtype=torch.uint8),
            sources=tuple(sources),
        )


def _no_examples() -> Examples:
    empty = torch.empty(0, dtype=torch.int64)
    return Examples(
        prototype=empty,
        score=torch.empty(0),
        box=empty.reshape(0, 4),
        map=torch.empty(0, 0, 0),
        crop=empty.reshape(0, 2),
        jpeg=torch.empty(0, dtype=torch.uint8),
        sources=(),
    )


def _cancellation_figures(found: Tensor) -> dict[str, float]:
    """Sum of sizes over size of the sum of an explanation's rows: median and 90 % quantile over images."""
    return {"median": float(found.median()), "high": float(found.double().quantile(0.9))}


def _one_minus(share: float | None) -> float | None:
    return None if share is None else 1 - share
