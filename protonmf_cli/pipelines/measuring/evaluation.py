"""One pass over labelled images: is the model the black box, and how much do its prototypes carry?"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import bootstrap_interval, logit_share, median_share
from protonmf_cli.models.answers import jaccard, said
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
class _Hits:
    """How each way to answer does on every image, among some classes."""

    multi_label: bool
    right: dict[str, list[Tensor]] = field(default_factory=dict)
    """(B,) what is said against the image's own classes, see `jaccard`."""
    agree: dict[str, list[Tensor]] = field(default_factory=dict)
    """(B,) the same against what the black box says; nothing where there is none."""
    images: Tensor | int = 0
    """(C,) that are of each class."""
    found: dict[str, Tensor] = field(default_factory=dict)
    """(C,) of those, for which the class is said."""
    same: Tensor | int = 0
    """(C,) images of which the model and the black box say the same about each class."""

    def add(self, answers: dict[str, Tensor], targets: Tensor) -> None:
        """Count a batch.

        Args:
            answers: (B, C) logits of each way to answer.
            targets: (B, C) bool, the classes of each image.
        """
        told = {name: said(logits, multi_label=self.multi_label).cpu() for name, logits in answers.items()}
        self.images = self.images + targets.sum(dim=0)
        for name, classes in told.items():
            self.right.setdefault(name, []).append(jaccard(classes, targets))
            self.found[name] = self.found.get(name, 0) + (classes & targets).sum(dim=0)
            if BLACK_BOX in told and name != BLACK_BOX:
                self.agree.setdefault(name, []).append(jaccard(classes, told[BLACK_BOX]))
        if BLACK_BOX in told:
            self.same = self.same + (told["prototype_model"] == told[BLACK_BOX]).sum(dim=0)

    def per_class(self) -> dict[int, dict[str, float]]:
        """Images of each class that has some, and the share of them for which it is said."""
        assert isinstance(self.images, Tensor)
        table: dict[int, dict[str, float]] = {}
        for c in self.images.nonzero()[:, 0].tolist():
            count = int(self.images[c])
            table[c] = {"images": count} | {
                n: float(v[c]) / count for n, v in self.found.items() if n != "residual_only"
            }
            if self.multi_label and isinstance(self.same, Tensor):
                table[c]["agreement"] = float(self.same[c]) / len(torch.cat(self.right[BLACK_BOX]))
        return table


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
        InputError: no image could be read, or a logit is no finite number.
    """
    moved = model.to(backbone.device, backbone.dtype)
    among, multi_label = torch.tensor(sorted(present)), model.card.source.multi_label
    augmented = moved.augmented_vectors() if model.is_augmented else None
    everywhere, restricted = _Hits(multi_label), _Hits(multi_label)
    shares, exactness = list[Tensor](), _Exactness()
    measure, unlike = Unlikeness.of(model), list[Tensor]()
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources:
            continue
        target = torch.full((len(batch.sources),), batch.class_index)
        reading = backbone.read(batch.crops)
        if not model.adds_up:
            kept = evidence_of(moved, reading.rows)
            answers = {"prototype_model": parts_of_evidence(moved, kept).logits}
        else:
            kept = pooled_rows(reading.rows, model.placed)
            parts = logit_parts(moved, kept)
            answers = _answers(reading.logits, parts)
            if augmented is not None:
                answers["augmented"] = kept.sum(dim=1) @ augmented.mT + moved.bias
            exactness.add(parts.logits, reading.logits)
            if measure is not None:
                unlike.append(measure.scores(kept[:, 0], parts.logits))
            shares.append(logit_share(parts.carried.cpu(), parts.logits.cpu(), target, model.active_classes))
        answers, targets = {name: logits.cpu() for name, logits in answers.items()}, batch.targets(len(model.bias))
        if not all(logits.isfinite().all() for logits in answers.values()):
            raise backbone.no_numbers("logits")
        everywhere.add(answers, targets)
        restricted.add({name: logits[:, among] for name, logits in answers.items()}, targets[:, among])
        if keep is not None:
            keep.read.append(kept.float().cpu())
            keep.target.append(target)
    if not everywhere.right:
        raise InputError("no image of the data could be read")
    found = _scores(model, everywhere, restricted, torch.cat(shares) if shares else None, exactness)
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
    model: PrototypeModel, everywhere: _Hits, restricted: _Hits, shares: Tensor | None, exactness: _Exactness
) -> Scores:
    right, agree = _joined(everywhere.right), _joined(everywhere.agree)
    seed = model.card.seed
    return Scores(
        images=len(right["prototype_model"]),
        classes=len(restricted.found["prototype_model"]),
        accuracy=_means(right),
        agreement=_means(agree),
        logit_share=None if shares is None else median_share(shares),
        restricted={
            "accuracy": _means(_joined(restricted.right)),
            "agreement": _means(_joined(restricted.agree)),
        },
        max_abs_logit_difference=exactness.absolute,
        relative_difference=exactness.relative,
        per_class=everywhere.per_class(),
        intervals={
            "accuracy": {n: list(bootstrap_interval(v.numpy(), seed=seed)) for n, v in right.items()},
            "agreement": {n: list(bootstrap_interval(v.numpy(), seed=seed)) for n, v in agree.items()},
        },
        multi_label=everywhere.multi_label,
    )


def _joined(found: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat(values) for name, values in found.items()}


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value.mean()) for name, value in values.items()}
