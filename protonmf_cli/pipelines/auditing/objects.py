"""How much of a prototype's maps lies outside the object, where the user says where that is."""

from collections.abc import Callable

import torch
from torch import Tensor

from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import similarity_maps, summed

ObjectOf = Callable[[str], Tensor]
"""Name of an image -> bool (height, width) of its crop: where the object is.

Raises InputError where that is not known.
"""


def place_maps(model: PrototypeModel, rows: Tensor, prototypes: list[int]) -> Tensor:
    """(B, T, p) >= 0 how much of some prototypes of one class the T places of images hold, from rows (B, T', D)."""
    (space,) = model.spaces
    assert space.grid is not None
    placed = rows[:, : space.grid[0] * space.grid[1]]
    if not model.adds_up:
        maps = similarity_maps(model, rows, prototypes)[:, : placed.shape[1]]
        return maps - maps.amin(dim=1, keepdim=True)
    owner = int(model.owner[prototypes[0]])
    chosen = model.weights.prototype[model.entries(owner)].tolist()
    readers = model.readers(owner)[[chosen.index(k) for k in prototypes]]
    flat = summed(model).presence(placed.reshape(-1, placed.shape[2]), readers)
    return flat.reshape(*placed.shape[:2], -1).clamp_min(0)


class Outside:
    """Adds up, image by image, what lies inside and outside the objects."""

    def __init__(self, model: PrototypeModel, objects: ObjectOf) -> None:
        self._model, self._objects = model, objects
        self._mass = torch.zeros(len(model.prototypes), 2, dtype=torch.float64)
        self._area: dict[int, list[float]] = {}

    def add(self, rows: Tensor, paths: tuple[str, ...], target: int) -> None:
        """Of images (B, T, D) of one class, whose own prototypes are looked at."""
        own = self._model.own(target)
        grid = self._model.spaces[0].grid
        if not own or grid is None:
            return
        masks = torch.stack([self._objects(path) for path in paths]).double()[:, None]
        inside = torch.nn.functional.adaptive_avg_pool2d(masks, grid).flatten(1).to(rows)
        maps = place_maps(self._model, rows, own)
        outside = (maps * (1 - inside)[:, :, None]).sum(dim=(0, 1))
        self._mass[own] += torch.stack([outside, maps.sum(dim=(0, 1))], dim=1).cpu().double()
        self._area.setdefault(target, []).extend((1 - inside).mean(dim=1).tolist())

    def of(self, prototype: int) -> float | None:
        """Share of a prototype's maps outside the objects of its class; None where nothing was seen of it."""
        outside, whole = self._mass[prototype].tolist()
        return outside / whole if whole > 0 else None

    def of_even_map(self, class_index: int) -> float | None:
        """The same of a map that is everywhere the same: the baseline."""
        area = self._area.get(class_index)
        return None if not area else sum(area) / len(area)
