"""First and second moments of pooled rows, streamed class by class."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass
class Moments:
    """Sums over images: memory D x D however many images there are."""

    count: int
    total: Tensor
    """(D,) float64, sum of the pooled rows."""
    products: Tensor
    """(D, D) float64, sum of their outer products."""

    @classmethod
    def empty(cls, width: int) -> Self:
        """No image yet."""
        return cls(0, torch.zeros(width, dtype=torch.float64), torch.zeros(width, width, dtype=torch.float64))

    def add(self, pooled: Tensor) -> None:
        """Count the images with pooled rows (n, D)."""
        pooled = pooled.double()
        self.count += len(pooled)
        self.total += pooled.sum(dim=0)
        self.products.addmm_(pooled.mT, pooled)

    @property
    def mean(self) -> Tensor:
        """(D,)"""
        return self.total / max(1, self.count)

    @property
    def covariance(self) -> Tensor:
        """(D, D)

        >>> moments = Moments.empty(1)
        >>> moments.add(torch.tensor([[1.0], [3.0]]))
        >>> moments.mean.item(), moments.covariance.item()
        (2.0, 1.0)
        """
        return self.products / max(1, self.count) - torch.outer(self.mean, self.mean)

    @property
    def root(self) -> Tensor:
        """(D, r) H with H H^T = covariance, r its rank up to rounding; r = 0 when all images are alike.

        >>> moments = Moments.empty(2)
        >>> moments.add(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        >>> moments.root.abs().tolist()
        [[1.0], [0.0]]
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        rounding = 1e-14 * float(self.products.diagonal().sum()) / max(1, self.count)
        kept = values > max(1e-12 * float(values[-1]), rounding)
        return vectors[:, kept] * values[kept].sqrt()


@dataclass(frozen=True, kw_only=True)
class Metric:
    """How much a difference d of two head rows matters: ||project(d)||^2 = variance of x . d over weighted images."""

    shared: Tensor
    """(D, r) float64, the part of all images; the same for every class."""
    extra: Tensor
    """(D, e) float64, the part of one class."""
    mean: Tensor
    """(D,) float64, the mean pooled row under the same weights."""

    def project(self, vectors: Tensor) -> Tensor:
        """(m, D) vectors as (m, r + e) features whose inner products are weighted covariances."""
        return torch.cat([vectors @ self.shared, vectors @ self.extra], dim=1)


def class_metric(shared: Tensor, mean: Tensor, pooled: Tensor, own_weight: float, *, rank: int | None = None) -> Metric:
    """The images of all classes with weight 1 - w, and those of one class with weight w on top.

    The covariance of the mixture is (1 - w) S + w S_c + w (1 - w) (m_c - m)(m_c - m)^T.

    Args:
        shared: sqrt(1 - w) H (D, r) with H H^T = S, the covariance over all images.
        mean: m (D,) over all images.
        pooled: (n, D) pooled rows of the class.
        own_weight: w in [0, 1].
        rank: keep only so many leading directions of the class's own covariance (enough to choose by).
    """
    pooled = pooled.double()
    own_mean = pooled.mean(dim=0)
    centred = (pooled - own_mean).mT / max(1, len(pooled)) ** 0.5
    if rank is not None and rank < centred.shape[1]:
        values, vectors = torch.linalg.eigh(centred.mT @ centred)
        centred = centred @ vectors[:, values.argsort(descending=True)[:rank]]
    shift = (own_mean - mean)[:, None]
    extra = torch.cat([own_weight**0.5 * centred, (own_weight * (1 - own_weight)) ** 0.5 * shift], dim=1)
    return Metric(shared=shared, extra=extra, mean=(1 - own_weight) * mean + own_weight * own_mean)
