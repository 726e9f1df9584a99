"""CLIP's image tower as a classifier: logits = scale x (unit image vector) . (unit text vector) + bias."""

import torch
from torch import Tensor, nn


class UnitNorm(nn.Module):
    """x / |x|, written as a norm by the root mean square over D entries whose scale is 1 / sqrt(D)."""

    weight: Tensor
    """(D,)"""
    eps = 0.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.full((width,), width**-0.5))

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, D) vectors of length one."""
        return nn.functional.rms_norm(vectors, self.weight.shape, self.weight, self.eps)


class ZeroShotClassifier(nn.Module):
    """An image tower, and the texts of the classes as rows of a linear layer."""

    def __init__(self, visual: nn.Module, width: int, classes: int) -> None:
        """
        Args:
            visual: pixels -> (B, D) image vectors.
            width: D.
            classes: C.
        """
        super().__init__()
        self.visual = visual
        self.norm = UnitNorm(width)
        self.texts = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C) logits."""
        found: Tensor = self.texts(self.norm(self.visual(pixels)))
        return found
