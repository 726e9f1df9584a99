"""Non-negative least squares for many rows and few unknowns."""

import torch
from torch import Tensor


def nonnegative_codes(A: Tensor, B: Tensor, *, tolerance: float = 1e-9, max_sweeps: int = 2000) -> Tensor:
    """Presence of fixed prototypes in new rows: min_{E >= 0} ||A - E B||_F^2.

    Cyclic coordinate descent on the p x p normal equations in float64; exact up to `tolerance`.

    Args:
        A: (N, D) rows, usually >= 0.
        B: (p, D) prototypes.
        tolerance: largest change in one sweep, relative to the largest code, at which to stop.
        max_sweeps: limit on sweeps over the p coordinates.

    Returns:
        (N, p) codes >= 0 with the dtype of A.

    Reference: Franc, Hlavac and Navara 2005 (sequential coordinate-wise NNLS).

    >>> nonnegative_codes(torch.tensor([[3.0, -1.0], [1.0, 2.0]]), torch.eye(2)).tolist()
    [[3.0, 0.0], [1.0, 2.0]]
    """
    cross = (A @ B.mT).double()
    gram = B.double() @ B.double().mT
    codes = torch.zeros_like(cross)
    if not codes.numel():
        return codes.to(A.dtype)
    for _ in range(max_sweeps):
        largest_change = torch.zeros((), dtype=torch.float64, device=A.device)
        for k in range(len(B)):
            if gram[k, k] <= 0:
                continue
            old = codes[:, k].clone()
            codes[:, k] = (old + (cross[:, k] - codes @ gram[k]) / gram[k, k]).clamp_min(0)
            largest_change = torch.maximum(largest_change, (codes[:, k] - old).abs().max())
        if largest_change <= tolerance * codes.max():
            break
    return codes.to(A.dtype)
