"""From images to the pooled features that a few-shot model is fitted to."""

from collections.abc import Iterable

import torch
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.readouts.pooled_features import PooledFeatures
from protonmf_cli.models.soft_matching import Samples
from protonmf_cli.pipelines.progress import SILENT, Progress


def readout_of(backbone: Backbone) -> PooledFeatures:
    """How the network of a few-shot model is read."""
    assert isinstance(backbone.readout, PooledFeatures)
    return backbone.readout


def read_samples(
    backbone: Backbone, batches: Iterable[ImageBatch], progress: Progress = SILENT
) -> tuple[Samples, tuple[Skipped, ...]]:
    """The mean of each image's rows, and the images that could not be read.

    Args:
        backbone: network and readout.
        batches: labelled images.
        progress: told of every batch.
    """
    features: list[Tensor] = []
    labels: list[int] = []
    sources: list[ImageSource] = []
    skipped: list[Skipped] = []
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        skipped += batch.skipped
        if not batch.sources:
            continue
        features.append(backbone.read(batch.crops).rows.float().mean(dim=1).cpu())
        labels += [batch.class_index] * len(batch.sources)
        sources += batch.sources
    width = backbone.readout.width
    samples = Samples(
        features=torch.cat(features) if features else torch.empty(0, width),
        labels=torch.tensor(labels, dtype=torch.int64),
        sources=tuple(sources),
    )
    return samples, tuple(skipped)
