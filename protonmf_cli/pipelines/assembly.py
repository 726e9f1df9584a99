"""From finished classes to one prototype model: head reconstruction, order, and the figures of the card (eq. 4-5)."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import logit_share, median_share
from protonmf_cli.maths.qp import HeadFit, fit_heads
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.images import ImageSource
from protonmf_cli.models.part import ClassPart, PartExamples
from protonmf_cli.models.prototype import Card, Examples, PrototypeModel, SparseWeights, logit_parts
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.versions import installed_versions

ILL_CONDITIONED = 1e6


@dataclass(frozen=True, kw_only=True)
class _Summary:
    """What the first pass over the finished classes leaves."""

    classes: list[int]
    """With prototypes, rising."""
    bases: list[Tensor]
    means: list[Tensor]
    """Mean pooled row of each class."""


def assemble_model(
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    options: ConversionOptions,
    *,
    data: Mapping[str, Any],
    progress: Progress = SILENT,
) -> PrototypeModel:
    """Solve the head of all classes at once and measure the result on the training images.

    The parts are visited twice, one at a time, so that memory does not grow with the images.

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
    progress.stage("reconstructing the head", 2 * len(finished))
    summary = _summarise(finished, progress)
    if not summary.classes:
        raise InputError("no image of any class could be read")
    vectors = backbone.readout.vectors.double().cpu().numpy()
    fit = fit_heads(vectors[summary.classes], [basis.double().numpy() for basis in summary.bases])
    _warn_condition(backbone, summary.classes, fit, progress)
    orders = [
        _order(a, basis, mean) for a, basis, mean in zip(fit.coefficients, summary.bases, summary.means, strict=True)
    ]
    residual = vectors.copy()
    residual[summary.classes] = fit.residual
    sizes = [len(basis) for basis in summary.bases]
    owner = torch.repeat_interleave(torch.tensor(summary.classes), torch.tensor(sizes))
    values = np.concatenate([a[order.numpy()] for a, order in zip(fit.coefficients, orders, strict=True)])
    weights = SparseWeights(
        class_index=owner,
        prototype=torch.arange(len(owner)),
        value=torch.from_numpy(values).float(),
        residual_share=torch.zeros(len(owner)),
    )
    bare = PrototypeModel(
        prototypes=torch.cat([basis[order] for basis, order in zip(summary.bases, orders, strict=True)]),
        owner=owner,
        weights=weights,
        residual=torch.from_numpy(residual).float(),
        bias=backbone.readout.bias.float().cpu(),
        intercept=torch.zeros(len(vectors)),
        examples=_no_examples(),
        card=_card(backbone, options, data),
    )
    return _measure(bare, backbone, finished, dict(zip(summary.classes, orders, strict=True)), vectors, progress)


def _summarise(finished: Mapping[int, ClassPart], progress: Progress) -> _Summary:
    summary = _Summary(classes=[], bases=[], means=[])
    for class_index in sorted(finished):
        part = finished[class_index]
        progress.advance()
        if len(part.prototypes):
            summary.classes.append(class_index)
            summary.bases.append(part.prototypes)
            summary.means.append(part.pooled.mean(dim=0, dtype=torch.float64))
    return summary


def _order(coefficients: np.ndarray, basis: Tensor, mean: Tensor) -> Tensor:
    """Prototypes by their mean contribution to their own class, strongest first: a_j (mean row . b_j)."""
    contribution = torch.from_numpy(coefficients) * (basis.double() @ mean)
    return torch.argsort(contribution, descending=True, stable=True)


def _warn_condition(backbone: Backbone, classes: Sequence[int], fit: HeadFit, progress: Progress) -> None:
    bad = [
        backbone.classes[c].shown for c, value in zip(classes, fit.condition, strict=True) if value > ILL_CONDITIONED
    ]
    if bad:
        progress.warn(
            f"the prototypes of {len(bad)} classes are nearly dependent (condition above {ILL_CONDITIONED:.0e}), their "
            f"weights mean little: {', '.join(bad[:5])}. Give a smaller -p."
        )
    if not fit.accurate:
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
    images: list[ImageSource] = field(default_factory=list)
    per_class: dict[int, int] = field(default_factory=dict)
    skipped: list[dict[str, str]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)


def _measure(
    model: PrototypeModel,
    backbone: Backbone,
    finished: Mapping[int, ClassPart],
    orders: Mapping[int, Tensor],
    vectors: np.ndarray,
    progress: Progress,
) -> PrototypeModel:
    """Second pass: figures on the training images, and the examples in their final order."""
    totals, gathered = _Totals(), _Gathered()
    head = torch.from_numpy(vectors).float()
    for class_index in sorted(finished):
        part = finished[class_index]
        progress.advance()
        totals.skipped += [asdict(skip) for skip in part.skipped]
        totals.figures.append(dict(part.figures))
        totals.images += part.images
        totals.per_class[class_index] = len(part.images)
        if class_index in orders:
            _add_figures(totals, model, head, class_index, part)
            gathered.add(part.examples, orders[class_index])
    classes = sorted(orders)
    error = sum(f.get("squared_error", 0.0) for f in totals.figures)
    size = sum(f.get("squared_norm", 0.0) for f in totals.figures)
    count = len(totals.images)
    measured = {
        "agreement": totals.agree / count,
        "accuracy_black_box": totals.right_black_box / count,
        "accuracy_prototype_model": totals.right_model / count,
        "feature_relative_error": error / size if size else 0.0,
        "head_relative_error": float(
            model.residual[classes].double().square().sum() / np.square(vectors[classes]).sum()
        ),
        "residual_share": _one_minus(median_share(torch.cat(totals.shares))),
    }
    readout = dict(model.card.readout) | _exactness(backbone, totals, count)
    data = dict(model.card.data) | {
        "images": count,
        "images_per_class": {str(c): n for c, n in totals.per_class.items()},
        "digest": _data_digest(totals.images),
        "skipped": totals.skipped,
    }
    card = replace(model.card, readout=readout, data=data, measured=measured)
    return replace(model, examples=gathered.examples(), card=card)


def _add_figures(totals: _Totals, model: PrototypeModel, head: Tensor, class_index: int, part: ClassPart) -> None:
    parts = logit_parts(model, part.pooled)
    expected = part.pooled @ head.mT + model.bias
    target = torch.full((len(part.images),), class_index)
    top = parts.logits.argmax(dim=1)
    totals.model_difference = max(totals.model_difference, float((parts.logits - expected).abs().max()))
    totals.spread.append(float(expected.std()))
    totals.agree += int((top == part.predicted).sum())
    totals.right_model += int((top == target).sum())
    totals.right_black_box += int((part.predicted == target).sum())
    totals.shares.append(logit_share(parts.prototypes + parts.bias, parts.logits, target, model.active_classes))


def _exactness(backbone: Backbone, totals: _Totals, count: int) -> dict[str, Any]:
    """Network against rows, measured image by image, plus rows against prototypes: together an upper bound."""
    rows_difference = max(f["max_abs_difference"] for f in totals.figures)
    relative = max(f["max_rel_difference"] for f in totals.figures)
    means = {name: float(np.mean([f[name] for f in totals.figures])) for name in ("negative_share", "clipped_share")}
    return {
        "max_abs_logit_difference": rows_difference + totals.model_difference,
        "relative_difference": relative + totals.model_difference / max(min(totals.spread), 1e-30),
        "formula_difference": backbone.formula_difference,
        "images_checked": count,
        **means,
    }


@dataclass
class _Gathered:
    """Examples of all classes, one class after the other."""

    parts: list[tuple[PartExamples, Tensor]] = field(default_factory=list)

    def add(self, examples: PartExamples, order: Tensor) -> None:
        self.parts.append((examples, order))

    def examples(self) -> Examples:
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


def _card(backbone: Backbone, options: ConversionOptions, data: Mapping[str, Any]) -> Card:
    """The card as far as it is known before measuring."""
    readout = backbone.readout
    return Card(
        method="protonmf",
        similarity="dot",
        pooling="sum",
        readout={
            "kind": readout.kind,
            "rows": backbone.rows_option,
            "rows_per_image": readout.places + len(readout.unplaced),
            "width": readout.vectors.shape[1],
            "grid": list(readout.grid) if readout.grid else None,
            "unplaced": list(readout.unplaced),
            "spatial": readout.spatial,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "device": backbone.device.type,
        },
        source=backbone.source,
        preprocessing=backbone.preprocessing,
        classes=backbone.classes,
        options=asdict(options),
        seed=options.seed,
        versions=installed_versions(),
        data=data,
        measured={},
    )


def _data_digest(images: Sequence[ImageSource]) -> str:
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.path}\0{image.sha256}\n".encode())
    return digest.hexdigest()


def _one_minus(share: float | None) -> float | None:
    return None if share is None else 1 - share
