"""Where the object is on labelled images, as masks or boxes say it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.bounding_boxes import read_boxes
from protonmf_cli.files.images.reader import Crop, ImageFile, clipped, decode, size_of
from protonmf_cli.files.images.sources.source import SUFFIXES

Objects = Callable[[str], Tensor]
"""Name of an image -> bool (height, width) of its crop: where the object is."""


def masked_objects(folder: Path, files: Sequence[ImageFile], crop: Crop, channels: int) -> Objects:
    """Masks in a folder, each at its image's own name (any suffix): what is not black is the object.

    Args:
        folder: of `class folder/file name`.
        files: the images; every one must have a mask.
        crop: what the network sees of a picture.
        channels: of that.

    Raises:
        InputError: the folder does not exist, or an image has no mask; and, when a mask is read, that it is no image,
            is of another size than its image, or marks nothing.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise InputError(f"the folder of masks {folder} {what}. Give one with --masks.")
    found = {f"{path.parent.name}/{path.stem}": path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES}
    by_name = {file.name: file for file in files}
    lost = [file for file in files if _key(file) not in found]
    how = "a mask lies in a folder of the class's name and is named as its image"
    _refuse_lost(lost, len(files), f"no mask in {folder}", how)

    def mask(name: str) -> Tensor:
        file = by_name[name]
        return _cropped(_read_mask(found[_key(file)], file), crop, channels, found[_key(file)])

    return mask


def boxed_objects(source: Path, files: Sequence[ImageFile], crop: Crop, channels: int) -> Objects:
    """Bounding boxes of CUB-200-2011's text files, see `read_boxes`; arguments as in `masked_objects`.

    Raises:
        InputError: the files cannot be read, or an image has no box.
    """
    boxes = read_boxes(source)
    by_name = {file.name: file for file in files}
    lost = [file for file in files if file.in_class not in boxes]
    how = "boxes are matched by class folder and file name"
    _refuse_lost(lost, len(files), f"no bounding box in {source}", how)

    def mask(name: str) -> Tensor:
        file = by_name[name]
        picture = Image.new("L", size_of(file.path))
        picture.paste(255, clipped(boxes[file.in_class], picture.size))
        return _cropped(picture, crop, channels, source)

    return mask


def _refuse_lost(lost: Sequence[ImageFile], count: int, what: str, how: str) -> None:
    if lost:
        raise InputError(f"{len(lost)} of {count} images have {what}, e.g. {lost[0].name}: {how}.")


def _key(file: ImageFile) -> str:
    return str(PurePosixPath(file.in_class).with_suffix(""))


def _read_mask(path: Path, file: ImageFile) -> Image.Image:
    try:
        mask = decode(path.read_bytes(), channels=1)
    except (OSError, InputError) as failure:
        raise InputError(f"the mask {path} {failure}.") from failure
    size = size_of(file.path)
    if mask.size != size:
        raise InputError(
            f"the mask {path} is {mask.width} x {mask.height} pixels and its image {file.name} {size[0]} x {size[1]}. "
            "Give masks as large as their images."
        )
    return mask.point(lambda value: 255 if value else 0)


def _cropped(mask: Image.Image, crop: Crop, channels: int, source: Path) -> Tensor:
    """What the network sees of it; a mask whose object the crop cuts away says nothing, so it marks the whole crop."""
    if mask.getbbox() is None:
        raise InputError(f"the mask {source} marks nothing: what is not black is the object.")
    seen = crop(mask.convert("RGB" if channels == 3 else "L"))[0] >= 128
    return seen if seen.any() else torch.ones_like(seen)


def read_groups(file: Path, names: Sequence[str], pairs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Group of each image.

    Args:
        file: where the pairs are from, for messages.
        names: of all images, as `class folder/file name`.
        pairs: path and group.

    Raises:
        InputError: nothing is there, a path names no image, has no group, or two.
    """
    known: Mapping[str, str] = {"/".join(name.split("/")[-2:]): name for name in names}
    found: dict[str, str] = {}
    for path, group in pairs:
        name = known.get("/".join(PurePosixPath(path).parts[-2:]))
        if name is None:
            raise InputError(
                f"{file} names {path}, which is none of the {len(names)} images. Name them as `class folder/file`, "
                f"e.g. {next(iter(known))}."
            )
        if not group:
            raise InputError(f"{file}: {path} has no group. Expected lines `path,group`.")
        if found.setdefault(name, group) != group:
            raise InputError(f"{file}: {path} is in {found[name]} and in {group}. An image is of one group.")
    if not found:
        raise InputError(f"{file} holds no line `path,group`.")
    return found
