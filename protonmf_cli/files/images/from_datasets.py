"""A data set or loader of torch as class folders of image files, without loss."""

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.in_memory import items_of, picture_of
from protonmf_cli.files.images.reader import as_read
from protonmf_cli.models.backbone import ClassName, Preprocessing
from protonmf_cli.models.class_names import find_class

OF_PNG = ("1", "L", "LA", "P", "RGB", "RGBA")
"""Modes of PIL images that PNG holds as they are; others are written as they are read."""
WHOLE = 1e-3
"""Most that pixels, from 0 to 255, may be off whole numbers."""


@dataclass(frozen=True, kw_only=True)
class WrittenImages:
    """Where the images of a data set lie."""

    folder: Path
    """Of class folders."""
    class_map: Path
    """Class folder -> class."""
    cropped: bool
    """They are what the network sees, and not resized again."""


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """What a data set, or that of a loader or subset, calls its classes."""
    while dataset is not None:
        names = getattr(dataset, "classes", None)
        if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
            return tuple(names)
        dataset = getattr(dataset, "dataset", None)
    return None


def write_images(
    dataset: Any, folder: Path, preprocessing: Preprocessing, classes: tuple[ClassName, ...]
) -> WrittenImages:
    """Write every image of a data set once: as PNG, or as a link where it is a file already.

    Args:
        dataset: of (picture, label) or a loader of (batch, labels); pictures are PIL images, arrays (height, width, 3)
            of uint8, or tensors (3, height, width) of uint8, of floats pixel / 255, or of these as the network's own
            preprocessing normalises them. Files of an `ImageFolder` are read without its transform.
        folder: empty.
        preprocessing: of the network.
        classes: of the network; labels are their numbers, unless the data set has `classes` that are called as these or
            are fewer or more.

    Raises:
        UsageError: its items are something else.
        InputError: it is empty, a label is no class, or floats are no pixels that were normalised.
    """
    names = _class_names(classes_of(dataset), classes)
    place = folder / type(dataset).__name__
    target = _Folders(place, names)
    files = _files_of(dataset)
    cropped = False
    if files is not None:
        for path, label, inside in files:
            for each in target.files(label, inside):
                _link(path, each)
    else:
        cropped = _write_pictures(dataset, target, preprocessing)
    if not target.used:
        raise InputError(f"the data ({type(dataset).__name__}) holds no images.")
    words = folder / "classes.json"
    words.write_text(json.dumps(target.used), encoding="utf-8")
    return WrittenImages(folder=place, class_map=words, cropped=cropped)


def _class_names(names: Sequence[str] | None, classes: tuple[ClassName, ...]) -> list[str]:
    """What the class of each label is called in the network."""
    own = [name.label for name in classes]
    if names is None:
        return own
    try:
        return [own[find_class(classes, name)] for name in names]
    except InputError:
        return own if len(names) == len(own) else list(names)


class _Folders:
    """Class folders, made as they are needed."""

    def __init__(self, place: Path, names: Sequence[str]) -> None:
        self._place, self._names, self._folders = place, names, dict[int, Path]()
        self.used: dict[str, str] = {}
        """Folder -> class."""

    def files(self, label: object, inside: str) -> list[Path]:
        """Where an image goes: into its class, or into each that a vector of zeros and ones says.

        Raises:
            InputError: the label is no class.
        """
        numbers = _as_numbers(label, len(self._names))
        return [self.file(each, inside) for each in ([label] if numbers is None else numbers)]

    def file(self, label: object, inside: str) -> Path:
        """Where an image of a class goes.

        Raises:
            InputError: the label is no class.
        """
        number = _as_number(label)
        if number is None or not 0 <= number < len(self._names):
            raise InputError(
                f"the label {label} of the data is none of the {len(self._names)} classes, which are numbered from 0."
            )
        if number not in self._folders:
            word = re.sub(r"[^\w .-]+", "-", self._names[number]).strip(" .-")[:80]
            word = word if word and word not in self.used else f"{number}-{word}"
            self.used[word] = self._names[number]
            self._folders[number] = self._place / word
        found = self._folders[number] / inside
        found.parent.mkdir(parents=True, exist_ok=True)
        return found


def _as_numbers(label: object, classes: int) -> list[int] | None:
    """The places of the ones in a vector of zeros and ones, one for each class; None of anything else."""
    if not isinstance(label, Tensor | np.ndarray) or label.shape != (classes,) or classes < 2:
        return None
    found = np.asarray(label)
    return found.nonzero()[0].tolist() if bool(np.isin(found, (0, 1)).all()) else None


def _as_number(label: object) -> int | None:
    if isinstance(label, Tensor | np.ndarray | np.generic) and len(label.reshape(-1)) == 1:
        label = label.item()
    return label if isinstance(label, int) else None


def _files_of(dataset: Any) -> list[tuple[Path, int, str]] | None:
    """Path, label and name within its class of every image, of an image folder of torchvision or a part of one."""
    if isinstance(dataset, Subset):
        files = _files_of(dataset.dataset)
        return None if files is None else [files[n] for n in dataset.indices]
    samples, root = getattr(dataset, "samples", None), getattr(dataset, "root", None)
    if not isinstance(samples, list) or root is None or not all(isinstance(path, str) for path, _ in samples):
        return None
    found = []
    for path, label in samples:
        relative = Path(os.path.relpath(path, root))
        found.append((Path(path).resolve(), label, Path(*relative.parts[1:]).as_posix()))
    return found


def _link(path: Path, target: Path) -> None:
    try:
        target.symlink_to(path)
    except OSError:  # where links are not allowed
        shutil.copyfile(path, target)


def _write_pictures(dataset: Any, target: _Folders, preprocessing: Preprocessing) -> bool:
    """Write what a data set holds; whether it is what the network sees."""
    seen = set[bool]()
    for number, (image, label) in enumerate(_pairs(dataset)):
        picture = _as_picture(image, number, preprocessing)
        size = (preprocessing.input_size[2], preprocessing.input_size[1])
        seen.add(isinstance(image, Tensor) and picture.size == size)
        if len(seen) > 1:
            raise InputError(
                f"image {number + 1} of the data is {picture.width} x {picture.height}, and others are tensors of the "
                f"network's own {size[0]} x {size[1]}, which are not resized again: either all are, or none."
            )
        for each in target.files(label, f"{number:06d}.png"):
            picture.save(each, compress_level=1)
    return seen == {True}


def _pairs(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Every image and its label."""
    items = items_of(dataset)
    if items is None:
        raise UsageError(f"{type(dataset).__name__} is no data: give a folder, a data set or a DataLoader.")
    for item in items:
        if not isinstance(item, tuple | list) or len(item) < 2:
            raise UsageError(
                f"the data ({type(dataset).__name__}) gives {type(item).__name__} where (image, label) or (images, "
                "labels) is expected."
            )
        images, labels = item[0], item[1]
        if isinstance(images, Tensor | np.ndarray) and images.ndim == 4:
            if len(images) != len(labels):
                raise UsageError(f"a batch of the data holds {len(images)} images and {len(labels)} labels.")
            yield from zip(images, labels, strict=True)
        else:
            yield images, labels


def _as_picture(image: Any, number: int, preprocessing: Preprocessing) -> Image.Image:
    if isinstance(image, Image.Image):
        return image if image.mode in OF_PNG else as_read(image)
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        return Image.fromarray(image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image)
    if isinstance(image, Tensor) and image.ndim == 3 and len(image) in (1, 3):
        return picture_of(_bytes_of(image.detach().cpu(), number, preprocessing))
    said = f"{type(image).__name__} {tuple(image.shape)}" if hasattr(image, "shape") else type(image).__name__
    raise UsageError(
        f"image {number + 1} of the data is {said}: PIL images, arrays (height, width, 3) of uint8 and tensors (3, "
        "height, width) are taken."
    )


def _bytes_of(pixels: Tensor, number: int, preprocessing: Preprocessing) -> Tensor:
    """uint8 pixels of a tensor (channels, height, width), which may have been normalised."""
    if pixels.dtype == torch.uint8:
        return pixels
    plain = pixels.double() * 255
    mean, std = (
        torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (preprocessing.mean, preprocessing.std)
    )
    for found in (plain, plain * std + 255 * mean if len(pixels) == len(mean) else plain):
        whole = found.round()
        if bool(((found - whole).abs() <= WHOLE).all()) and float(whole.min()) >= 0 and float(whole.max()) <= 255:
            return whole.to(torch.uint8)
    raise InputError(
        f"image {number + 1} of the data is a tensor of {str(pixels.dtype).removeprefix('torch.')} whose values are no "
        f"pixels, neither divided by 255 nor normalised with mean {preprocessing.mean} and std {preprocessing.std}: "
        "give pictures, uint8, or the mean and std that it was normalised with (preprocessing=)."
    )
