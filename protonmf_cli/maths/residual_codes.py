"""Where the residual of a head row shows in an image."""

from torch import Tensor


def residual_codes(leftover: Tensor, residual: Tensor) -> Tensor:
    """min_h ||F - h R||^2 with one coefficient per row: h_n = F_n . R / R . R, as the problem separates over rows.

    Args:
        leftover: (N, D) F = A - E B, the part of the rows that the prototypes leave.
        residual: (D,) one class's R.

    Returns:
        (N,) residual codes h; zeros where R is zero.

    Reference: ProtoNMF, eq. 6.

    >>> import torch
    >>> residual_codes(torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([2.0, 0.0])).tolist()
    [1.0, 0.0]
    """
    size = residual @ residual
    return leftover @ residual / size if size > 0 else leftover.new_zeros(len(leftover))
