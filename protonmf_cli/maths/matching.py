"""The same prototypes found twice: matching and cosine."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match_prototypes(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """One-to-one matching with the largest sum of cosines (Hungarian method).

    Args:
        first, second: (p, D) prototypes of unit norm.

    Returns:
        (p,) int64 row of `second` for each row of `first`, and (p,) float64 cosines.

    >>> partner, cosine = match_prototypes(torch.eye(2), torch.eye(2).flip(0))
    >>> partner.tolist(), cosine.tolist()
    ([1, 0], [1.0, 1.0])
    """
    cosine = first.double().cpu() @ second.double().cpu().mT
    row, column = linear_sum_assignment(cosine.numpy(), maximize=True)
    return torch.from_numpy(column), cosine[torch.from_numpy(row), torch.from_numpy(column)]


def split_stability(whole: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """How alike each prototype comes out of two halves of the images.

    Args:
        whole: (p, D) prototypes of all images.
        first, second: (p, D) prototypes of each half.

    Returns:
        (p,) cosine between the partners of each prototype in the two halves.
    """
    one, _ = match_prototypes(whole, first)
    two, _ = match_prototypes(whole, second)
    return (first.double().cpu()[one] * second.double().cpu()[two]).sum(dim=1)
