"""From images of one class to its rows, with every figure that only the images can give."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from protonmf_cli.models.answers import answers
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassReading, Pieces
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.readouts.readout import spread_of
from protonmf_cli.models.response import pooled_rows
from protonmf_cli.pipelines.progress import Progress


class Gathering(Pieces, Protocol):
    """Pieces that grow."""

    def append(self, part: Tensor) -> None:
        """Further images (B, ...), after those that are there."""


Store = Callable[[Sequence[int], torch.dtype, torch.device], Gathering]
"""Opens a place outside memory for pieces of one shape and type, which are handed out on a device."""


def factorised_rows(backbone: Backbone) -> int:
    """Rows per image that take part in the factorisation."""
    return backbone.readout.places or len(backbone.readout.unplaced)


def images_that_fit(backbone: Backbone, memory: int) -> int:
    """How many images of one class fit into `memory` bytes."""
    width = backbone.readout.width
    # the rows, what their factorisation holds of each of them, pooled rows as gathered and as written, and the crop
    one = 4 * factorised_rows(backbone) * (width + FACTORISED) + 12 * 2 * width
    return max(1, memory // (one + math.prod(backbone.preprocessing.input_size)))


FACTORISED = 30
"""Numbers that a factorisation holds for each row: its codes, and those of two halves of the images."""


def read_class(
    backbone: Backbone, batches: Iterator[ImageBatch], images: int, progress: Progress, store: Store | None = None
) -> ClassReading:
    """Run the network over one class.

    Args:
        backbone: network and readout.
        batches: of this class alone, at least one.
        images: files of the class, at least as many as readable images; memory is allocated once.
        progress: advanced with every batch.
        store: where rows and crops go; into memory if None.
    """
    found = _Gathered(backbone, images, store or _in_memory(images))
    for batch in batches:
        found.add(batch)
        progress.advance(len(batch.sources) + len(batch.skipped))
    return found.reading()


class _Memory:
    """Pieces in one tensor, whose room is taken when the first ones come."""

    def __init__(self, most: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> None:
        self.whole, self.count = torch.empty(most, *shape, dtype=dtype, device=device), 0

    def append(self, part: Tensor) -> None:
        self.whole[self.count : self.count + len(part)] = part
        self.count += len(part)

    def found(self) -> Tensor:
        """What is there, without room that is left."""
        return self.whole[: self.count]


def _in_memory(most: int) -> Callable[..., _Memory]:
    return lambda shape, dtype, device: _Memory(most, shape, dtype, device)


class _Gathered:
    """What the network gives for the batches of one class.

    Nothing of a batch is looked at before the class ends, so that a device is never waited for in between.
    """

    def __init__(self, backbone: Backbone, images: int, store: Callable[..., Any]) -> None:
        self.backbone, self.images, self.store = backbone, images, store
        self.class_index = -1
        self.rows: Any = None
        self.pooled: Any = None
        self.crops: Any = None
        # in one piece: small tensors that stay between large ones that go would keep these from being used again
        self.predicted = _Memory(images, (), torch.int64, backbone.device)
        self.differences = _Memory(images, (2,), backbone.dtype, backbone.device)
        self.signs = _Memory(images, (3,), torch.float64, _with_float64(backbone.device))
        self.sources: list[ImageSource] = []
        self.skipped: list[Skipped] = []

    def add(self, batch: ImageBatch) -> None:
        """Read a batch, which may be empty."""
        self.class_index = batch.class_index
        self.skipped += batch.skipped
        if not len(batch.crops):
            return
        reading = self.backbone.read(batch.crops)
        difference = (self.backbone.readout.logits(reading.rows) - reading.logits).abs().max()
        self.differences.append(torch.stack([difference, difference / spread_of(reading.logits)])[None])
        rows = reading.rows[:, : factorised_rows(self.backbone)].float()
        pooled = pooled_rows(reading.rows, self.backbone.readout.places or None).float()
        if self.rows is None:
            self.rows = self.store(rows.shape[1:], rows.dtype, rows.device)
            self.crops = self.store(batch.crops.shape[1:], batch.crops.dtype, batch.crops.device)
            self.pooled = _Memory(self.images, pooled.shape[1:], pooled.dtype, pooled.device)
        self.signs.append(_signs(rows)[None])
        self.rows.append(rows)
        self.crops.append(batch.crops)
        self.pooled.append(pooled)
        self.predicted.append(answers(reading.logits, batch.class_index, multi_label=self.backbone.source.multi_label))
        self.sources += batch.sources

    def reading(self) -> ClassReading:
        """All of it."""
        width, pixels = self.backbone.readout.width, self.backbone.preprocessing.input_size
        rows = _held(self.rows, torch.empty(0, 1, width))
        return ClassReading(
            class_index=self.class_index,
            rows=rows,
            pooled=_held(self.pooled, torch.empty(0, 1, width)).cpu(),
            predicted=self.predicted.found().cpu(),
            crops=_held(self.crops, torch.empty(0, *pixels, dtype=torch.uint8)),
            images=tuple(self.sources),
            skipped=tuple(self.skipped),
            figures=self._figures(math.prod(rows.shape)),
        )

    def _figures(self, entries: int) -> dict[str, float]:
        if not self.signs.count:
            return dict.fromkeys(("max_abs_difference", "max_rel_difference", "negative_share", "clipped_share"), 0.0)
        differences = self.differences.found().double().cpu().amax(dim=0).tolist()
        negative, clipped, size = self.signs.found().cpu().sum(dim=0).tolist()
        worst, relative = (value if math.isfinite(value) else math.inf for value in differences)
        return {
            "max_abs_difference": worst,
            "max_rel_difference": relative,
            "negative_share": negative / entries,
            "clipped_share": clipped / size if size else 0.0,
        }


def _held(gathered: Any, nothing: Tensor) -> Any:
    """What was gathered."""
    if gathered is None:
        return nothing
    return gathered.found() if isinstance(gathered, _Memory) else gathered


def _with_float64(device: torch.device) -> torch.device:
    """The same, or the CPU for one without float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _signs(rows: Tensor) -> Tensor:
    """Entries of rows below zero, their squared size, and that of all."""
    rows = rows.to(_with_float64(rows.device))
    below = rows.clamp_max(0)
    sizes = [torch.linalg.vector_norm(part, dtype=torch.float64).square() for part in (below, rows)]
    return torch.stack([below.count_nonzero().double(), *sizes])
