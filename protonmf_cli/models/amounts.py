"""What a model that reads amounts keeps beside its prototypes."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import LEAST_RIDGE
from protonmf_cli.models.aligned import aligned
from protonmf_cli.models.evidence_kind import EvidenceKind

QUANTILES = (0.05, 0.5, 0.95)
"""Of a prototype's amounts in the training images of its own class; the middle one is the unit: it is 1."""
PEAK = 0.5
"""Quantile, over those images, of the largest amount at one place."""

LEVELS = 21
"""Quantiles of distances that are kept: 0, 5, ..., 100 %."""


@dataclass(frozen=True, kw_only=True)
class UsualImages:
    """What training images of the A classes with prototypes are like, rising; see `pipelines.explaining.unlikeness`."""

    mean: Tensor
    """(A, D) float32, mean of the images, each the sum of its rows with a place at length one."""
    covariance: Tensor
    """(F,) float32, of the amounts in the order of the ledger, (s, s) class after class: how images of one class vary
    around their mean, over all classes."""
    rest: Tensor
    """(A,) float32, mean squared size of what the parts leave of these deviations."""
    distances: Tensor
    """(A, `LEVELS`) float32 quantiles of the distances of the class's training images, each left out of its class's
    mean; zeros where there was one image."""

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Distance of the middle training image, and what one in twenty is above; zeros where none is at a distance."""
        known = self.distances[self.distances[:, -1] > 0].double().flatten()
        if not len(known):
            return 0.0, 0.0
        middle, limit = (float(known.quantile(level)) for level in (0.5, 0.95))
        return middle, limit

    def scaled(self, distance: Tensor) -> Tensor:
        """Distances so that 0 is the middle training image, and 1 is what one in twenty is above."""
        middle, limit = self.scale
        return (distance - middle) / (limit - middle)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same with its tensors moved."""
        return replace(self, **{each.name: getattr(self, each.name).to(device, dtype) for each in fields(self)})


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How amounts are read, and which ones are usual."""

    kind: ClassVar[Literal[EvidenceKind.AMOUNTS]] = EvidenceKind.AMOUNTS
    ridge: float
    """Of the least squares, see `maths.amounts.dual`."""
    usual: Tensor
    """(P, 4) float32: `QUANTILES` of the amounts in the own class's training images, then the `PEAK` of their maps;
    NaN-free, zeros where nothing was measured."""
    unplaced_mean: Tensor
    """(D,) float32 mean, over the training images, of the sum of the rows without a place; zeros where there are none,
    or where no row has a place and all are read."""

    edit_readers: Tensor
    """(P, D) float32 e_k with e_k . b_k = 1: what an edit of every class takes a prototype out with."""
    images: UsualImages | None = None
    """Which images are usual; None in older files, and where there was one image per class."""

    @property
    def added_ridge(self) -> float:
        """What the least squares add to the cosines of prototypes with themselves."""
        return max(self.ridge, LEAST_RIDGE)

    def range_of(self, prototype: int) -> tuple[float, float]:
        """The usual amounts of a prototype: from one in twenty to nineteen in twenty of its class's images."""
        low, _, high, _ = self.usual[prototype].tolist()
        return low, high

    def peak_of(self, prototype: int) -> float | None:
        """The usual largest amount at one place; None where it was not measured."""
        peak = float(self.usual[prototype, 3])
        return peak if peak > 0 else None

    def presence(self, rows: Tensor, readers: Tensor) -> Tensor:
        """(T, s) what maps show: the amount at each of the places (T, D), which adds up to the evidence."""
        return rows @ readers.mT

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """The same with its tensors moved."""
        return replace(
            self,
            usual=aligned(self.usual.to(device, dtype)),
            unplaced_mean=aligned(self.unplaced_mean.to(device, dtype)),
            edit_readers=aligned(self.edit_readers.to(device, dtype)),
            images=self.images and self.images.to(device, dtype),
        )
