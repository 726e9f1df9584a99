"""Features of unit length, and the share that each place of the image has in them.

A distance between raw features grows with their number and their unit; of features of length one only the direction
counts. Where feature maps of several layers are joined, each layer is a block that is normalised by itself, so that
no layer drowns another.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("none", "unit", "centred")


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """Features as they are, of length one, or of length one after a mean is taken off."""

    kind: str
    """One of `KINDS`."""
    mean: Tensor
    """(D,) taken off; zeros unless centred."""
    blocks: tuple[int, ...]
    """Widths of the joined layers, D in all."""

    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) normalised features (N, D); with L blocks each has length 1 / sqrt(L), a block of zeros stays so."""
        if self.kind == "none":
            return features
        centred = features - self.mean.to(features)
        return centred * self._factors(centred)

    def parts(self, rows: Tensor) -> Tensor:
        """(B, T, D) what each place adds to the normalised mean over T places of rows (B, T, D).

        >>> normaliser = Normaliser(kind="unit", mean=torch.zeros(2), blocks=(2,))
        >>> rows = torch.tensor([[[3.0, 0.0], [0.0, 4.0]]])
        >>> normaliser.parts(rows).sum(dim=1).tolist(), normaliser(rows.mean(dim=1)).tolist()
        ([[0.6..., 0.8...]], [[0.6..., 0.8...]])
        """
        if self.kind == "none":
            return rows / rows.shape[1]
        centred = (rows - self.mean.to(rows)) / rows.shape[1]
        return centred * self._factors(centred.sum(dim=1))[:, None]

    def _factors(self, centred: Tensor) -> Tensor:
        """(N, D) one over each block's length, times the root of the number of blocks."""
        lengths = torch.cat([block.norm(dim=1, keepdim=True).expand_as(block) for block in self._split(centred)], dim=1)
        safe = torch.where(lengths > 0, lengths, 1.0)  # a branch that is not taken has a gradient too
        return torch.where(lengths > 0, 1 / (safe * len(self.blocks) ** 0.5), 0.0)

    def _split(self, features: Tensor) -> Iterator[Tensor]:
        yield from features.split(self.blocks, dim=1)


def normaliser_of(features: Tensor, kind: str, blocks: tuple[int, ...] | None = None) -> Normaliser:
    """The normalisation that training features (N, D) decide; one block unless `blocks` says otherwise."""
    mean = features.mean(dim=0) if kind == "centred" else features.new_zeros(features.shape[1])
    return Normaliser(kind=kind, mean=mean, blocks=blocks or (features.shape[1],))
