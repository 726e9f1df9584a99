"""Stored training patches held against the images that they are said to come from, and against the network."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Literal

import torch
from torch import Tensor

from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import SoftMatch
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import respond, similarity_maps
from protonmf_cli.pipelines.explaining.by_similarity import presence
from protonmf_cli.pipelines.progress import SILENT, Progress

LIKE_PICTURE = 0.97
"""Correlation of pixels from which a stored picture is its image's crop, compressed as conversions do."""
LOSS = 4.0
"""Grey levels (root mean square) that nobody sees: pictures that vary little correlate little."""
LIKE_MAP, LIKE_SIGNED_MAP = 0.9, 0.75
"""Correlation of maps, median over a prototype's patches, from which the network gives the maps that are stored. Where
these are a least-squares solution or similarities, honest files have 1.00; where halves of directions that were split
by sign were joined, and their overlap is lost, 0.94 to 1.00 (DeiT-tiny)."""
SETTLED = 1e-5
"""Tolerance of a factorisation from which its codes are no solution."""
LEFT = 1e-3
"""Share of a class as a whole that its parts may leave. Honest files have 6e-8 at most, a random vector 0.997."""
NEGATIVE = 1e-6
"""Of a prototype's length: entries below minus that are negative."""

Fault = Literal["source", "class", "picture", "map", "negative", "whole"]
Said = Literal["as said", "changed", "missing"]
WORDS: dict[Fault, str] = {
    "source": "images that are not there or have changed",
    "class": "images of another class",
    "picture": "pictures that are not their image",
    "map": "maps that the network does not give",
    "negative": "entries below zero",
    "whole": "wholes that are no sum of their parts",
}


@dataclass(frozen=True, kw_only=True)
class Reread:
    """The image that training patches name, as the data hold it now."""

    source: ImageSource
    said: Said
    """changed: another content under its name; missing: neither the name nor the content."""
    classes: tuple[int, ...] = ()
    """By which the data list it."""
    crop: Tensor | None = None
    """(channels, height, width) uint8; None where it could not be read."""
    reason: str = ""
    """Why not."""


@dataclass(frozen=True, kw_only=True)
class Patch:
    """One stored training patch."""

    image: Reread
    own_class: bool | None
    """Whether its image is of the class that the prototype was found in; None where that is not promised."""
    picture: float | None
    """Correlation of the pixels with those of the image's crop; None where there is no crop."""
    same_picture: bool | None
    """Not where the image cannot be read; None where it is missing."""
    map: float | None
    """Correlation of the map with the one that is read again; None where there is none, or both are flat."""


@dataclass(frozen=True, kw_only=True)
class CheckedPrototype:
    """One prototype and its patches, the strongest first."""

    prototype: int
    number: int
    """Within its class, see `PrototypeModel.number`."""
    owner: int
    patches: tuple[Patch, ...]
    negative: float | None
    """Share of its entries below zero; None where they may be."""
    left: float | None = None
    """Of a class as a whole the share of its length that no sum of its parts makes up; None of parts."""
    least_map: float | None = LIKE_MAP
    """That `map` has where all is well; None where it tells nothing, see `least_map`."""

    @property
    def map(self) -> float | None:
        """Median over the patches; None where no map was compared."""
        known = [patch.map for patch in self.patches if patch.map is not None]
        return median(known) if known else None

    @property
    def faults(self) -> tuple[Fault, ...]:
        """What is not as the file says."""
        found: dict[Fault, bool] = {
            "source": any(patch.image.said != "as said" for patch in self.patches),
            "class": any(patch.own_class is False for patch in self.patches),
            "picture": any(patch.same_picture is False for patch in self.patches),
            "map": self.map is not None and self.least_map is not None and self.map < self.least_map,
            "negative": bool(self.negative),
            "whole": self.left is not None and self.left > LEFT,
        }
        return tuple(name for name, there in found.items() if there)


def check_stored_patches(
    model: PrototypeModel,
    backbone: Backbone | None,
    images: Iterable[Reread],
    decode: Callable[[bytes, int], Tensor],
    encode: Callable[[Tensor], bytes],
    *,
    batch_size: int,
    progress: Progress = SILENT,
) -> tuple[CheckedPrototype, ...]:
    """Every prototype's patches against their images and the network.

    Args:
        model: of a file.
        backbone: its network; None: maps are not compared.
        images: every image that patches name, once, see `named_images`.
        decode: a JPEG file and its channels -> (channels, height, width) uint8.
        encode: the other way, as patches are stored: what is compressed alike has lost alike.
        batch_size: images per pass of the network.
        progress: is told each image.
    """
    wanted: dict[ImageSource, list[int]] = {}
    for number, source in enumerate(model.examples.sources):
        wanted.setdefault(source, []).append(number)
    found: dict[int, Patch] = {}
    pending = iter(images)
    while batch := list(islice(pending, batch_size)):
        maps = {} if backbone is None else dict(_maps_again(model, backbone, batch, wanted))
        for image in batch:
            for n in wanted[image.source]:
                found[n] = _patch(model, n, image, _pictures(model, n, image, decode, encode), maps.get(n))
            progress.advance()
    return tuple(_checked(model, j, found) for j in range(len(model.prototypes)))


def named_images(model: PrototypeModel) -> list[ImageSource]:
    """The images that stored patches are said to come from, each once."""
    return list(dict.fromkeys(model.examples.sources))


def _checked(model: PrototypeModel, prototype: int, patches: Mapping[int, Patch]) -> CheckedPrototype:
    vector, length = model.prototypes[prototype], model.prototypes[prototype].norm()
    promised = is_nonnegative(model) and not model.wholes[prototype]
    return CheckedPrototype(
        prototype=prototype,
        number=model.number(prototype),
        owner=int(model.owner[prototype]),
        patches=tuple(patches[n] for n in model.examples.of(prototype)),
        negative=float((vector < -NEGATIVE * length).float().mean()) if promised else None,
        left=_left_by_parts(model, prototype) if model.wholes[prototype] else None,
        least_map=least_map(model),
    )


def _left_by_parts(model: PrototypeModel, whole: int) -> float:
    vector, parts = model.prototypes[whole].double(), model.prototypes[model.own(int(model.owner[whole]))].double()
    left = vector - nonnegative_codes(vector[None], parts)[0] @ parts
    return float(left.norm() / vector.norm())


def least_map(model: PrototypeModel) -> float | None:
    """Correlation of stored maps with what the network gives that honest files of a kind have; None where
    multiplicative updates stopped on the way, as ProtoNMF's printed rule does (-0.08 to 0.85 of honest files)."""
    if not model.adds_up:
        return LIKE_MAP
    rule = model.card.stored_options.get("nmf")
    if isinstance(rule, Mapping) and (rule.get("solver") == "mu" or rule.get("tolerance", 0.0) > SETTLED):
        return None
    return LIKE_MAP if is_nonnegative(model) else LIKE_SIGNED_MAP


def is_nonnegative(model: PrototypeModel) -> bool:
    """Whether prototypes were found without entries below zero: conversions of rows that have none, or clip them."""
    return model.adds_up and (not splits_signs(model) or model.card.readout.clipped_share == 0)


def splits_signs(model: PrototypeModel) -> bool:
    """Whether a conversion factorises negative entries beside the positive ones; else it takes them as 0."""
    return model.card.stored_options.get("reconstruction") not in ("paper", "functional")


def _pictures(
    model: PrototypeModel,
    number: int,
    image: Reread,
    decode: Callable[[bytes, int], Tensor],
    encode: Callable[[Tensor], bytes],
) -> tuple[Tensor, Tensor] | None:
    """(channels, height, width) of the stored picture and of the image's crop, both once compressed."""
    if image.crop is None:
        return None
    seen = _of_member(model, int(model.examples.prototype[number]), image.crop)
    return decode(model.examples.picture(number), seen.shape[0]), decode(encode(seen), seen.shape[0])


def _patch(
    model: PrototypeModel, number: int, image: Reread, pictures: tuple[Tensor, Tensor] | None, again: Tensor | None
) -> Patch:
    prototype = int(model.examples.prototype[number])
    first = number == model.examples.of(prototype)[0]
    picture, same = None, None if image.said == "missing" else False
    if pictures is not None:
        stored, seen = (each.double() for each in pictures)
        picture = correlation(stored, seen)
        same = float((stored - seen).square().mean().sqrt()) <= LOSS
        same = same or (picture is not None and picture >= LIKE_PICTURE)
    promised = bool(image.classes) and _is_of_its_class(model, first=first)
    likeness = None
    if again is not None and not (first and model.card.stored_options.get("boxes_before_push")):
        likeness = _map_likeness(model.examples.map[number, : again.shape[0], : again.shape[1]], again)
    return Patch(
        image=image,
        own_class=int(model.owner[prototype]) in image.classes if promised else None,
        picture=picture,
        same_picture=same,
        map=likeness,
    )


def _is_of_its_class(model: PrototypeModel, *, first: bool) -> bool:
    """Whether a patch was looked for in the class of its prototype alone: all of a conversion, the first one of a
    pushed ProtoPNet (the others are the nearest of any class), none of a few-shot model."""
    if model.adds_up:
        return True
    if isinstance(model.evidence, SoftMatch):
        return False
    push = None if model.card.protopnet is None else model.card.protopnet.push
    return first and push is not None and not push.get("kept")


def _of_member(model: PrototypeModel, prototype: int, crop: Tensor) -> Tensor:
    """What the prototype's own network sees, of a crop that may hold several networks' beside each other."""
    if not model.card.members:
        return crop
    sizes = [member.preprocessing.input_size for member in model.card.members]
    member = model.network_of(prototype)
    start = sum(size[0] for size in sizes[:member])
    channels, height, width = sizes[member]
    return crop[start : start + channels, :height, :width]


def _maps_again(
    model: PrototypeModel, backbone: Backbone, images: Sequence[Reread], wanted: Mapping[ImageSource, Sequence[int]]
) -> Iterator[tuple[int, Tensor]]:
    """Number of a patch -> (h, w) map that the network gives now; none of classes as wholes and rows without place."""
    seen = [(image, image.crop) for image in images if image.crop is not None]
    if not seen:
        return
    rows = backbone.read(torch.stack([crop for _, crop in seen])).rows.cpu()
    for (image, _), each in zip(seen, rows, strict=True):
        of = {n: int(model.examples.prototype[n]) for n in wanted[image.source]}
        grids = {n: model.spaces[model.network_of(j)].grid for n, j in of.items() if not model.wholes[j]}
        numbers = [n for n, grid in grids.items() if grid is not None]
        prototypes = [of[n] for n in numbers]
        columns = _summed_maps(model, each, prototypes) if model.adds_up else _compared_maps(model, each, prototypes)
        for n, column in zip(numbers, columns, strict=True):
            yield n, column.reshape(grids[n] or (1, -1))


def _summed_maps(model: PrototypeModel, rows: Tensor, prototypes: Sequence[int]) -> list[Tensor]:
    """Codes of the places as the factorisation stored them: non-negative least squares on the class's prototypes."""
    (space,) = model.spaces
    placed = rows[: space.grid[0] * space.grid[1]] if space.grid else rows
    codes: dict[int, Tensor] = {}
    for c in {int(model.owner[j]) for j in prototypes}:
        own = model.own(c)
        found = nonnegative_codes(_signed(model, placed), _signed(model, model.prototypes[own]))
        codes |= dict(zip(own, found.mT, strict=True))
    return [codes[j] for j in prototypes]


def _signed(model: PrototypeModel, rows: Tensor) -> Tensor:
    """Rows as the factorisation saw them: negative entries beside the positive ones, or as 0."""
    rows = rows.double()
    return torch.cat([rows.clamp_min(0), (-rows).clamp_min(0)], dim=1) if splits_signs(model) else rows.clamp_min(0)


def _compared_maps(model: PrototypeModel, rows: Tensor, prototypes: Sequence[int]) -> list[Tensor]:
    if isinstance(model.evidence, SoftMatch):
        found = similarity_maps(model.exact, rows[None].double(), list(prototypes))[0]
        return [presence(column, None) for column in found.mT]
    if not model.card.members:
        return list(similarity_maps(model, rows[None].float(), list(prototypes))[0].mT)
    maps = respond(model, rows[None].float()).maps[0]
    spaces = [model.spaces[model.network_of(j)] for j in prototypes]
    return [maps[space.start : space.stop, j] for j, space in zip(prototypes, spaces, strict=True)]


def correlation(first: Tensor, second: Tensor) -> float | None:
    """Of two tensors' entries; None where one has the same everywhere, or is not finite."""
    a, b = (each.double().flatten() - each.double().mean() for each in (first, second))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if 0 < size < math.inf else None


def _map_likeness(stored: Tensor, again: Tensor) -> float | None:
    """Correlation; 0 where one of them alone is flat, None where both are or there is one place."""
    flat = [float(each.max() - each.min()) <= 1e-6 * float(each.abs().max()) for each in (stored, again)]
    if all(flat):
        return None
    return 0.0 if any(flat) else correlation(stored, again) or 0.0
