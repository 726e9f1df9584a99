"""Images on their way through the pipelines: pixels, class and origin travel together."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Where one image came from."""

    path: str
    """Relative to the data folder, with forward slashes."""
    sha256: str
    """Of the file's bytes."""


def digest_of_images(images: Sequence[ImageSource]) -> str:
    """sha256 over path and content of every image."""
    return hashlib.sha256(lines_of_images(images)).hexdigest()


def lines_of_images(images: Sequence[ImageSource]) -> bytes:
    """What `digest_of_images` is of; of several lots one after the other."""
    return b"".join(f"{image.path}\0{image.sha256}\n".encode() for image in images)


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An image file that could not be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """Images of one class; a class's batches follow each other."""

    class_index: int
    """Index of the class in the classifier; -1 when unknown."""
    crops: Tensor
    """(B, channels, height, width) uint8, what the network sees before normalisation; B may be 0."""
    sources: tuple[ImageSource, ...]
    skipped: tuple[Skipped, ...] = ()
    """Files that would have been in this batch."""
    labels: tuple[tuple[int, ...], ...] = ()
    """All classes of each image, where they are known."""

    def targets(self, classes: int) -> Tensor:
        """(B, classes) bool, which classes each image is of."""
        found = torch.zeros(len(self.sources), classes, dtype=torch.bool)
        for image, labels in zip(found, self.labels or [()] * len(found), strict=True):
            image[list(labels or (self.class_index,))] = True
        return found


@dataclass(frozen=True, kw_only=True)
class TrainingBatch:
    """Shuffled, augmented images of one optimisation step, or one process's share of them."""

    crops: Tensor
    """(B, channels, height, width) uint8"""
    labels: Tensor
    """(B,) int64"""
    total: int
    """Images of the step in all processes."""
