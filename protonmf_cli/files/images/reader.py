"""Image files: found, decoded, cut to what the network sees, with their class and origin."""

import errno
import hashlib
import io
import stat
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.sources.local import no_file, read_local
from protonmf_cli.files.images.sources.source import Member, SourceError
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
WITH_EXIF = ("JPEG", "MPO", "TIFF", "WEBP")
MOST_PIXELS = 64_000_000
MOST_TIMES_AS_LONG = 500
"""Longest side against shortest; beyond it, resizing the short side makes a giant of the long one."""
JPEG_QUALITY = 90
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
NOT_ITS_FAULT = frozenset({errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOTCONN, errno.ETIMEDOUT})
"""What a disk or a network that fails, or a process with too many open files, says of any image."""

Crop = Callable[[Image.Image], Tensor]
"""A PIL image to what the network sees: uint8 (channels, height, width)."""
Change = Callable[[Image.Image], Image.Image]
"""Something done to a picture before it is cropped."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageFile:
    """One file of a data set, or one by itself."""

    path: Path | Member
    """A path where it is by itself."""
    name: str
    """Relative to the data folder, with forward slashes."""
    class_index: int
    """-1 where it is unknown."""
    labels: tuple[int, ...] = ()
    """All its classes, where they are known."""
    box: Box | None = None
    """The picture is cut to this rectangle first."""

    @property
    def in_class(self) -> str:
        """`class folder/file name`, by which further files speak of it."""
        return "/".join(self.path.parts[-2:])

    @property
    def local(self) -> Path | None:
        """By which a command finds it again; None where it lies in something else or elsewhere."""
        return self.path if isinstance(self.path, Path) else self.path.local

    def state(self) -> str:
        """What changes with its content and is the same on every machine.

        Raises:
            OSError: it is not there.
        """
        return str(self.path.stat().st_size) if isinstance(self.path, Path) else self.path.state()

    def read_bytes(self) -> bytes:
        """See `content_of`."""
        return content_of(self.path)

    def glance(self) -> bytes:
        """Its content, where that is cheap; else nothing.

        Raises:
            OSError: it cannot be read.
        """
        return read_local(self.path) if isinstance(self.path, Path) else self.path.glance()

    def check_source(self, cause: BaseException | None = None) -> None:
        """After it could not be read: whether that is its own fault.

        Raises:
            SourceError: what held all images, or its folder, is gone, or the disk fails.
        """
        if isinstance(cause, OSError) and cause.errno in NOT_ITS_FAULT:
            raise SourceError(
                f"{self.path} could not be read: {cause.strerror}. That befalls any image, so none is skipped for it: "
                "run the same command again once it has passed, or without this file if it stays."
            )
        if not isinstance(self.path, Path):
            self.path.check_source()


def content_of(path: Path | Member) -> bytes:
    """Bytes of an image.

    Raises:
        OSError: it cannot be read, or is no file.
        SourceError: what holds it cannot be read.
    """
    if not isinstance(path, Path):
        return path.read_bytes()
    if not stat.S_ISREG(mode := path.stat().st_mode):  # not opened: whoever writes to a pipe is not to be woken
        raise OSError(no_file(mode))
    return read_local(path)


def size_of(path: Path | Member) -> tuple[int, int]:
    """Width and height of an image file, without decoding it."""
    with Image.open(io.BytesIO(content_of(path)), formats=FORMATS) as picture:
        return picture.size


TURNED = range(2, 9)
"""Orientations of EXIF in which a picture is stored otherwise than it is to be shown."""


def is_turned(path: Path) -> bool:
    """Whether a picture is stored otherwise than its camera says that it is to be shown (EXIF)."""
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=FORMATS) as picture:
            # of others it would decode the whole picture
            orientation = picture.getexif().get(ExifTags.Base.Orientation, 1) if picture.format in WITH_EXIF else 1
            return orientation in TURNED
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False


def decode(content: bytes, *, channels: int = 3, exif_transpose: bool = False) -> Image.Image:
    """Decode one image as timm does for colour, but refuse what is dangerous and scale what it would clip.

    Args:
        content: bytes of a file in one of `FORMATS`; of an animation the first frame.
        channels: 3 for RGB, 1 for grey.
        exif_transpose: turn it as the camera says.

    Raises:
        InputError: not an image, damaged, or too large or too narrow; the sentence begins with a verb.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            return as_read(picture, channels=channels, exif_transpose=exif_transpose)
    except Image.DecompressionBombError as failure:
        raise InputError(f"has too many pixels, at most {MOST_PIXELS:,} are read") from failure
    except UnidentifiedImageError as failure:
        raise InputError(_what_it_is(content)) from failure
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, TypeError) as failure:
        raise InputError(f"is damaged: {failure}") from failure


def _what_it_is(content: bytes) -> str:
    """Of what is no image."""
    if not content:
        return "is empty"
    if content.startswith(LFS_POINTER):
        return "is a pointer of git-lfs and not the image: fetch it with `git lfs pull`"
    return f"is not an image in one of the formats {', '.join(FORMATS)}"


def as_read(picture: Image.Image, *, channels: int = 3, exif_transpose: bool = False) -> Image.Image:
    """A picture as `decode` gives it.

    Raises:
        InputError: it is too large or too narrow; the sentence begins with a verb.
        OSError, ValueError: it cannot be decoded.
    """
    if picture.width * picture.height > MOST_PIXELS:
        raise InputError(f"has {picture.width} x {picture.height} pixels, at most {MOST_PIXELS:,} are read")
    if max(picture.size) > MOST_TIMES_AS_LONG * min(picture.size):
        raise InputError(
            f"is {picture.width} x {picture.height} pixels, at most {MOST_TIMES_AS_LONG} times as long as wide is read"
        )
    picture.load()
    if exif_transpose:
        picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        picture = _to_8_bit(picture)
    return picture.convert("RGB" if channels == 3 else "L")


def _to_8_bit(picture: Image.Image) -> Image.Image:
    """Scale 16-bit integers by 1/257, and floats from their own range."""
    values = np.asarray(picture).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("it holds NaN or infinite values")
    if picture.mode.startswith("I"):
        values = values / 257 if values.max(initial=0) > 255 else values
    elif values.max(initial=0) > values.min(initial=0):
        values = (values - values.min()) / (values.max() - values.min()) * 255
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))


def read_crop(
    path: Path | Member,
    crop: Crop,
    *,
    channels: int,
    exif_transpose: bool,
    box: Box | None = None,
    change: Change | None = None,
) -> tuple[Tensor, str]:
    """One file as (crop, sha256 of its bytes); cut to `box` and changed by `change` before it is cropped.

    Raises:
        InputError: the file cannot be read; the sentence begins with a verb.
    """
    return cropped(read(path), crop, channels=channels, exif_transpose=exif_transpose, box=box, change=change)


def read(path: Path | Member) -> bytes:
    """Content of one file.

    Raises:
        InputError: it cannot be read; the sentence begins with a verb.
        SourceError: what holds it cannot be read.
    """
    try:
        return content_of(path)
    except (OSError, ValueError) as failure:
        raise InputError(f"cannot be read: {getattr(failure, 'strerror', None) or failure}") from failure


def cropped(
    content: bytes,
    crop: Crop,
    *,
    channels: int,
    exif_transpose: bool,
    box: Box | None = None,
    change: Change | None = None,
) -> tuple[Tensor, str]:
    """As `read_crop`, of a file's content.

    Raises:
        InputError: it is no picture, or has nothing inside its box; the sentence begins with a verb.
    """
    picture = decode(content, channels=channels, exif_transpose=exif_transpose)
    if box is not None:
        picture = cut(picture, box)
    if change is not None:
        picture = change(picture)
    return crop(picture), hashlib.sha256(content).hexdigest()


def clipped(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A box in whole pixels inside a picture of (width, height).

    >>> clipped((-3.0, 2.5, 50.0, 9.0), (40, 30))
    (0, 2, 40, 9)
    """
    return max(0, int(box[0])), max(0, int(box[1])), min(size[0], int(box[2])), min(size[1], int(box[3]))


def cut(picture: Image.Image, box: Box) -> Image.Image:
    """The part of a picture inside a box, which is clipped to the picture.

    Raises:
        InputError: nothing is inside; the sentence begins with a verb.
    """
    left, top, right, bottom = clipped(box, picture.size)
    if right <= left or bottom <= top:
        raise InputError(f"has no pixels inside its box {box} ({picture.width} x {picture.height} pixels)")
    return picture.crop((left, top, right, bottom))


def encode_jpeg(crop: Tensor) -> bytes:
    """A uint8 crop (channels, height, width) as a JPEG file."""
    pixels = crop.permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def crop_of_jpeg(content: bytes, channels: int) -> Tensor:
    """The uint8 crop (channels, height, width) of a JPEG file of `encode_jpeg`, up to the loss of compression.

    Raises:
        ModelFileError: it cannot be decoded.
    """
    try:
        return pixels_of(decode(content, channels=channels))
    except InputError as failure:
        raise ModelFileError(f"a training patch in the model file {failure.words}.") from failure


def pixels_of(picture: Image.Image) -> Tensor:
    """uint8 (channels, height, width) of a picture, as it is."""
    pixels = np.asarray(picture)
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1).copy()).permute(2, 0, 1)


@dataclass(frozen=True, kw_only=True)
class ImageReader:
    """Decodes in threads (Pillow lets go of the interpreter's lock) ahead of whoever uses the batches."""

    crop: Crop
    channels: int
    exif_transpose: bool
    batch_size: int
    workers: int

    def batches(self, files: Sequence[ImageFile]) -> Iterator[ImageBatch]:
        """Batches in the order of the files, none across a change of class; unreadable files are named in them."""
        return self.batches_of([files])

    def batches_of(self, runs: Iterable[Sequence[ImageFile]]) -> Iterator[ImageBatch]:
        """Batches of one run of files after the other, as of `batches`; a run is asked for when its turn is near."""
        sizes: deque[int] = deque()

        def files() -> Iterator[ImageFile]:
            for run in runs:
                counts = [len(list(same)) for _, same in groupby(run, key=lambda file: file.class_index)]
                sizes.extend(size for count in counts for size in _sizes(count, self.batch_size))
                yield from run

        ready = ahead(lambda file: (file, self.read(file)), files(), workers=self.workers, window=3 * self.batch_size)
        for first in ready:
            yield _batch([first, *islice(ready, sizes.popleft() - 1)])

    def read(self, file: ImageFile, change: Change | None = None) -> tuple[Tensor, str] | Skipped:
        """Crop and sha256 of one file, changed before it is cropped; why not, where it cannot be read.

        Raises:
            SourceError: what held all images is gone.
        """
        try:
            content = read(file.path)
        except SourceError:
            raise
        except InputError as failure:
            file.check_source(failure.__cause__)
            return Skipped(path=file.name, reason=str(failure))
        try:
            return cropped(
                content,
                self.crop,
                channels=self.channels,
                exif_transpose=self.exif_transpose,
                box=file.box,
                change=change,
            )
        except InputError as failure:
            return Skipped(path=file.name, reason=str(failure))


def _sizes(count: int, most: int) -> list[int]:
    """Batch sizes for a class: full ones, then powers of two.

    Few different shapes keep the memory and the time that a CPU's convolution library spends on each new one.

    >>> _sizes(75, 32)
    [32, 32, 8, 2, 1]
    """
    rest = count % most
    return [most] * (count // most) + [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]


def _batch(ready: Sequence[tuple[ImageFile, tuple[Tensor, str] | Skipped]]) -> ImageBatch:
    crops, sources, labels, skipped = [], [], [], []
    for file, result in ready:
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            crops.append(result[0])
            sources.append(ImageSource(path=file.name, sha256=result[1]))
            labels.append(file.labels)
    return ImageBatch(
        class_index=ready[0][0].class_index,
        crops=torch.stack(crops) if crops else torch.empty(0, 0, 0, 0, dtype=torch.uint8),
        sources=tuple(sources),
        labels=tuple(labels),
        skipped=tuple(skipped),
    )
