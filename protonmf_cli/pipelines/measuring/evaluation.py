"""One pass over labelled images: is the model the black box, and how much do its prototypes carry?"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import bootstrap_interval, logit_share, median_share
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.readouts.readout import relative_difference
from protonmf_cli.models.response import LogitParts, evidence_of, logit_parts, parts_of_evidence, pooled_rows
from protonmf_cli.models.results import KeptImages, Scores, UnlikeFigures
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness
from protonmf_cli.pipelines.progress import SILENT, Progress

BLACK_BOX = "black_box"


@dataclass
class _Tops:
    """Top classes of every image, for each way to answer; all classes and only those present."""

    everywhere: dict[str, list[Tensor]] = field(default_factory=dict)
    restricted: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, answers: dict[str, Tensor], present: Tensor) -> None:
        for name, logits in answers.items():
            self.everywhere.setdefault(name, []).append(logits.argmax(dim=1).cpu())
            self.restricted.setdefault(name, []).append(present[logits[:, present].argmax(dim=1)].cpu())


def evaluate_model(
    backbone: Backbone,
    model: PrototypeModel,
    batches: Iterable[ImageBatch],
    present: Iterable[int],
    progress: Progress = SILENT,
    *,
    keep: KeptImages | None = None,
) -> Scores:
    """Accuracy, agreement, exactness and logit share in one pass.

    Args:
        backbone: the network the model was made from.
        model: prototypes and head.
        batches: labelled images.
        present: classes among the images, for the restricted figures.
        keep: takes what further tables need.

    Raises:
        InputError: no image could be read.
    """
    moved = model.to(backbone.device, backbone.dtype)
    among = torch.tensor(sorted(present), device=backbone.device)
    augmented = moved.augmented_vectors() if model.is_augmented else None
    tops, targets, shares, exactness = _Tops(), [], [], _Exactness()
    measure, unlike = Unlikeness.of(model), list[Tensor]()
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        target = torch.full((len(batch.sources),), batch.class_index)
        targets.append(target)
        reading = backbone.read(batch.crops)
        if not model.adds_up:
            kept = evidence_of(moved, reading.rows)
            tops.add({"prototype_model": parts_of_evidence(moved, kept).logits}, among)
        else:
            kept = pooled_rows(reading.rows, model.placed)
            parts = logit_parts(moved, kept)
            answers = _answers(reading.logits, parts)
            if augmented is not None:
                answers["augmented"] = kept.sum(dim=1) @ augmented.mT + moved.bias
            tops.add(answers, among)
            exactness.add(parts.logits, reading.logits)
            if measure is not None:
                unlike.append(measure.scores(kept[:, 0], parts.logits))
            shares.append(logit_share(parts.carried.cpu(), parts.logits.cpu(), target, model.active_classes))
        if keep is not None:
            keep.read.append(kept.float().cpu())
            keep.target.append(target)
    if not targets:
        raise InputError("no image of the data could be read")
    found = _scores(model, tops, torch.cat(targets), torch.cat(shares) if shares else None, among, exactness)
    return replace(found, unlike=_unlike_figures(torch.cat(unlike)) if unlike else None)


UNLIKE_LEVELS = (0.5, 0.9, 0.95, 0.99)
"""Quantiles of the scores."""


def _unlike_figures(scores: Tensor) -> UnlikeFigures:
    """Of scores (N,), NaN where an image has none."""
    known = scores[scores.isfinite()]
    found = known.quantile(known.new_tensor(UNLIKE_LEVELS)).tolist() if len(known) else ()
    return UnlikeFigures(
        share=float((known > 1).double().mean()) if len(known) else None,
        quantiles=dict(zip(map(str, UNLIKE_LEVELS), found, strict=False)),
        unknown=len(scores) - len(known),
    )


@dataclass
class _Exactness:
    """Largest differences between the model's logits and the network's own; None before there are any."""

    absolute: float | None = None
    relative: float | None = None

    def add(self, found: Tensor, expected: Tensor) -> None:
        self.absolute = max(self.absolute or 0.0, float((found - expected).abs().max()))
        self.relative = max(self.relative or 0.0, relative_difference(found, expected))


def _answers(black_box: Tensor, parts: LogitParts) -> dict[str, Tensor]:
    return {
        BLACK_BOX: black_box,
        "prototype_model": parts.logits,
        "prototypes_only": parts.carried,
        "residual_only": parts.left,
    }


def _scores(
    model: PrototypeModel, tops: _Tops, target: Tensor, shares: Tensor | None, among: Tensor, exactness: _Exactness
) -> Scores:
    everywhere = {name: torch.cat(found) for name, found in tops.everywhere.items()}
    restricted = {name: torch.cat(found) for name, found in tops.restricted.items()}
    right = {name: (top == target).double() for name, top in everywhere.items()}
    agree = _agreement(everywhere)
    seed = model.card.seed
    return Scores(
        images=len(target),
        classes=len(among),
        accuracy=_means(right),
        agreement=_means(agree),
        logit_share=None if shares is None else median_share(shares),
        restricted={
            "accuracy": _means({n: (top == target).double() for n, top in restricted.items()}),
            "agreement": _means(_agreement(restricted)),
        },
        max_abs_logit_difference=exactness.absolute,
        relative_difference=exactness.relative,
        per_class=_per_class(target, right),
        intervals={
            "accuracy": {n: list(bootstrap_interval(v.numpy(), seed=seed)) for n, v in right.items()},
            "agreement": {n: list(bootstrap_interval(v.numpy(), seed=seed)) for n, v in agree.items()},
        },
    )


def _agreement(tops: dict[str, Tensor]) -> dict[str, Tensor]:
    """Where each way to answer has the black box's top class; nothing where there is no black box."""
    if BLACK_BOX not in tops:
        return {}
    return {n: (top == tops[BLACK_BOX]).double() for n, top in tops.items() if n != BLACK_BOX}


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in values.items()}


def _per_class(target: Tensor, right: dict[str, Tensor]) -> dict[int, dict[str, float]]:
    table = {}
    for c in target.unique().tolist():
        hit = target == c
        table[c] = {"images": int(hit.sum())} | {
            n: float(v[hit].mean()) for n, v in right.items() if n != "residual_only"
        }
    return table
