"""How like a prototype each latent patch is: distances and the similarities made of them.

Reference: Chen et al. 2019, "This looks like that", section 2.1; cosine: Willard et al. 2024, ProtoPNeXt.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

EPSILON = 1e-4
"""Added to the distance under the logarithm; the log similarity is at most log(1 / EPSILON)."""


def patches(features: Tensor, shape: tuple[int, int]) -> Tensor:
    """Every patch of a feature map as one row.

    Args:
        features: (B, D, h, w).
        shape: height and width (h1, w1) of a patch.

    Returns:
        (B, T, D h1 w1) with T = (h - h1 + 1)(w - w1 + 1), positions row by row, channels slowest within a row.

    >>> patches(torch.arange(4.0).reshape(1, 1, 2, 2), (1, 2)).tolist()
    [[[0.0, 1.0], [2.0, 3.0]]]
    """
    if shape == (1, 1):
        return features.flatten(2).mT
    return functional.unfold(features, shape).mT


def squared_distances(rows: Tensor, prototypes: Tensor) -> Tensor:
    """max(|z|^2 + (-2 z.p + |p|^2), 0), in this order, as the original code adds.

    Args:
        rows: (B, T, R) float32 or float64; half precision is too coarse near zero.
        prototypes: (P, R).

    Returns:
        (B, T, P)
    """
    products = rows @ prototypes.mT
    size = rows.square().sum(dim=-1, keepdim=True)
    return (size + (-2 * products + prototypes.square().sum(dim=1))).clamp_min(0)


def cosine_distances(rows: Tensor, prototypes: Tensor) -> Tensor:
    """1 - cosine, in [0, 2]: (B, T, P) for rows (B, T, R) and prototypes (P, R)."""
    return 1 - seen_by(rows, "cosine") @ seen_by(prototypes, "cosine").mT


def seen_by(vectors: Tensor, similarity: str) -> Tensor:
    """Vectors (..., R) without what a similarity does not see: of unit norm for the cosine."""
    return functional.normalize(vectors, dim=-1) if similarity == "cosine" else vectors


def distances(rows: Tensor, prototypes: Tensor, similarity: str) -> Tensor:
    """(B, T, P) distances that belong to a similarity."""
    return (cosine_distances if similarity == "cosine" else squared_distances)(rows, prototypes)


SIMILARITIES: dict[str, Callable[[Tensor], Tensor]] = {
    "log": lambda d: torch.log((d + 1) / (d + EPSILON)),
    "linear": lambda d: -d,
    "cosine": lambda d: 1 - d,
}
"""Similarity of a distance; each falls as the distance grows, so the best patch is the nearest one."""
