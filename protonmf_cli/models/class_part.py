"""One class of a conversion: as the network read it, and finished (what a shard on disk holds)."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from protonmf_cli.models.image_batches import ImageSource, Skipped


class Pieces(Protocol):
    """Something of the same shape for each of n images, in memory (a tensor) or not."""

    @property
    def shape(self) -> torch.Size:
        """(n, ...)"""

    @property
    def dtype(self) -> torch.dtype:
        """Of the numbers."""

    @property
    def device(self) -> torch.device:
        """Where pieces are handed out."""

    def __getitem__(self, wanted: slice | Tensor, /) -> Tensor:
        """Those of some images: a range, or int64 numbers."""

    def to(self, device: torch.device, /) -> Any:
        """The same pieces, handed out on another device."""


@dataclass(frozen=True, kw_only=True)
class ClassReading:
    """What the network gave for the n readable images of one class."""

    class_index: int
    rows: Pieces
    """(n, T, D) float32, the placed rows; all rows where none has a place."""
    pooled: Tensor
    """(n, S, D) float32: sums of each image's placed rows and, where there are any, of those without a place."""
    predicted: Tensor
    """(n,) int64"""
    crops: Pieces
    """(n, channels, height, width) uint8"""
    images: tuple[ImageSource, ...]
    skipped: tuple[Skipped, ...]
    figures: dict[str, float]
    """max_abs_difference and max_rel_difference between the rows' logits and the network's; negative_share of
    the entries of the rows; clipped_share of their squared size that lies below zero."""


@dataclass(frozen=True, kw_only=True)
class PartExamples:
    """The K strongest training patches of each of the p prototypes of one class."""

    score: Tensor
    """(p, K) float32, the largest code in the image."""
    box: Tensor
    """(p, K, 4) int64 left, top, right, bottom in pixels of the crop."""
    map: Tensor
    """(p, K, h, w) float32 codes over the grid; (p, K, 0, 0) when rows have no place."""
    image: Tensor
    """(p, K) int64 index into `crops`."""
    crops: tuple[bytes, ...]
    """JPEG files, one per image that is somebody's example."""
    sources: tuple[ImageSource, ...]
    """Of the crops."""


@dataclass(frozen=True, kw_only=True)
class ClassPart:
    """Prototypes of one class before their order is known, and what the assembly needs of its images."""

    class_index: int
    prototypes: Tensor
    """(p, D) float32, unit norm; p = 0 when no image of the class could be read."""
    pooled: Tensor
    """(n, S, D) float32, as of the reading."""
    predicted: Tensor
    """(n,) int64 the network's own top class."""
    sample: Tensor
    """(s, T, D) float32, the rows of some images, to look at maps on."""
    stability: Tensor
    """(p,) float32 cosine of each prototype between two halves of the images; NaN where not computed."""
    examples: PartExamples
    images: tuple[ImageSource, ...]
    skipped: tuple[Skipped, ...]
    figures: dict[str, Any]
    """Plain numbers: squared_norm, squared_error, iterations, converged, negative_share, clipped_share,
    max_abs_difference, max_rel_difference; curve where the number of prototypes was chosen."""
