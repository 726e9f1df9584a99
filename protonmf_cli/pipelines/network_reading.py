"""What the rows of a network look like on a few images, before anything is converted."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.readout import relative_difference
from protonmf_cli.pipelines.features import factorised_rows


@dataclass(frozen=True, kw_only=True)
class NetworkReading:
    """Figures of a few images."""

    relative_difference: float
    """Of the rows' logits from the network's own, in the network's number type."""
    clipped_share: float
    """Part of the squared rows to be factorised that lies below zero, which the factorisation does not see."""
    placed_share: float | None
    """Part of the predicted class's logit, against the mean of all classes, that rows with a place carry (median over
    the images); None without places, with one class, or where there is nothing to carry."""


def read_network(backbone: Backbone, crops: Tensor) -> NetworkReading:
    """Read uint8 crops (B, channels, height, width) through the rows of a network."""
    readout = backbone.readout
    reading = backbone.read(crops)
    rows = reading.rows[:, : factorised_rows(backbone)].double()
    size = rows.square().sum()
    return NetworkReading(
        relative_difference=relative_difference(readout.logits(reading.rows), reading.logits),
        clipped_share=float(rows.clamp_max(0).square().sum() / size) if size else 0.0,
        placed_share=_placed_share(backbone, reading.rows) if readout.spatial else None,
    )


def _placed_share(backbone: Backbone, rows: Tensor) -> float | None:
    readout = backbone.readout
    predicted = readout.logits(rows).argmax(dim=1)
    directions = readout.vectors[predicted] - readout.vectors.mean(dim=0)
    shares = torch.einsum("btd,bd->bt", rows, directions).double()
    share = float((shares[:, : readout.places].sum(dim=1) / shares.sum(dim=1)).median())
    return share if math.isfinite(share) else None
