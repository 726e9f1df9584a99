"""What one visit to every finished class gathers: all that can be known before the head is rebuilt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
import torch
from torch import Tensor

from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.pipelines.progress import SILENT, Progress

COVARIANCE_IMAGES = 64
"""At most so many images of each class are what a covariance is taken from."""
COVARIANCE_TOTAL = 16
"""At most so many images for each number of a row in all, but two of each class."""
JUDGED_CLASSES, JUDGED_IMAGES = 256, 4096
"""At most so many classes and images of them are looked at to choose a ridge."""
BLOCK = 1024
"""Images that are taken to float64 at once."""


@dataclass(frozen=True, kw_only=True)
class Sums:
    """Of the A classes that have prototypes."""

    classes: tuple[int, ...]
    """Rising."""
    prototypes: Sequence[Tensor]
    """(p, D) float32 of each class, of unit norm, in the order in which they were found."""
    projected: Sequence[Tensor]
    """(p,) float64 of each class, its mean image projected on them; of rows that prototypes read."""
    mean_at_length_one: Tensor
    """(A, D) float32 mean of each class's images, of their rows that prototypes read, each at length one."""
    unplaced_mean: Tensor
    """(D,) float64 mean, over all images, of the rows without a place."""
    within: Tensor
    """(D, D) float64 covariance of images, all rows added, within classes."""
    within_at_length_one: Tensor
    """(D, D) float64 the same of the rows that prototypes read, each image at length one."""
    judged: Mapping[int, Tensor]
    """Class -> (n, S, D) float32 pooled rows of some images, to choose a ridge by."""


class _Scatter:
    """A sum of outer products of rows (D,) in float64, in products that are large enough to be quick."""

    def __init__(self, width: int) -> None:
        self.upper = np.zeros((width, width), order="F")
        self.waiting: list[Tensor] = []
        self.count, self.added = 0, 0

    def add(self, rows: Tensor) -> None:
        """Further rows (n, D)."""
        self.waiting.append(rows)
        self.count += len(rows)
        if self.count - self.added >= BLOCK:
            self._empty()

    def _empty(self) -> None:
        if self.waiting:  # the symmetric product takes half of the time of any
            rows = torch.cat(self.waiting).numpy()
            self.upper = scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=self.upper, overwrite_c=True)
            self.waiting, self.added = [], self.count

    def mean(self) -> Tensor:
        """(D, D)"""
        self._empty()
        lower = torch.from_numpy(self.upper.T).tril_()
        return (lower + lower.tril(diagonal=-1).mT).div_(max(1, self.count))


def sums_of(finished: Mapping[int, ClassPart], progress: Progress = SILENT) -> Sums:
    """Visit every class once; one is in memory at a time.

    Args:
        finished: class -> part.
        progress: advanced once per class.
    """
    found = _Gathered(len(finished))
    for class_index in sorted(finished):
        part = finished[class_index]
        progress.advance()
        if len(part.prototypes):
            found.add(class_index, part)
    return found.sums()


class _Gathered:
    def __init__(self, classes: int) -> None:
        self.expected = max(1, classes)
        self.step = -(-self.expected // JUDGED_CLASSES)
        self.judged_images = JUDGED_IMAGES // -(-self.expected // self.step)
        self.classes: list[int] = []
        self.prototypes: list[Tensor] = []
        self.projected: list[Tensor] = []
        self.means: list[Tensor] = []
        self.judged: dict[int, Tensor] = {}
        self.scatters: list[_Scatter] = []
        self.unplaced = torch.zeros(0, dtype=torch.float64)
        self.images = 0

    def add(self, class_index: int, part: ClassPart) -> None:
        """A class that has prototypes."""
        count, _, width = part.pooled.shape
        if not self.scatters:
            self.unplaced = torch.zeros(width, dtype=torch.float64)
            self.scatters = [_Scatter(width) for _ in range(2)]
        if len(self.classes) % self.step == 0:
            self.judged[class_index] = part.pooled[: self.judged_images].clone()
        mean, at_length_one = _means(part.pooled[:, 0])
        self.classes.append(class_index)
        self.prototypes.append(part.prototypes)
        self.projected.append(part.prototypes.double() @ mean)
        self.means.append(at_length_one.float())
        self.unplaced += part.pooled[:, 1:].sum(dim=(0, 1), dtype=torch.float64)
        self.images += count
        few = max(2, min(COVARIANCE_IMAGES, COVARIANCE_TOTAL * width // self.expected))
        some = part.pooled[:few].double()
        whole = some.sum(dim=1)
        whole = whole - whole.mean(dim=0)
        unit = torch.nn.functional.normalize(some[:, 0], dim=1)
        for scatter, rows in zip(self.scatters, (whole, unit - at_length_one), strict=True):
            scatter.add(rows)

    def sums(self) -> Sums:
        width = len(self.unplaced)
        within, unit = (each.mean() for each in self.scatters) if self.scatters else [torch.zeros(0, 0)] * 2
        return Sums(
            classes=tuple(self.classes),
            prototypes=self.prototypes,
            projected=self.projected,
            mean_at_length_one=torch.stack(self.means) if self.means else torch.empty(0, width),
            unplaced_mean=self.unplaced / max(1, self.images),
            within=within,
            within_at_length_one=unit,
            judged=self.judged,
        )


def _means(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) float64 means of rows (n, D): as they are, and each at length one."""
    total = [torch.zeros(rows.shape[1], dtype=torch.float64) for _ in range(2)]
    for some in rows.split(BLOCK):
        exact = some.double()
        size = torch.linalg.vector_norm(exact, dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        total[0] += exact.sum(dim=0)
        total[1] += (1 / size) @ exact
    return total[0] / len(rows), total[1] / len(rows)
