"""Augmented prototypes: how the residual is shared out, b~_j = b_j + (beta_j / a_j) R with sum_j beta_j = 1."""

from collections.abc import Callable

from torch import Tensor

WELL_DEFINED = 1e-2
"""Smallest |sum a| / sum |a| at which the paper's shares are accepted."""


def _min_norm(weights: Tensor, strength: Tensor) -> Tensor:
    return weights.square()


def _dynamic(weights: Tensor, strength: Tensor) -> Tensor:
    return weights.square() * strength


def _paper(weights: Tensor, strength: Tensor) -> Tensor:
    return weights


AUGMENTATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "min-norm": _min_norm,
    "dynamic": _dynamic,
    "paper": _paper,
}


def residual_shares(kind: str, weights: Tensor, strength: Tensor) -> Tensor | None:
    """Shares beta of one class.

    - "min-norm": beta_j ~ a_j^2, the smallest sum of squared changes of the prototypes.
    - "dynamic": beta_j ~ a_j^2 v_j with v_j the variance of prototype j's map over training rows. It minimises
      sum_j Var((beta_j / a_j) r.R) / v_j subject to sum beta = 1: the maps change least, each compared
      with its own variation (a convex form of the dynamic rule of Tan et al. 2024).
    - "paper": beta_j ~ a_j, every prototype gets the same vector (ProtoNMF, eq. 8).

    Args:
        kind: a key of `AUGMENTATIONS`.
        weights: (s,) head coefficients a.
        strength: (s,) variances v >= 0 of the maps.

    Returns:
        (s,) shares that sum to 1; None where the rule divides by a vanishing sum.

    >>> import torch
    >>> residual_shares("min-norm", torch.tensor([1.0, -3.0]), torch.ones(2)).mul(10).round().tolist()
    [1.0, 9.0]
    >>> residual_shares("paper", torch.tensor([1.0, -1.0]), torch.ones(2)) is None
    True
    """
    share = AUGMENTATIONS[kind](weights, strength)
    total, size = share.sum(), share.abs().sum()
    if not float(size) > 0 or abs(float(total)) < WELL_DEFINED * float(size):
        return None
    return share / total
