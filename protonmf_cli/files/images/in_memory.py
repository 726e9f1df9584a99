"""Images that Python holds: pictures, arrays, tensors, batches of them, and loaders of batches."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.images.reader import Crop, as_read, read_crop

Picture = Path | Image.Image | Tensor
"""A file, a picture, or uint8 (channels, height, width)."""
Named = tuple[str, Picture]
"""A picture, and what it is called in messages and results."""

TAKEN = (
    "a path, a PIL image, an array (height, width, 3), a tensor (3, height, width), a list or batch of these, or a "
    "DataLoader"
)
CHANNELS = (1, 3)


def is_one(images: object) -> bool:
    """Whether something is one image, and not several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | PathLike | Image.Image)


def named_pictures(images: object) -> Iterator[Named]:
    """Every image of something, in order: files under their paths, others as "image 1", "image 2" and so on.

    Args:
        images: one image (a path; a PIL image; an array (height, width), (height, width, 3) or tensor (3, height,
            width), uint8, or a tensor of floats from 0 to 1); a list or tuple of images or batches; a batch (B, ...);
            or a DataLoader, data set or iterator of batches or images, also with labels, which are left out.

    Raises:
        UsageError: it is something else; when its turn comes.
    """
    for number, picture in enumerate(_pictures(images), start=1):
        named = str(picture) if isinstance(picture, Path) else getattr(picture, "filename", "")
        yield printable(str(named)) or f"image {number}", picture


def crop_of_picture(
    named: Named, crop: Crop, input_size: tuple[int, int, int], *, channels: int, exif_transpose: bool
) -> Tensor:
    """What a network sees of an image: uint8 (channels, height, width).

    A tensor of exactly the network's size is what it sees; any other image is resized and cut as a file is.

    Args:
        named: the image.
        crop: of the network.
        input_size: channels, height and width that it wants.
        channels: 3 for RGB, 1 for grey: what `crop` takes.
        exif_transpose: turn pictures as the camera says.

    Raises:
        InputError: the file or picture cannot be read; the sentence begins with its name.
    """
    name, picture = named
    try:
        if isinstance(picture, Path):
            return read_crop(picture, crop, channels=channels, exif_transpose=exif_transpose)[0]
        if isinstance(picture, Tensor):
            if tuple(picture.shape) == tuple(input_size):
                return picture
            picture = picture_of(picture)
        return crop(as_read(picture, channels=channels, exif_transpose=exif_transpose))
    except InputError as failure:
        raise InputError(f"{name} {failure}.") from failure
    except (OSError, ValueError, SyntaxError) as failure:  # a PIL image that was opened and not yet read
        raise InputError(f"{name} is damaged: {failure}.") from failure


def picture_of(pixels: Tensor) -> Image.Image:
    """Grey (1, height, width) or colour (3, height, width) uint8 pixels as a picture."""
    found = pixels.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(found[:, :, 0] if found.shape[2] == 1 else found)


def _pictures(images: object) -> Iterator[Picture]:
    if isinstance(images, str | PathLike):
        yield Path(images)
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, Tensor):
        yield from _of_pixels(images)
    elif isinstance(images, np.ndarray):
        yield from map(picture_of, _of_pixels(images))
    elif isinstance(images, list | tuple):
        for each in images:
            yield from _pictures(each)
    elif (items := items_of(images)) is not None:
        for item in items:
            yield from _pictures(item[0] if _is_labelled(item) else item)
    else:
        raise UsageError(f"{type(images).__name__} is no image: give {TAKEN}.")


def items_of(images: Any) -> Iterable[Any] | None:
    """The items of a loader, data set or iterator; None of what has none."""
    if hasattr(images, "__iter__") and not isinstance(images, dict | bytes):
        return images  # type: ignore[no-any-return]
    if hasattr(images, "__getitem__") and hasattr(images, "__len__") and not isinstance(images, dict | bytes):
        return (images[n] for n in range(len(images)))
    return None


def _is_labelled(item: object) -> bool:
    """Whether an item of a loader or data set is (images, labels, ...) and not several images."""
    if not isinstance(item, list | tuple) or len(item) < 2:
        return False
    first, second = item[0], item[1]
    if isinstance(second, np.ndarray | Tensor):
        return not (isinstance(first, np.ndarray | Tensor) and first.shape == second.shape and second.ndim > 1)
    if isinstance(second, str | list | tuple):
        return not isinstance(first, str | PathLike | list | tuple)
    return not isinstance(second, PathLike | Image.Image)


def _of_pixels(pixels: np.ndarray[Any, Any] | Tensor) -> Iterator[Tensor]:
    """Every image (channels, height, width) of an array or tensor."""
    found = _as_bytes(pixels)
    if found.ndim == 2:
        found = found[None]
    elif found.ndim in (3, 4):
        found = _channels_first(found, pixels)
    else:
        raise _no_image(pixels)
    if min(found.shape) == 0:
        raise UsageError(f"{_said(pixels)} holds no pixels.")
    yield from found if found.ndim == 4 else [found]


def _channels_first(found: Tensor, given: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """(..., channels, height, width); channels are looked for where this kind of pixels usually has them, first."""
    first, last = found.shape[-3] in CHANNELS, found.shape[-1] in CHANNELS
    if last and (isinstance(given, np.ndarray) or not first):
        return found.movedim(-1, -3)
    if first:
        return found
    raise _no_image(given)


def _as_bytes(pixels: np.ndarray[Any, Any] | Tensor) -> Tensor:
    """Pixels as uint8 on the CPU; floats from 0 to 1 are rounded to steps of 1/255."""
    if isinstance(pixels, np.ndarray):
        if pixels.dtype != np.uint8:
            raise UsageError(
                f"{_said(pixels)} is no picture: arrays hold bytes (uint8, 0 to 255). Give "
                "torch.from_numpy(...) of floats from 0 to 1, channels first."
            )
        return torch.from_numpy(pixels.copy())
    found = pixels.detach().cpu()
    if found.dtype == torch.uint8:
        return found.contiguous()
    if not found.is_floating_point():
        raise UsageError(f"{_said(pixels)} is no picture: tensors hold uint8, or floats from 0 to 1.")
    least, most = (float(value) for value in found.aminmax()) if found.numel() else (0.0, 0.0)
    if not (least >= 0 and most <= 1):
        raise UsageError(
            f"{_said(pixels)} has values from {least:.3g} to {most:.3g}: floats go from 0 to 1, as they are before "
            "they are normalised, which the model does itself."
        )
    return (found.float() * 255).round().to(torch.uint8)


def _no_image(pixels: np.ndarray[Any, Any] | Tensor) -> UsageError:
    shapes = "(height, width, 3) or (height, width)" if isinstance(pixels, np.ndarray) else "(3, height, width)"
    return UsageError(f"{_said(pixels)} is no image: it must be {shapes}, or a batch of these.")


def _said(pixels: np.ndarray[Any, Any] | Tensor) -> str:
    kind = "an array" if isinstance(pixels, np.ndarray) else "a tensor"
    return f"{kind} {tuple(pixels.shape)} of {str(pixels.dtype).removeprefix('torch.')}"
