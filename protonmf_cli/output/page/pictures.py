"""Pictures of a page: how much of them it holds, and how they get into it."""

import base64
import io
from dataclasses import dataclass, field

from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.output.figures.overlay import Pixels, as_rgb


@dataclass(frozen=True, kw_only=True)
class Detail:
    """How much of the pictures a page holds."""

    patch: int
    """Longest side of a training patch in pixels."""
    crop: int
    """Longest side of an explained image."""
    patches: int
    """Of each prototype, the strongest first."""
    quality: int
    """Of JPEG."""

    def words(self) -> str:
        """What was left out."""
        return (
            f"training patches are shown at {self.patch} pixels, at most {self.patches} of each prototype; explained "
            f"images at {self.crop} pixels"
        )


FULL = Detail(patch=100_000, crop=100_000, patches=1000, quality=90)
DETAILS = (
    Detail(patch=168, crop=384, patches=1000, quality=78),
    Detail(patch=128, crop=256, patches=4, quality=72),
    Detail(patch=112, crop=224, patches=3, quality=68),
    Detail(patch=96, crop=192, patches=2, quality=62),
    Detail(patch=80, crop=160, patches=1, quality=55),
    Detail(patch=56, crop=128, patches=1, quality=45),
)


@dataclass(kw_only=True)
class Pictures:
    """Pictures on their way into the page; equal ones are kept once."""

    detail: Detail
    folder: str = ""
    """Where files go; empty: into the page."""
    listed: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    known: dict[bytes, int] = field(default_factory=dict)
    sizes: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Width and height of the training images, before they were made smaller."""

    def patch(self, jpeg: bytes) -> int:
        """Number of a training image, given as a JPEG file."""
        if jpeg not in self.known:
            picture = opened(jpeg)
            self.sizes[jpeg] = picture.size
            whole = self.detail is FULL
            self.known[jpeg] = self._add(jpeg if whole else as_jpeg(picture, self.detail.patch, self.detail.quality))
        return self.known[jpeg]

    def crop(self, pixels: Pixels) -> int:
        """Number of an explained image (height, width, channels)."""
        return self._add(as_jpeg(Image.fromarray(as_rgb(pixels)), self.detail.crop, self.detail.quality))

    def _add(self, jpeg: bytes) -> int:
        number = len(self.listed)
        if self.folder:
            name = f"{self.folder}/{number}.jpg"
            self.files[name] = jpeg
            self.listed.append(name)
        else:
            self.listed.append(base64.b64encode(jpeg).decode())
        return number


def opened(jpeg: bytes) -> Image.Image:
    """A training image of a model file, which holds JPEG files alone."""
    try:
        return Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB")
    except OSError as failure:
        raise InputError("a training patch in the model file is not a JPEG image: the file is damaged.") from failure


def as_jpeg(picture: Image.Image, most: int, quality: int) -> bytes:
    """A picture as a JPEG file, made smaller where its longest side is above `most`."""
    if max(picture.size) > most:
        scale = most / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
