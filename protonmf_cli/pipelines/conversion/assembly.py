"""From finished classes to one prototype model: head reconstruction, order, and the figures of the card (eq. 4-5)."""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import median_share
from protonmf_cli.models.amounts import UsualImages
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import ClassFigures, ConversionFigures, DataFacts, ReadoutFacts
from protonmf_cli.models.class_part import ClassPart, PartExamples
from protonmf_cli.models.evidence import Projections
from protonmf_cli.models.image_batches import ImageSource, Skipped, lines_of_images
from protonmf_cli.models.prototype import Examples, PrototypeModel
from protonmf_cli.models.readouts.readout import FORMULA_NOISE
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.reconstruction import (
    ALIKE,
    Bases,
    Reconstruction,
    order_by_contribution,
    reconstruct_heads,
    with_wholes,
)
from protonmf_cli.pipelines.conversion.residual_shares import augment_model
from protonmf_cli.pipelines.conversion.sums import Sums, sums_of
from protonmf_cli.pipelines.conversion.training_figures import Measured, TrainingFigures
from protonmf_cli.pipelines.conversion.usual_images import usual_images, with_usual_images
from protonmf_cli.pipelines.model_cards import bare_card, readout_facts
from protonmf_cli.pipelines.progress import SILENT, Progress

ILL_CONDITIONED = 1e6


def assemble_model(
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    options: ConversionOptions,
    *,
    data: DataFacts,
    progress: Progress = SILENT,
) -> PrototypeModel:
    """Solve the head of all classes at once and measure the result on the training images.

    The parts are visited three times (augmentation looks at samples of them once more), one at a time, so that memory
    does not grow with the images.

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
    vectors, bias = backbone.readout.vectors.double().cpu(), backbone.readout.bias.double().cpu()
    sums = sums_of(finished, progress)
    if not sums.classes:
        raise InputError("no image of any class could be read")
    bases, orders = _ordered(vectors, sums)
    if options.near_as == "wholes" and options.near and options.reconstruction == "amounts":
        bases = with_wholes(bases, [along[orders[c]] for c, along in zip(sums.classes, sums.projected, strict=True)])
    heads = reconstruct_heads(vectors, bias, bases, sums, finished, options, progress)
    bare = PrototypeModel(
        prototypes=heads.prototypes,
        owner=bases.owner,
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
    _warn(bare, bases.classes, heads, progress)
    whole = _measure(bare, backbone, finished, orders, heads, usual_images(bare, sums), progress)
    return augment_model(whole, options.augment, finished, progress)


def _ordered(vectors: Tensor, sums: Sums) -> tuple[Bases, dict[int, Tensor]]:
    """Prototypes of all classes in their final order, and of each class this order."""
    classes = list(sums.classes)
    orders = order_by_contribution(vectors[classes].numpy(), sums.prototypes, sums.projected)
    sizes = torch.tensor([len(basis) for basis in sums.prototypes])
    bases = Bases(
        classes=classes,
        prototypes=torch.cat([basis[order] for basis, order in zip(sums.prototypes, orders, strict=True)]),
        owner=torch.repeat_interleave(torch.tensor(classes), sizes),
    )
    return bases, dict(zip(classes, orders, strict=True))


def _with_condition(figures: ConversionFigures, heads: Reconstruction) -> ConversionFigures:
    """The same figures with how well the weights are defined."""
    figures = replace(figures, condition=float(heads.condition.max()))
    if heads.amounts is None:
        return figures
    return replace(figures, ridge=heads.amounts.ridge, alike=heads.alike)


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
            f"{heads.pairs_alike} pairs of prototypes are nearly the same (cosine from {ALIKE}), e.g. {first} and "
            f"{second}: what both hold is shared out between them, and an edit of one leaves it to the other."
        )
    if not heads.accurate:
        progress.warn("the solver reports a head reconstruction of reduced accuracy; the logits stay exact")


@dataclass(kw_only=True)
class _Totals:
    """Sums over the classes."""

    model_difference: float = 0.0
    spread: list[float] = field(default_factory=list)
    agree: int = 0
    right_black_box: int = 0
    right_model: int = 0
    shares: list[Tensor] = field(default_factory=list)
    cancelled: list[Tensor] = field(default_factory=list)
    images: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    images_per_class: dict[int, int] = field(default_factory=dict)
    per_class: dict[str, ClassFigures] = field(default_factory=dict)
    skipped: list[Skipped] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    stability: list[Tensor] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)
    levels: dict[int, Tensor] = field(default_factory=dict)

    def add(self, class_index: int, part: ClassPart) -> None:
        """What a class says of itself."""
        self.skipped += part.skipped
        self.figures.append(dict(part.figures))
        self.images += len(part.images)
        self.digest.update(lines_of_images(part.images))
        self.images_per_class[class_index] = len(part.images)
        if part.figures.get("curve"):
            self.curves[str(class_index)] = part.figures["curve"]

    def add_measured(self, class_index: int, part: ClassPart, found: Measured) -> None:
        """What was measured of one that has prototypes."""
        self.model_difference = max(self.model_difference, found.difference)
        self.spread.append(found.spread)
        self.agree += found.agree
        self.right_model += found.right
        self.right_black_box += int((part.predicted == class_index).sum())
        self.shares.append(found.shares)
        self.cancelled.append(found.cancelled)
        self.per_class[str(class_index)] = ClassFigures(
            accuracy=found.right / len(part.images), residual_share=found.residual_share
        )
        if found.levels is not None:
            self.levels[class_index] = found.levels


def _measure(
    model: PrototypeModel,
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    orders: Mapping[int, Tensor],
    heads: Reconstruction,
    images: UsualImages | None,
    progress: Progress,
) -> PrototypeModel:
    """The last visit: figures on the training images, and the examples in their final order."""
    totals, gathered, figures = _Totals(), _Gathered(), TrainingFigures(model, backbone, images)

    def with_prototypes() -> Iterator[tuple[int, ClassPart]]:
        for class_index in sorted(finished):
            part = finished[class_index]
            progress.advance()
            totals.add(class_index, part)
            if class_index in orders:
                yield class_index, part

    for class_index, part, measured in figures.of_all(with_prototypes()):
        totals.stability.append(part.stability[orders[class_index]])
        totals.add_measured(class_index, part, measured)
        gathered.add(part.examples, orders[class_index])
    count = totals.images
    data = replace(
        model.card.data,
        images=count,
        images_per_class={str(c): n for c, n in totals.images_per_class.items()},
        digest=totals.digest.hexdigest(),
        skipped=tuple(totals.skipped),
    )
    vectors = backbone.readout.vectors.cpu()[sorted(orders)]
    card = replace(
        model.card,
        readout=_exactly(model.card.readout, backbone, totals, count),
        data=data,
        measured=_with_condition(_figures(totals, model, vectors, sorted(orders)), heads),
    )
    height, width = backbone.preprocessing.input_size[1:]
    examples = gathered.examples((height, width) if bool(model.wholes.any()) else None)
    whole = replace(model, examples=_as_amounts(examples, model), card=card)
    return whole if images is None else with_usual_images(whole, images, totals.levels)


def _figures(totals: _Totals, model: PrototypeModel, vectors: Tensor, classes: Sequence[int]) -> ConversionFigures:
    """What the card says of the training images; `vectors` of the head, of the classes with images."""
    left, whole = (torch.linalg.vector_norm(each, dtype=torch.float64) for each in (model.residual[classes], vectors))
    error = sum(f.get("squared_error", 0.0) for f in totals.figures)
    size = sum(f.get("squared_norm", 0.0) for f in totals.figures)
    count = totals.images
    return ConversionFigures(
        agreement=totals.agree / count,
        accuracy_black_box=totals.right_black_box / count,
        accuracy_prototype_model=totals.right_model / count,
        feature_relative_error=error / size if size else 0.0,
        head_relative_error=float((left / whole).square()),
        residual_share=_one_minus(median_share(torch.cat(totals.shares))),
        cancellation=_cancellation_figures(torch.cat(totals.cancelled)),
        per_class=totals.per_class,
        stability=_stability(totals, len(model.prototypes)),
        curves=totals.curves,
    )


def _stability(totals: _Totals, count: int) -> tuple[float | None, ...]:
    """Of every prototype; None of those that were not compared, as classes as wholes are."""
    found = [round(value, 4) if math.isfinite(value) else None for value in torch.cat(totals.stability).tolist()]
    return (*found, *[None] * (count - len(found)))


def _as_amounts(examples: Examples, model: PrototypeModel) -> Examples:
    """Codes of unit prototypes in units of the prototypes as they are stored."""
    if model.amounts is None or not len(examples.prototype):
        return examples
    length = model.prototypes.norm(dim=1)[examples.prototype].clamp_min(torch.finfo(torch.float32).tiny)
    length = torch.where(model.wholes[examples.prototype], 1.0, length)
    return replace(examples, score=examples.score / length, map=examples.map / length[:, None, None])


def _exactly(readout: ReadoutFacts, backbone: Backbone, totals: _Totals, count: int) -> ReadoutFacts:
    """Network against rows, measured image by image, plus the most by which prototypes differ from rows on any of them:
    together an upper bound."""
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

    def examples(self, wholes: tuple[int, int] | None) -> Examples:
        """Of all prototypes; `wholes`: height and width of a picture, where classes as wholes follow the parts."""
        if not any(part.crops for part, _ in self.parts):
            return _no_examples()
        prototype, crop, sources = [], [], []
        blob, first = bytearray(), 0
        leading = []
        for part, order in self.parts:
            spans = []
            for jpeg in part.crops:
                spans.append((len(blob), len(blob) + len(jpeg)))
                blob += jpeg
            for rank, k in enumerate(order.tolist()):
                for image in part.image[k].tolist():
                    prototype.append(first + rank)
                    crop.append(spans[image])
                    sources.append(part.sources[image])
            leading.append([(spans[image], part.sources[image]) for image in part.image[order[0]].tolist()])
            first += len(order)
        found = Examples(
            prototype=torch.tensor(prototype),
            score=torch.cat([part.score[order].flatten() for part, order in self.parts]),
            box=torch.cat([part.box[order].flatten(0, 1) for part, order in self.parts]),
            map=torch.cat([part.map[order].flatten(0, 1) for part, order in self.parts]),
            crop=torch.tensor(crop),
            jpeg=torch.frombuffer(blob, dtype=torch.uint8),
            sources=tuple(sources),
        )
        return found if wholes is None else _with_whole_pictures(found, first, leading, wholes)


def _with_whole_pictures(
    found: Examples,
    first: int,
    pictures: Sequence[Sequence[tuple[tuple[int, int], ImageSource]]],
    size: tuple[int, int],
) -> Examples:
    """Examples of parts, then those of classes as wholes: the pictures that show each class's first part best.

    Args:
        found: of the parts.
        first: number of the first whole.
        pictures: where each picture of each class lies, and its source.
        size: height and width of a picture; all of it is boxed, at the usual amount, and no map is drawn.
    """
    more = [(first + n, crop, source) for n, own in enumerate(pictures) for crop, source in own]
    if not more:
        return found
    prototype, crop, sources = zip(*more, strict=True)
    count = len(prototype)
    return replace(
        found,
        prototype=torch.cat([found.prototype, torch.tensor(prototype)]),
        score=torch.cat([found.score, torch.ones(count)]),
        box=torch.cat([found.box, torch.tensor([0, 0, size[1], size[0]]).expand(count, 4)]),
        map=torch.cat([found.map, torch.zeros(count, *found.map.shape[1:])]),
        crop=torch.cat([found.crop, torch.tensor(crop)]),
        sources=(*found.sources, *sources),
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
    return {"median": float(found.median()), "high": float(np.quantile(found.double().numpy(), 0.9))}


def _one_minus(share: float | None) -> float | None:
    return None if share is None else 1 - share
