"""What the rows of a network look like on a few images, before anything is converted."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.readouts.readout import Network, Readout, relative_difference
from protonmf_cli.pipelines.conversion.rows import factorised_rows


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
    quadrants: int | None
    """Of `quadrants_followed`; None without places."""


def read_network(backbone: Backbone, crops: Tensor) -> NetworkReading:
    """Read uint8 crops (B, channels, height, width), two or more, through the rows of a network."""
    readout = backbone.readout
    reading = backbone.read(crops)
    rows = reading.rows[:, : factorised_rows(backbone)].double()
    size = rows.square().sum()
    return NetworkReading(
        relative_difference=relative_difference(readout.logits(reading.rows), reading.logits),
        clipped_share=float(rows.clamp_max(0).square().sum() / size) if size else 0.0,
        placed_share=_placed_share(backbone, reading.rows) if readout.spatial else None,
        quadrants=quadrants_followed(backbone.network, readout, backbone.normalise(crops)) if readout.spatial else None,
    )


def _placed_share(backbone: Backbone, rows: Tensor) -> float | None:
    readout = backbone.readout
    predicted = readout.logits(rows).argmax(dim=1)
    directions = readout.vectors[predicted] - readout.vectors.mean(dim=0)
    shares = torch.einsum("btd,bd->bt", rows, directions).double()
    share = float((shares[:, : readout.places].sum(dim=1) / shares.sum(dim=1)).quantile(0.5))
    return share if math.isfinite(share) else None


def quadrants_followed(network: Network, readout: Readout, pixels: Tensor) -> int:
    """How many of four changes of an image, a quadrant each, have their centre in that quadrant of the grid of rows.

    A row's change is taken relative to its size, because a gate or norm of the whole image rescales all rows.

    Args:
        network: in evaluation mode.
        readout: spatial.
        pixels: two normalised images (2, channels, H, W) or more; the second fills the quadrants of the first.
    """
    height, width = pixels.shape[2] // 2, pixels.shape[3] // 2
    changed = pixels[:1].repeat(5, 1, 1, 1)
    halves = [(down, across) for down in (0, 1) for across in (0, 1)]
    for image, (down, across) in zip(changed[1:], halves, strict=True):
        part = (slice(None), *(slice(n * size, (n + 1) * size) for n, size in ((down, height), (across, width))))
        image[part] = pixels[1][part]
    with torch.inference_mode():
        rows = readout.read(network, changed).rows[:, : readout.places].double()
    size = rows.square().sum(dim=2)
    moved = (rows[1:] - rows[:1]).square().sum(dim=2) / (size[1:] + size[:1]).clamp_min(torch.finfo(size.dtype).tiny)
    centres = [[_centre(share.sum(dim=1 - axis)) > 0 for axis in (0, 1)] for share in moved.unflatten(1, readout.grid)]
    return sum(centre == [bool(down), bool(across)] for centre, (down, across) in zip(centres, halves, strict=True))


def _centre(mass: Tensor) -> float:
    """Centre of (n,) masses, from -1 to 1."""
    places = torch.linspace(-1, 1, len(mass), dtype=mass.dtype, device=mass.device)
    return float(mass @ places / mass.sum())
