"""Augmented prototypes: how the residual is shared out, b~_j = b_j + (beta_j / a_j) R with sum_j beta_j = 1."""

from collections.abc import Callable

import torch
from torch import Tensor

WELL_DEFINED = 1e-2
"""Smallest |sum a| / sum |a| at which the paper's shares are accepted."""


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {"min-norm": torch.square, "paper": torch.clone}


def residual_shares(kind: str, weights: Tensor) -> Tensor | None:
    """Shares beta of one class.

    - "min-norm": beta_j ~ a_j^2, the smallest sum of squared changes of the prototypes.
    - "paper": beta_j ~ a_j, every prototype gets the same vector (ProtoNMF, eq. 8).

    Args:
        kind: a key of `AUGMENTATIONS`.
        weights: (s,) head coefficients a.

    Returns:
        (s,) shares that sum to 1; None where the rule divides by a vanishing sum.

    >>> residual_shares("min-norm", torch.tensor([1.0, -3.0])).mul(10).round().tolist()
    [1.0, 9.0]
    >>> residual_shares("paper", torch.tensor([1.0, -1.0])) is None
    True
    """
    share = AUGMENTATIONS[kind](weights)
    total, size = share.sum(), share.abs().sum()
    if not float(size) > 0 or abs(float(total)) < WELL_DEFINED * float(size):
        return None
    return share / total
