"""What one visit to a finished class measures of the model: on every image, against the network's own head."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import cancellation
from protonmf_cli.maths.metrics import median_share
from protonmf_cli.models.amounts import LEVELS, UsualImages
from protonmf_cli.models.answers import answers
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.models.prototype import ClassHead, PrototypeModel
from protonmf_cli.models.readouts.readout import SMALLEST_SPREAD
from protonmf_cli.pipelines.conversion.sums import BLOCK
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness, at_length_one

LOGITS = 2**24
"""Logits that are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One class's n images."""

    agree: int
    """Images whose top class is the network's; with several labels, of which both say this one or neither does."""
    right: int
    """Images whose top class is this one, or of which it is said."""
    spread: float
    """Of the logits, see `models.readouts.readout.spread`."""
    difference: float
    """At most so much do logits differ from those of the network's own head, for any of the images and any class."""
    shares: Tensor
    """(n,) logit shares, see `maths.metrics.logit_share`."""
    cancelled: Tensor
    """(n,) see `maths.amounts.cancellation`."""
    levels: Tensor | None
    """(LEVELS,) quantiles of the distances from usual images; None where the class has one image."""

    @property
    def residual_share(self) -> float | None:
        """Median over the images; None where it is not defined."""
        share = median_share(self.shares)
        return None if share is None else 1 - share


class TrainingFigures:
    """Measures classes, one after the other."""

    def __init__(self, model: PrototypeModel, backbone: Backbone, images: UsualImages | None) -> None:
        """
        Args:
            model: assembled.
            backbone: whose logits it follows; the logits are computed where it computes.
            images: what training images are like; None where nothing is said of that.
        """
        self.model = model
        self.measure = None if images is None else Unlikeness(model, images)
        head, readout = model.head_vectors(), backbone.readout
        off = (head - readout.vectors.cpu().double()).norm(dim=1) if len(head) else torch.zeros(1)
        self.off = float(off.max())
        device = torch.device("cpu") if backbone.device.type == "mps" else backbone.device  # which adds up in float64
        self.vectors = head.to(device, torch.float32)
        self.bias = (model.bias + model.intercept).to(device, torch.float32)
        among = model.active_classes
        self.compares = len(among) > 1
        self.mean_bias = self.bias[among].cpu().double().mean()
        self.mean, self.mean_residual = head[among].mean(dim=0), model.mean_residual

    def of_all(self, parts: Iterable[tuple[int, ClassPart]]) -> Iterator[tuple[int, ClassPart, Measured]]:
        """Classes that have prototypes, in their order; as many at once as have `BLOCK` images."""
        waiting: list[tuple[int, ClassPart]] = []
        for each in parts:
            waiting.append(each)
            if sum(len(part.images) for _, part in waiting) >= BLOCK:
                yield from self._together(waiting)
                waiting = []
        yield from self._together(waiting)

    def _together(self, parts: Sequence[tuple[int, ClassPart]]) -> Iterator[tuple[int, ClassPart, Measured]]:
        told = self._answers(parts) if parts else None
        for c, part in parts:
            assert told is not None
            count = len(part.images)
            own, told = told.split(count)
            yield c, part, self._measured(c, part, own)

    def _answers(self, parts: Sequence[tuple[int, ClassPart]]) -> "_Answers":
        """What the model answers to the images of some classes, with all its classes in float32."""
        found = []
        step = max(1, LOGITS // len(self.bias))
        images = torch.cat([part.pooled.sum(dim=1) for _, part in parts])
        asked = torch.cat([torch.full((len(part.images),), c) for c, part in parts]).to(self.vectors.device)
        for rows, own in zip(images.split(step), asked.split(step), strict=True):
            logits = torch.addmm(self.bias, rows.to(self.vectors), self.vectors.mT)
            best, probability = (torch.empty(len(rows), 0),) * 2 if self.measure is None else self.measure.best(logits)
            found.append(
                _Answers(
                    top=answers(logits, own, multi_label=self.model.multi_label).cpu(),
                    sums=logits.sum(dim=1, dtype=torch.float64).cpu(),
                    squares=torch.linalg.vector_norm(logits, dim=1, dtype=torch.float64).square().cpu(),
                    lengths=torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu(),
                    best=best,
                    probability=probability,
                )
            )
        return _Answers(
            **{each.name: torch.cat([getattr(one, each.name) for one in found]) for each in fields(_Answers)}
        )

    def _measured(self, class_index: int, part: ClassPart, answers: "_Answers") -> Measured:
        head, count = self.model.class_head(class_index), len(part.images)
        shares, cancelled, distances = [], [], []
        for start in range(0, count, BLOCK):
            some = slice(start, start + BLOCK)
            exact = part.pooled[some].double()
            if self.model.amounts is None:  # projections are of all rows
                exact = exact.sum(dim=1, keepdim=True)
            shares.append(self._shares(head, exact) if self.compares else torch.full((len(exact),), math.nan))
            cancelled.append(cancellation(exact[:, 0] @ (head.weights[:, None] * head.readers).mT).float())
            if self.measure is not None and count > 1:
                rows, grown = at_length_one(exact[:, 0]), count / (count - 1)
                best, probability = answers.best[some], answers.probability[some]
                distances.append(self.measure.mean_distances(rows, best, probability, left_out=(class_index, grown)))
        levels = torch.linspace(0, 1, LEVELS, dtype=torch.float64)
        return Measured(
            agree=int((answers.top == part.predicted).sum()),
            right=int((answers.top == class_index).sum()),
            spread=answers.spread(len(self.bias)),
            difference=self.off * float(answers.lengths.max()),
            shares=torch.cat(shares),
            cancelled=torch.cat(cancelled),
            levels=torch.cat(distances).quantile(levels) if distances else None,
        )

    def _shares(self, head: ClassHead, exact: Tensor) -> Tensor:
        """(n,) what prototypes and bias carry of the logit of images (n, S, D), against the mean over the classes."""
        vector, residual = head.vector - self.mean, head.residual - self.mean_residual
        size = exact.sum(dim=1) @ vector + head.bias + head.intercept - self.mean_bias
        left = exact[:, 0] @ residual
        if exact.shape[1] > 1 and self.model.amounts is not None:
            left = left + (exact[:, 1:].sum(dim=1) - self.model.amounts.unplaced_mean.double()) @ vector
        return torch.where(size == 0, math.nan, 1 - left / size)


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """Of n images, all on the CPU."""

    top: Tensor
    """(n,) int64 class; -1: not the image's own label."""
    sums: Tensor
    """(n,) of the logits."""
    squares: Tensor
    """(n,) sum of the squared logits."""
    lengths: Tensor
    """(n,) of the summed rows."""
    best: Tensor
    """(n, b) classes, see `Unlikeness.best`; (n, 0) where nothing is said of usual images."""
    probability: Tensor
    """(n, b)"""

    def split(self, count: int) -> "tuple[_Answers, _Answers]":
        """The first images, and the others."""
        pairs = {
            each.name: (getattr(self, each.name)[:count], getattr(self, each.name)[count:]) for each in fields(self)
        }
        first, second = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
        return _Answers(**first), _Answers(**second)

    def spread(self, classes: int) -> float:
        """Of all logits, see `models.readouts.readout.spread`."""
        count = len(self.sums) * classes
        mean, size = float(self.sums.sum()) / count, float(self.squares.sum()) / count
        found = max(math.sqrt(max(0.0, size - mean * mean)), SMALLEST_SPREAD * math.sqrt(size))
        return max(found, torch.finfo(torch.float32).tiny)
