"""What one visit to a finished class measures of the model: on every image, against the network's own head."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import cancellation
from protonmf_cli.maths.metrics import median_share
from protonmf_cli.models.amounts import LEVELS, UsualImages
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
    """Images whose top class is the network's."""
    right: int
    """Images whose top class is this one."""
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

    def of(self, class_index: int, part: ClassPart) -> Measured:
        """One class that has prototypes."""
        head, count = self.model.class_head(class_index), len(part.images)
        step = min(BLOCK, max(1, LOGITS // len(self.bias)))
        blocks = [
            self._of_images(class_index, head, pooled, predicted, count)
            for pooled, predicted in zip(part.pooled.split(step), part.predicted.split(step), strict=True)
        ]
        agree, right, total, squares = torch.tensor([block.counts for block in blocks], dtype=torch.float64).sum(dim=0)
        mean, size = float(total) / count / len(self.bias), float(squares) / count / len(self.bias)
        spread = max(math.sqrt(max(0.0, size - mean * mean)), SMALLEST_SPREAD * math.sqrt(size))
        distances = torch.cat([block.distances for block in blocks])
        levels = torch.linspace(0, 1, LEVELS, dtype=torch.float64)
        return Measured(
            agree=int(agree),
            right=int(right),
            spread=max(spread, torch.finfo(torch.float32).tiny),
            difference=self.off * max(block.longest for block in blocks),
            shares=torch.cat([block.shares for block in blocks]),
            cancelled=torch.cat([block.cancelled for block in blocks]),
            levels=distances.quantile(levels) if len(distances) and count > 1 else None,
        )

    def _of_images(self, class_index: int, head: ClassHead, pooled: Tensor, predicted: Tensor, count: int) -> "_Block":
        """Some images of a class of `count`."""
        whole = pooled.sum(dim=1)
        logits = torch.addmm(self.bias, whole.to(self.vectors), self.vectors.mT)
        top = logits.argmax(dim=1).cpu()
        agree, right = int((top == predicted).sum()), int((top == class_index).sum())
        exact = pooled.double() if self.model.amounts is not None else whole[:, None].double()
        read = exact[:, 0]
        contributions = read @ (head.weights[:, None] * head.readers).mT
        distances = torch.empty(0, dtype=torch.float64)
        if self.measure is not None and count > 1:
            best = self.measure.best(logits)
            left_out = class_index, count / (count - 1)
            distances = self.measure.mean_distances(at_length_one(read), *best, left_out=left_out)
        return _Block(
            counts=(agree, right, float(logits.sum(dtype=torch.float64)), _squares(logits)),
            longest=float(torch.linalg.vector_norm(whole, dim=1, dtype=torch.float64).max()),
            shares=self._shares(head, exact) if self.compares else torch.full((len(whole),), math.nan),
            cancelled=cancellation(contributions).float(),
            distances=distances,
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
class _Block:
    """Of some images of a class."""

    counts: tuple[int, int, float, float]
    """Images that agree and that are right; sum of the logits and of their squares."""
    longest: float
    """Largest length of an image's summed rows."""
    shares: Tensor
    cancelled: Tensor
    distances: Tensor


def _squares(logits: Tensor) -> float:
    return float(torch.linalg.vector_norm(logits, dtype=torch.float64).square())
