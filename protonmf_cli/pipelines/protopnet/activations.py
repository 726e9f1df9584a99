"""One pass over labelled images that keeps each image's nearest patch to each prototype."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet
from protonmf_cli.pipelines.progress import SILENT, Progress


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What a ProtoPNet's last layer reads, for N images."""

    distance: Tensor
    """(N, P) float32 smallest distance of each image to each prototype."""
    row: Tensor
    """(N, P) int32 the nearest patch."""
    labels: Tensor
    """(N,) int64"""
    images: tuple[ImageSource, ...]
    skipped: tuple[Skipped, ...]

    def of(self, prototypes: list[int]) -> Self:
        """The same images with some of the prototypes."""
        return replace(self, distance=self.distance[:, prototypes], row=self.row[:, prototypes])


def read_activations(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Iterable[ImageBatch],
    prototypes: Tensor | None = None,
    progress: Progress = SILENT,
) -> Activations:
    """Smallest distances of labelled images, in evaluation mode.

    Args:
        net, backbone: the network, and how it reads images.
        batches: labelled images.
        prototypes: (P, R) other prototypes than the network's own.

    Raises:
        InputError: no image could be read.
    """
    basis = net.prototypes if prototypes is None else prototypes
    return compare_activations(net, backbone, batches, [basis], progress)[0]


def compare_activations(
    net: ProtoPNet,
    backbone: Backbone,
    batches: Iterable[ImageBatch],
    sets: Sequence[Tensor],
    progress: Progress = SILENT,
) -> list[Activations]:
    """The same for several sets of prototypes (P, R) in one pass over the images."""
    bases = [basis.detach().to(backbone.device) for basis in sets]
    distances: list[list[Tensor]] = [[] for _ in bases]
    rows: list[list[Tensor]] = [[] for _ in bases]
    labels: list[int] = []
    images: list[ImageSource] = []
    skipped: list[Skipped] = []
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        skipped += batch.skipped
        if not batch.sources:
            continue
        latent = backbone.read(batch.crops).rows.float()
        for number, basis in enumerate(bases):
            with torch.inference_mode():
                distance = net.distances_to(latent, basis)
                place = distance.argmin(dim=1)
                distances[number].append(distance.gather(1, place[:, None])[:, 0].cpu())
            rows[number].append(place.int().cpu())
        labels += [batch.class_index] * len(batch.sources)
        images += batch.sources
    if not images:
        raise InputError("no image of the data could be read")
    return [
        Activations(
            distance=torch.cat(distance),
            row=torch.cat(row),
            labels=torch.tensor(labels),
            images=tuple(images),
            skipped=tuple(skipped),
        )
        for distance, row in zip(distances, rows, strict=True)
    ]


def right_answers(net: ProtoPNet, activations: Activations, head: Tensor | None = None) -> Tensor:
    """(N,) float64, 1 where the top class is the label, with the network's last layer or another one (C, P)."""
    weights = (net.head if head is None else head).detach().cpu()
    top = (net.similarities(activations.distance) @ weights.mT).argmax(dim=1)
    return (top == activations.labels).double()


def accuracy(net: ProtoPNet, activations: Activations, head: Tensor | None = None) -> float:
    """Share of images whose top class is their label, with the network's last layer or another one (C, P)."""
    return float(right_answers(net, activations, head).mean())
