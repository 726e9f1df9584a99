"""ProtoPNet's push: every prototype becomes a latent patch of a training image of its class, in one pass."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.patch_assignment import distinct_patches
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet
from protonmf_cli.pipelines.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class PatchSource:
    """The training patch that a prototype became."""

    image: ImageSource
    row: int
    """Number of the patch in the latent map, row by row."""


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Where P prototypes went."""

    prototypes: Tensor
    """(P, R) float32, latent patches."""
    sources: tuple[PatchSource | None, ...]
    """None: the class has no images, the prototype stayed as it was."""
    distance: Tensor
    """(P,) to the patch it became, as the network's similarity measures it."""
    maps: Tensor | None
    """(P, T) similarity of every place of the source's image to the prototype before it went there, where asked for."""

    @property
    def images(self) -> int:
        """Different images among the sources."""
        return len({source.image for source in self.sources if source is not None})

    @property
    def duplicates(self) -> int:
        """Prototypes whose patch another prototype of the same class already has."""
        found = [(s.image, s.row) for s in self.sources if s is not None]
        return len(found) - len(set(found))


@dataclass
class _Candidates:
    """The q nearest patches of the images of one class to each of its p prototypes, batch by batch on the CPU."""

    distance: list[Tensor] = field(default_factory=list)
    """(B, q, p)"""
    row: list[Tensor] = field(default_factory=list)
    """(B, q, p)"""
    vector: list[Tensor] = field(default_factory=list)
    """(B, q, p, R)"""
    images: list[ImageSource] = field(default_factory=list)
    everywhere: list[Tensor] = field(default_factory=list)
    """(B, T, p) distance of every place, where maps are wanted."""


def project(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Iterable[ImageBatch],
    *,
    distinct: bool,
    per_image: int,
    maps: bool = False,
    progress: Progress = SILENT,
) -> Projection:
    """Find the patch that each prototype becomes; the network is not changed.

    Args:
        net: in evaluation mode.
        backbone: the same network, to read images.
        batches: training images, class after class.
        distinct: give every prototype of a class a patch of its own, at the least total distance; else each takes
            the nearest one, the first image and then the first position where several are equally near.
        per_image: most patches of one image with `distinct`, unless the class has too few images.
        maps: give back each source's map too.
        progress: is told images.

    Raises:
        InputError: a class has fewer patches than prototypes.
    """
    prototypes = net.prototypes.detach().cpu().clone()
    sources: list[PatchSource | None] = [None] * len(prototypes)
    distance = torch.zeros(len(prototypes))
    seen = torch.zeros(len(prototypes), math.prod(backbone.readout.grid or (1,))) if maps else None
    for class_index, of_class in groupby(batches, key=lambda batch: batch.class_index):
        own = (net.owner == class_index).nonzero()[:, 0]
        found = _candidates(net, backbone, of_class, own, per_image if distinct else None, maps, progress)
        if not len(own) or not found.images:
            continue
        near, rows = torch.cat(found.distance), torch.cat(found.row)
        if distinct:
            most = max(min(per_image, len(own)), -(-len(own) // len(found.images)))
            chosen = _distinct(near, rows, most, backbone.classes[class_index].shown)
            image, rank = (torch.tensor(numbers) for numbers in zip(*chosen, strict=True))
        else:
            image = near[:, 0].argmin(dim=0)
            rank = torch.zeros_like(image)
        number = torch.arange(len(own))
        prototypes[own.cpu()] = torch.cat(found.vector)[image, rank, number]
        distance[own.cpu()] = near[image, rank, number]
        if seen is not None:
            seen[own.cpu()] = net.similarities(torch.cat(found.everywhere)[image, :, number])
        row = rows[image, rank, number].tolist()
        for k, j in enumerate(own.tolist()):
            sources[j] = PatchSource(image=found.images[int(image[k])], row=row[k])
    return Projection(prototypes=prototypes, sources=tuple(sources), distance=distance, maps=seen)


def _distinct(near: Tensor, rows: Tensor, most: int, name: str) -> list[tuple[int, int]]:
    try:
        return distinct_patches(near[:, :most], rows[:, :most], most)
    except ValueError as failure:
        raise InputError(
            f"class {name} has {len(near)} images with {near.shape[1]} or more places each: too few different patches "
            f"for {near.shape[2]} prototypes. Give more images or a smaller -p."
        ) from failure


def _candidates(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Iterator[ImageBatch],
    own: Tensor,
    per_image: int | None,
    maps: bool,
    progress: Progress,
) -> _Candidates:
    """The nearest patches of every image, found on the device and kept on the CPU.

    As many as the class's prototypes may need of one image; only the nearest one without `per_image`.
    """
    found = _Candidates()
    most = 1
    basis = net.prototypes.detach()[own.to(net.prototypes.device)]
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources or not len(own):
            continue
        rows = backbone.read(batch.crops).rows.float()
        with torch.inference_mode():
            distance = net.distances_to(rows, basis)
            if per_image is not None and not found.images:
                # the first batch of a class is its largest: later images only lower what one must give
                most = min(distance.shape[1], max(per_image, -(-len(own) // len(rows))))
            near, place = _nearest(distance, most)
            vectors = rows[torch.arange(len(rows), device=rows.device)[:, None, None], place]
        found.distance.append(near.cpu())
        found.row.append(place.cpu())
        found.vector.append(vectors.cpu())
        found.images += batch.sources
        if maps:
            found.everywhere.append(distance.cpu())
    return found


def _nearest(distance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(B, q, p) the q smallest of (B, T, p) distances and their places, the first one where several are equal."""
    left, places = distance, []
    for number in range(count):
        places.append(left.argmin(dim=1, keepdim=True))
        if number + 1 < count:
            left = left.scatter(1, places[-1], torch.inf)
    place = torch.cat(places, dim=1)
    return distance.gather(1, place), place
