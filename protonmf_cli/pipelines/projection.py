"""ProtoPNet's push: every prototype becomes a latent patch of a training image of its class, in one pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.projection import distinct_patches
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.images import ImageBatch, ImageSource
from protonmf_cli.models.protopnet import ProtoPNet
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
    """The q nearest patches of each image of one class to each of its p prototypes."""

    distance: list[Tensor] = field(default_factory=list)
    """(q, p) per image"""
    row: list[Tensor] = field(default_factory=list)
    """(q, p) per image"""
    vector: list[Tensor] = field(default_factory=list)
    """(q, p, R) per image"""
    images: list[ImageSource] = field(default_factory=list)


def project(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Iterable[ImageBatch],
    *,
    distinct: bool,
    per_image: int,
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

    Raises:
        InputError: a class has fewer patches than prototypes.
    """
    prototypes = net.prototypes.detach().cpu().clone()
    sources: list[PatchSource | None] = [None] * len(prototypes)
    distance = torch.zeros(len(prototypes))
    for class_index, of_class in groupby(batches, key=lambda batch: batch.class_index):
        own = (net.owner == class_index).nonzero()[:, 0]
        found = _candidates(net, backbone, of_class, own, len(own) if distinct else 1, progress)
        if not len(own) or not found.images:
            continue
        near, rows = torch.stack(found.distance), torch.stack(found.row)
        if distinct:
            most = max(min(per_image, len(own)), -(-len(own) // len(found.images)))
            chosen = _distinct(near, rows, most, backbone.classes[class_index].shown)
        else:
            chosen = [(int(near[:, 0, k].argmin()), 0) for k in range(len(own))]
        for k, ((image, rank), j) in enumerate(zip(chosen, own.tolist(), strict=True)):
            prototypes[j] = found.vector[image][rank, k]
            sources[j] = PatchSource(image=found.images[image], row=int(rows[image, rank, k]))
            distance[j] = near[image, rank, k]
    return Projection(prototypes=prototypes, sources=tuple(sources), distance=distance)


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
    most: int,
    progress: Progress,
) -> _Candidates:
    """The nearest patches of every image, found on the device and kept on the CPU."""
    found = _Candidates()
    basis = net.prototypes.detach()[own.to(net.prototypes.device)]
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not batch.sources or not len(own):
            continue
        rows = backbone.read(batch.crops).rows.float()
        with torch.inference_mode():
            distance = net.distances_to(rows, basis)
            # a stable sort and argmin take the first position where several are equally near
            place = (
                distance.argmin(dim=1, keepdim=True) if most == 1 else distance.argsort(dim=1, stable=True)[:, :most]
            )
            near = distance.gather(1, place)
            vectors = rows[torch.arange(len(rows), device=rows.device)[:, None, None], place]
        found.distance += list(near.cpu())
        found.row += list(place.cpu())
        found.vector += list(vectors.cpu())
        found.images += batch.sources
    return found
