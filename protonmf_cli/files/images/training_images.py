"""Training images in a new order and with new augmentation in every epoch, all decided by the seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.image_augmentation import augmented
from protonmf_cli.files.images.reader import ImageFile, ImageReader
from protonmf_cli.models.image_batches import ImageBatch, Skipped, TrainingBatch
from protonmf_cli.options import AugmentationOptions


@dataclass(frozen=True, kw_only=True)
class TrainingImages:
    """Readable image files, and how each epoch looks at them."""

    files: Sequence[ImageFile]
    reader: ImageReader
    augmentation: AugmentationOptions
    batch_size: int
    seed: int

    def __len__(self) -> int:
        """Images of one epoch."""
        return len(self.files) * self.augmentation.copies

    @property
    def labels(self) -> list[int]:
        """Class of every image."""
        return [file.class_index for file in self.files]

    def batches(self, epoch: int, rank: int = 0, world: int = 1) -> Iterator[TrainingBatch]:
        """One epoch; process `rank` of `world` gets its share of every batch."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self))
        steps = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if len(steps) > 1 and len(steps[-1]) == 1:  # batch norms that learn need two
            steps[-2:] = [np.concatenate(steps[-2:])]
        return self.of_steps(epoch, steps, rank, world)

    def of_steps(
        self, epoch: int, steps: Sequence[Sequence[int] | np.ndarray], rank: int = 0, world: int = 1
    ) -> Iterator[TrainingBatch]:
        """Batches of the given images, augmented as in that epoch."""
        jobs = [(epoch, int(number)) for step in steps for number in step[rank::world]]
        crops = ahead(self._crop, jobs, workers=self.reader.workers, window=3 * self.batch_size)
        for step in steps:
            share = step[rank::world]
            found = [next(crops) for _ in share]
            labels = [self.files[int(number) % len(self.files)].class_index for number in share]
            yield TrainingBatch(
                crops=torch.stack(found) if found else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
                labels=torch.tensor(labels, dtype=torch.int64),
                total=len(step),
            )

    def _crop(self, job: tuple[int, int]) -> Tensor:
        epoch, number = job
        file, copy = self.files[number % len(self.files)], number // len(self.files)
        seed = (self.seed, epoch if self.augmentation.fresh else 0, number % len(self.files), copy)
        found = self.reader.read(file, lambda picture: augmented(picture, self.augmentation, seed))
        if isinstance(found, Skipped):
            raise InputError(f"{file.path} {found.reason}, but could be read when training began.")
        return found[0]


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """All images of a training run: shuffled for epochs, in order for pushes, and those held out."""

    images: TrainingImages
    apart: Sequence[ImageFile] = ()
    """Files that choose the best cycle, class after class."""

    def __len__(self) -> int:
        return len(self.images)

    def epoch(self, number: int, rank: int, world: int) -> Iterator[TrainingBatch]:
        """Shuffled and augmented."""
        return self.images.batches(number, rank, world)

    def push(self) -> Iterator[ImageBatch]:
        """The training images as they are, class after class."""
        return self.images.reader.batches(self.images.files)

    def held_out(self) -> Iterator[ImageBatch] | None:
        """Images that choose the best cycle; None where there are none."""
        return self.images.reader.batches(self.apart) if self.apart else None

    def counts(self) -> tuple[int, int]:
        """Images of `push` and of `held_out`."""
        return len(self.images.files), len(self.apart)


def split_held_out(images: LabelledImages, share: float, seed: int) -> tuple[list[ImageFile], list[ImageFile]]:
    """Files to train on, and a share of every class held out; drawn with the seed, both class after class.

    A class keeps at least one file to train on.
    """
    fit, apart = [], []
    for c, files in images.files.items():
        count = max(0, min(round(share * len(files)), len(files) - 1))
        chosen = set(random.Random(seed + c).sample(range(len(files)), count))
        fit += [file for n, file in enumerate(files) if n not in chosen]
        apart += [file for n, file in enumerate(files) if n in chosen]
    return fit, apart


def folds(files: Sequence[ImageFile], count: int, seed: int) -> Iterator[tuple[list[ImageFile], list[ImageFile]]]:
    """Stratified folds: files to train on and files held out, every file held out once."""
    order = list(files)
    random.Random(seed).shuffle(order)
    place: dict[ImageFile, int] = {}
    seen: dict[int, int] = {}
    for file in order:
        place[file] = seen.setdefault(file.class_index, 0) % count
        seen[file.class_index] += 1
    for number in range(count):
        yield [f for f in files if place[f] != number], [f for f in files if place[f] == number]


def read_all(reader: ImageReader, files: Sequence[ImageFile]) -> tuple[dict[ImageFile, str], list[Skipped]]:
    """sha256 of every readable file, and the others."""
    digests, skipped = {}, []
    for file, found in zip(files, ahead(reader.read, files, workers=reader.workers, window=64), strict=True):
        if isinstance(found, Skipped):
            skipped.append(found)
        else:
            digests[file] = found[1]
    return digests, skipped
