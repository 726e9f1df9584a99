"""How samples lie around their mean: variance and principal directions, with weights."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Weighted mean and covariance of samples; the covariance is directions^T diag(variances) directions."""

    mean: Tensor
    """(D,)"""
    variances: Tensor
    """(k,) in falling order, above zero."""
    directions: Tensor
    """(k, D) orthonormal."""

    @property
    def total(self) -> float:
        """Mean squared distance of the samples from their mean."""
        return float(self.variances.sum())

    def positions(self, rows: Tensor) -> Tensor:
        """(N, k) places of samples (N, D) along the directions."""
        return (rows - self.mean) @ self.directions.mT


def spread_of(rows: Tensor, weights: Tensor | None = None) -> Spread:
    """Mean and covariance of samples (N, D) with weights (N,) >= 0 that are not all zero; all equal if None.

    The largest entry of each direction is positive.

    >>> found = spread_of(torch.tensor([[0.0, 1.0], [4.0, 1.0], [9.0, 9.0]]), torch.tensor([1.0, 1.0, 0.0]))
    >>> found.mean.tolist(), round(found.total, 4), found.directions.abs().tolist()
    ([2.0, 1.0], 4.0, [[1.0, 0.0]])
    """
    weights = torch.ones(len(rows)) if weights is None else weights
    shares = (weights / weights.sum()).to(rows)
    mean = shares @ rows
    _, sizes, directions = torch.linalg.svd(shares.sqrt()[:, None] * (rows - mean), full_matrices=False)
    kept = sizes > 1e-6 * max(float(sizes.max()), torch.finfo(rows.dtype).tiny)
    directions = directions[kept]
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return Spread(mean=mean, variances=sizes[kept].square(), directions=directions * largest.sign())
