"""From images of one class to its rows, with every figure that only the images can give."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.readouts.readout import relative_difference
from protonmf_cli.models.response import pooled_rows
from protonmf_cli.pipelines.progress import Progress


def factorised_rows(backbone: Backbone) -> int:
    """Rows per image that take part in the factorisation."""
    return backbone.readout.places or len(backbone.readout.unplaced)


def images_that_fit(backbone: Backbone, memory: int) -> int:
    """How many images of one class fit into `memory` bytes."""
    width = backbone.readout.width
    # the rows, their split by sign and a balanced copy of that while they are factorised, and the pooled rows
    one = 4 * (5 * factorised_rows(backbone) + 2) * width + math.prod(backbone.preprocessing.input_size)
    return max(1, memory // one)


def read_class(backbone: Backbone, batches: Iterator[ImageBatch], images: int, progress: Progress) -> ClassReading:
    """Run the network over one class.

    Args:
        backbone: network and readout.
        batches: of this class alone, at least one.
        images: files of the class, at least as many as readable images; the rows are allocated once.
    """
    found = _Gathered(backbone, images)
    for batch in batches:
        found.add(batch)
        progress.advance(len(batch.sources) + len(batch.skipped))
    return found.reading()


class _Gathered:
    """What the network gives for the batches of one class, gathered batch by batch."""

    def __init__(self, backbone: Backbone, images: int) -> None:
        self.backbone, self.images = backbone, images
        self.class_index, self.count = -1, 0
        self.rows: Tensor | None = None
        self.pooled: list[Tensor] = []
        self.predicted: list[Tensor] = []
        self.crops: list[Tensor] = []
        self.sources: list[ImageSource] = []
        self.skipped: list[Skipped] = []
        self.worst, self.worst_relative = 0.0, 0.0
        self.negative, self.clipped, self.size = 0.0, 0.0, 0.0

    def add(self, batch: ImageBatch) -> None:
        """Read a batch, which may be empty."""
        self.class_index = batch.class_index
        self.skipped += batch.skipped
        if not len(batch.crops):
            return
        reading = self.backbone.read(batch.crops)
        again = self.backbone.readout.logits(reading.rows)
        self.worst = max(self.worst, float((again - reading.logits).abs().max()))
        self.worst_relative = max(self.worst_relative, relative_difference(again, reading.logits))
        self._keep(reading.rows[:, : factorised_rows(self.backbone)].float())
        self.pooled.append(pooled_rows(reading.rows, self.backbone.readout.places or None).float().cpu())
        self.predicted.append(reading.logits.argmax(dim=1).cpu())
        self.crops.append(batch.crops)
        self.sources += batch.sources

    def _keep(self, part: Tensor) -> None:
        if part.device.type == "mps":  # which has no float64 to add up in
            part = part.cpu()
        self.negative += float((part < 0).sum())
        self.clipped += float(part.clamp_max(0).square().sum(dtype=torch.float64))
        self.size += float(part.square().sum(dtype=torch.float64))
        if self.rows is None:
            self.rows = part.new_empty(self.images, *part.shape[1:])
        self.rows[self.count : self.count + len(part)] = part
        self.count += len(part)

    def reading(self) -> ClassReading:
        """All of it."""
        width, pixels = self.backbone.readout.width, self.backbone.preprocessing.input_size
        rows = torch.empty(0, 1, width) if self.rows is None else self.rows[: self.count]
        return ClassReading(
            class_index=self.class_index,
            rows=rows,
            pooled=torch.cat(self.pooled) if self.pooled else torch.empty(0, 1, width),
            predicted=torch.cat(self.predicted) if self.predicted else torch.empty(0, dtype=torch.int64),
            crops=torch.cat(self.crops) if self.crops else torch.empty(0, *pixels, dtype=torch.uint8),
            images=tuple(self.sources),
            skipped=tuple(self.skipped),
            figures={
                "max_abs_difference": self.worst,
                "max_rel_difference": self.worst_relative,
                "negative_share": self.negative / rows.numel() if self.count else 0.0,
                "clipped_share": self.clipped / self.size if self.size else 0.0,
            },
        )
