"""Non-negative least squares for many rows and few unknowns."""

import numpy as np
import scipy
import torch
from torch import Tensor

ITERATIONS = 100
"""Steps of the active-set method per unknown; it needs about one."""


def nonnegative_codes(A: Tensor, B: Tensor) -> Tensor:
    """Presence of fixed prototypes in new rows: min_{E >= 0} ||A - E B||_F^2, exactly.

    B^T = Q R once, then Lawson and Hanson's active-set method on R for every row of A Q, in float64 on the CPU.

    Args:
        A: (N, D) rows, usually >= 0.
        B: (p, D) prototypes.

    Returns:
        (N, p) codes >= 0 with the dtype and on the device of A.

    Reference: Lawson and Hanson 1974, chapter 23.

    >>> nonnegative_codes(torch.tensor([[3.0, -1.0], [1.0, 2.0]]), torch.eye(2)).tolist()
    [[3.0, 0.0], [1.0, 2.0]]
    """
    if not len(A) or not len(B):
        return A.new_zeros(len(A), len(B))
    directions, triangle = np.linalg.qr(B.detach().cpu().double().numpy().T)
    targets = A.detach().cpu().double().numpy() @ directions
    limit = ITERATIONS * len(B)
    codes = np.stack([scipy.optimize.nnls(triangle, target, maxiter=limit)[0] for target in targets])
    return torch.from_numpy(codes).to(A)
