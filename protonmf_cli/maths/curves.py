"""Deletion and insertion: how fast a class's probability falls or rises as pixels go in a given order."""

import torch
from torch import Tensor


def masks_by_rank(relevance: Tensor, steps: int) -> Tensor:
    """Masks of the most relevant pixels, in equal steps from none to all.

    Args:
        relevance: (H, W)
        steps: number of steps S.

    Returns:
        (S + 1, H, W) bool; mask k holds the k / S most relevant pixels.

    >>> masks_by_rank(torch.tensor([[3.0, 1.0]]), 2).int().tolist()
    [[[0, 0]], [[1, 0]], [[1, 1]]]
    """
    order = relevance.flatten().argsort(descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    limits = torch.linspace(0, len(order), steps + 1, device=order.device).round()
    return (rank < limits[:, None]).reshape(steps + 1, *relevance.shape)


def area_under(values: Tensor) -> float:
    """Area under a curve sampled at equal steps of [0, 1] (trapezoids).

    >>> area_under(torch.tensor([1.0, 0.0]))
    0.5
    """
    return float(torch.trapezoid(values.double(), dx=1 / (len(values) - 1)))
