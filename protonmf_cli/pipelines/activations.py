"""One pass over labelled images that keeps each image's nearest patch to each prototype."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.images import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.protopnet import ProtoPNet
from protonmf_cli.pipelines.progress import SILENT, Progress


@dataclass(kw_only=True)
class _Passing:
    distance: list[Tensor] = field(default_factory=list)
    row: list[Tensor] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    images: list[ImageSource] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


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
    found = _Passing()
    basis = (net.prototypes if prototypes is None else prototypes).detach().to(backbone.device)
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        found.skipped += batch.skipped
        if not batch.sources:
            continue
        rows = backbone.read(batch.crops).rows.float()
        with torch.inference_mode():
            distance = net.distances_to(rows, basis)
            place = distance.argmin(dim=1)
            found.distance.append(distance.gather(1, place[:, None])[:, 0].cpu())
        found.row.append(place.int().cpu())
        found.labels += [batch.class_index] * len(batch.sources)
        found.images += batch.sources
    if not found.images:
        raise InputError("no image of the data could be read")
    return Activations(
        distance=torch.cat(found.distance),
        row=torch.cat(found.row),
        labels=torch.tensor(found.labels),
        images=tuple(found.images),
        skipped=tuple(found.skipped),
    )


def accuracy(net: ProtoPNet, activations: Activations, head: Tensor | None = None) -> float:
    """Share of images whose top class is their label, with the network's last layer or another one (C, P)."""
    weights = (net.head if head is None else head).detach().cpu()
    top = (net.similarities(activations.distance) @ weights.mT).argmax(dim=1)
    return float((top == activations.labels).double().mean())
