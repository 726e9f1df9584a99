"""Where prototypes should lie, as terms of a loss: ProtoPNet (Chen et al. 2019, section 2.2) and few-shot models."""

import torch
from torch import Tensor

FAR = 1e9
"""Stands for "no such prototype" in a minimum."""


def nearest_own(distances: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """(B,) distance of each image to the nearest prototype of its class, from minimum distances (B, P)."""
    return distances.masked_fill(owner != labels[:, None], FAR).amin(dim=1)


def nearest_other(distances: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """(B,) distance of each image to the nearest prototype of any other class."""
    return distances.masked_fill(owner == labels[:, None], FAR).amin(dim=1)


def cluster_cost(distances: Tensor, labels: Tensor, owner: Tensor, most: float | None = None) -> Tensor:
    """Clst, image by image: every image should have a patch near one of its class's prototypes.

    Args:
        distances: (B, P) smallest distance of each image to each prototype.
        labels: (B,) classes.
        owner: (P,) class of each prototype.
        most: distances above it count as this, without gradient, as in the original code; None has no such limit.

    Returns:
        (B,)

    >>> d, y, owner = torch.tensor([[0.1, 0.7]]), torch.tensor([1]), torch.tensor([0, 1])
    >>> round(cluster_cost(d, y, owner).item(), 3), round(separation_cost(d, y, owner).item(), 3)
    (0.7, 0.1)
    """
    found = nearest_own(distances, labels, owner)
    return found if most is None else found.clamp_max(most)


def separation_cost(distances: Tensor, labels: Tensor, owner: Tensor, most: float | None = None) -> Tensor:
    """Sep without its sign: every image should be far from the prototypes of other classes; (B,).

    Where there is no other class's prototype it is zero, or `most` where that is given, as in the original code.
    """
    if most is None:
        found = nearest_other(distances, labels, owner)
        return torch.where(found < FAR, found, torch.zeros_like(found))
    return nearest_other(distances, labels, owner).clamp_max(most)


def other_class_mask(owner: Tensor, classes: int) -> Tensor:
    """(C, P) True where a weight joins a class with a prototype of another class."""
    return owner != torch.arange(classes, device=owner.device)[:, None]


def label_attraction(prototypes: Tensor, owner: Tensor, margin: float) -> Tensor:
    """Prototypes of equal label should lie together, those of different labels apart.

    The mean of |p_j - p_k|^2 over pairs of equal label, and the mean of max(0, margin - |p_j - p_k|)^2 over the others.

    Args:
        prototypes: (J, D)
        owner: (J,) labels.
        margin: distance beyond which different labels are far enough.

    >>> p = torch.tensor([[0.0], [1.0], [1.5]])
    >>> label_attraction(p, torch.tensor([0, 0, 1]), 2.0).item()  # 1 + (0.5^2 + 1.5^2) / 2
    2.25
    """
    first, second = torch.triu_indices(len(prototypes), len(prototypes), offset=1, device=prototypes.device)
    squared = (prototypes[first] - prototypes[second]).square().sum(dim=1)
    same = owner[first] == owner[second]
    total = prototypes.sum() * 0
    if same.any():
        total = total + squared[same].mean()
    if not same.all():
        total = total + (margin - squared[~same].clamp_min(1e-12).sqrt()).clamp_min(0).square().mean()
    return total
