"""A prototype's training patches in other images: where its part is, and nothing else of the picture."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

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


def patches_of(
    model: PrototypeModel, prototypes: Iterable[int], picture: Callable[[int], Tensor]
) -> dict[int, list[PartPatch]]:
    """Stored training patches of some prototypes, without those whose rows have no place.

    Args:
        model: with examples.
        prototypes: rows of the model.
        picture: uint8 (channels, height, width) of an example, by its number.
    """
    found = {}
    for prototype in prototypes:
        patches = []
        for example in model.examples.of(prototype):
            pixels = picture(example)
            region = strongest_region(model.examples.map[example], (pixels.shape[1], pixels.shape[2]))
            if region.any():
                patches.append(PartPatch(pixels=pixels, region=region))
        if patches:
            found[prototype] = patches
    return found


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
