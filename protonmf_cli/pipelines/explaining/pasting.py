"""A prototype's training patches in other images: where its part is, and nothing else of the picture."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.prototype import PrototypeModel

LARGEST = 1 / 6
"""Most of a picture that is pasted: half a picture of any class takes its class along."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PartPatch:
    """A region of one training picture."""

    pixels: Tensor
    """uint8 (channels, height, width) the whole picture."""
    region: Tensor
    """bool (height, width) what is pasted of it."""

    def on(self, crop: Tensor) -> Tensor:
        """The crop (channels, height, width) with the region at its own place."""
        return torch.where(self.region, self.pixels, crop)


class TrainingPatches:
    """The stored training patches of a model of one network; their pictures are decoded when they are asked for."""

    def __init__(self, model: PrototypeModel, picture: Callable[[int], Tensor]) -> None:
        """Prepare for a model.

        Args:
            model: with examples.
            picture: uint8 (channels, height, width) of an example, by its number.
        """
        self._examples, self._kind, self._picture = model.examples, model.evidence.kind, picture
        self._last: tuple[int, PartPatch] | None = None

    def numbers(self, prototype: int) -> list[int]:
        """Examples of a prototype, the strongest first, without those whose rows have no place."""
        maps = self._examples.map
        return [n for n in self._examples.of(prototype) if pasted_places(self._kind, maps[n].numpy()).any()]

    def of(self, example: int) -> PartPatch:
        """One of them; the last one that was asked for is at hand."""
        if self._last is None or self._last[0] != example:
            pixels, grid = self._picture(example), self._kind.drawn(self._examples.map[example].numpy())
            region = strongest_region(torch.from_numpy(grid), (pixels.shape[1], pixels.shape[2]))
            self._last = example, PartPatch(pixels=pixels, region=region)
        return self._last[1]


def patches_of(
    model: PrototypeModel, prototypes: Iterable[int], picture: Callable[[int], Tensor]
) -> dict[int, list[PartPatch]]:
    """All training patches of some prototypes, see `TrainingPatches`; without prototypes that have none."""
    patches = TrainingPatches(model, picture)
    found = {prototype: [patches.of(n) for n in patches.numbers(prototype)] for prototype in prototypes}
    return {prototype: each for prototype, each in found.items() if each}


def pasted_places(kind: EvidenceKind, grid: np.ndarray) -> Tensor:
    """bool (h, w) the places of a stored map (h, w) that are pasted."""
    if not grid.size:
        return torch.zeros(grid.shape, dtype=torch.bool)
    return strongest_region(torch.from_numpy(kind.drawn(grid)), (grid.shape[0], grid.shape[1]))


def strongest_region(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """bool (height, width) of a picture: the strongest places above zero of a map (h, w), at most `LARGEST` of it.

    >>> strongest_region(torch.tensor([[0.0, 1.0], [0.0, 3.0]] * 3), (6, 2)).sum().item()
    2
    """
    values = grid.flatten()
    strongest = torch.zeros(len(values))
    strongest[values.argsort(descending=True, stable=True)[: int(LARGEST * len(values))]] = 1
    strongest[values <= 0] = 0
    if not strongest.any():
        return torch.zeros(size, dtype=torch.bool)
    cells = strongest.reshape(1, 1, *grid.shape)
    return torch.nn.functional.interpolate(cells, size=size, mode="nearest-exact")[0, 0] > 0
