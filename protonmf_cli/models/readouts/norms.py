"""The three normalisations of timm's heads, told apart by numbers and folded into rows."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class FoldedNorm:
    """A norm over D channels that sees one vector u per image; there it is affine with one scalar s(u).

    norm(u) = s(u) * scale * (u - mu(u)) + shift     (mu = 0 unless centred)
    """

    centred: bool
    unbiased: bool
    """Divides by the unbiased standard deviation ("simple" norm) instead of the root mean square."""
    scale: Tensor
    shift: Tensor
    eps: float

    @classmethod
    def identify(cls, module: nn.Module, inputs: Tensor, outputs: Tensor) -> Self | None:
        """The norm whose formula reproduces (B, D) outputs from (B, D) inputs, or None.

        Compared in the dtype of the inputs, which should be float64.
        """
        eps, weight, bias = (getattr(module, name, None) for name in ("eps", "weight", "bias"))
        if not isinstance(eps, float) or inputs.shape != outputs.shape:
            return None
        scale = torch.ones_like(inputs[0]) if weight is None else weight.detach().clone()
        shift = torch.zeros_like(inputs[0]) if bias is None else bias.detach().clone()
        if scale.shape != inputs[0].shape or shift.shape != inputs[0].shape:
            return None
        for centred, unbiased in ((True, False), (False, False), (False, True)):
            norm = cls(centred=centred, unbiased=unbiased, scale=scale, shift=shift, eps=eps)
            again = norm.rows(inputs[:, None], inputs)[:, 0] + shift
            if torch.allclose(again, outputs, rtol=1e-10, atol=1e-10 * float(outputs.abs().max())):
                return norm
        return None

    def rows(self, parts: Tensor, whole: Tensor) -> Tensor:
        """Parts (B, T, D) of a vector (B, D) as they pass the norm of the whole: without the shift, they add up."""
        if self.unbiased:
            power = whole.var(dim=-1, unbiased=True)
        else:
            power = (whole - whole.mean(dim=-1, keepdim=True) if self.centred else whole).square().mean(dim=-1)
        if self.centred:
            parts = parts - parts.mean(dim=-1, keepdim=True)
        return parts * (power + self.eps).rsqrt()[:, None, None] * self.scale
