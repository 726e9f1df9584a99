"""Tensors at places in memory where results do not depend on the place."""

from torch import Tensor

ALIGNMENT = 64
"""Bytes; addresses of torch's own tensors on a CPU are multiples."""


def aligned(tensor: Tensor) -> Tensor:
    """The same where torch itself would place it: tensors of a file lie anywhere, and products of such tensors round
    differently on some processors."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
