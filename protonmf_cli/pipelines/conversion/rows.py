"""From images of one class to its rows, with every figure that only the images can give."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.prototype import pooled_rows
from protonmf_cli.models.readouts.readout import relative_difference
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
    rows: Tensor | None = None
    pooled: list[Tensor] = []
    predicted: list[Tensor] = []
    crops: list[Tensor] = []
    sources: list[ImageSource] = []
    skipped: list[Skipped] = []
    count, worst, worst_relative = 0, 0.0, 0.0
    negative, clipped, size = 0.0, 0.0, 0.0
    class_index = -1
    for batch in batches:
        class_index = batch.class_index
        skipped += batch.skipped
        progress.advance(len(batch.sources) + len(batch.skipped))
        if not len(batch.crops):
            continue
        reading = backbone.read(batch.crops)
        again = backbone.readout.logits(reading.rows)
        worst = max(worst, float((again - reading.logits).abs().max()))
        worst_relative = max(worst_relative, relative_difference(again, reading.logits))
        part = reading.rows[:, : factorised_rows(backbone)].float()
        if part.device.type == "mps":  # which has no float64 to add up in
            part = part.cpu()
        negative += float((part < 0).sum())
        clipped += float(part.clamp_max(0).square().sum(dtype=torch.float64))
        size += float(part.square().sum(dtype=torch.float64))
        if rows is None:
            rows = part.new_empty(images, *part.shape[1:])
        rows[count : count + len(part)] = part
        count += len(part)
        pooled.append(pooled_rows(reading.rows, backbone.readout.places or None).float().cpu())
        predicted.append(reading.logits.argmax(dim=1).cpu())
        crops.append(batch.crops)
        sources += batch.sources
    width = backbone.readout.width
    return ClassReading(
        class_index=class_index,
        rows=torch.empty(0, 1, width) if rows is None else rows[:count],
        pooled=torch.cat(pooled) if pooled else torch.empty(0, 1, width),
        predicted=torch.cat(predicted) if predicted else torch.empty(0, dtype=torch.int64),
        crops=torch.cat(crops) if crops else torch.empty(0, *backbone.preprocessing.input_size, dtype=torch.uint8),
        images=tuple(sources),
        skipped=tuple(skipped),
        figures={
            "max_abs_difference": worst,
            "max_rel_difference": worst_relative,
            "negative_share": negative / rows[:count].numel() if rows is not None and count else 0.0,
            "clipped_share": clipped / size if size else 0.0,
        },
    )
