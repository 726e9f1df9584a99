"""Pictures of a page: how much of them it holds, and how they get into it."""

import base64
import hashlib
import io
from dataclasses import dataclass, field

from PIL import Image

from protonmf_cli.errors import ModelFileError
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
    pair: int
    """Longest side of an image that something was pasted into."""
    pairs: int
    """Of these, before and after, of each prototype of an audit."""

    def words(self, *, audited: bool) -> str:
        """What was left out.

        Args:
            audited: an audit is shown too.
        """
        found = []
        if self.patches < MANY:
            found.append(
                f"training patches are shown at {self.patch} pixels, at most {self.patches} of each prototype; "
                f"explained images at {self.crop} pixels"
            )
        if audited:
            count = f"at most {self.pairs} of each prototype" if self.pairs else "none"
            found.append(f"images with something pasted in at {self.pair} pixels, {count}")
        return "; ".join(found)


MANY = 1000
"""More than there are."""
DIGITS = 20
"""Of a hash of its content in the name of a picture: different pictures never share a name."""
FULL = Detail(patch=100_000, crop=100_000, patches=MANY, quality=90, pair=100_000, pairs=MANY)
DETAILS = (
    Detail(patch=168, crop=384, patches=MANY, quality=78, pair=224, pairs=MANY),
    Detail(patch=168, crop=384, patches=MANY, quality=78, pair=128, pairs=2),
    Detail(patch=128, crop=256, patches=4, quality=72, pair=112, pairs=1),
    Detail(patch=112, crop=224, patches=3, quality=68, pair=96, pairs=1),
    Detail(patch=96, crop=192, patches=2, quality=62, pair=96, pairs=0),
    Detail(patch=80, crop=160, patches=1, quality=55, pair=96, pairs=0),
    Detail(patch=56, crop=128, patches=1, quality=45, pair=96, pairs=0),
)
"""The most detailed first; images with something pasted in are the first to shrink."""
WITHOUT_AUDIT = tuple(detail for detail in DETAILS if detail.pair != 128)


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

    def pasted(self, pixels: Pixels) -> int:
        """Number of an image (height, width, channels) that something is pasted into."""
        jpeg = as_jpeg(Image.fromarray(as_rgb(pixels)), self.detail.pair, self.detail.quality)
        if jpeg not in self.known:  # one image may be chosen for many prototypes
            self.known[jpeg] = self._add(jpeg)
        return self.known[jpeg]

    def _add(self, jpeg: bytes) -> int:
        number = len(self.listed)
        if self.folder:
            name = f"{self.folder}/{hashlib.sha256(jpeg).hexdigest()[:DIGITS]}.jpg"
            self.files[name] = jpeg
            self.listed.append(name)
        else:
            self.listed.append(base64.b64encode(jpeg).decode())
        return number


def opened(jpeg: bytes) -> Image.Image:
    """A training image of a model file, which holds JPEG files alone."""
    try:
        return Image.open(io.BytesIO(jpeg), formats=["JPEG"]).convert("RGB")
    except (OSError, SyntaxError, ValueError) as failure:
        raise ModelFileError("a training patch in it is no JPEG image that can be decoded") from failure


def as_jpeg(picture: Image.Image, most: int, quality: int) -> bytes:
    """A picture as a JPEG file, made smaller where its longest side is above `most`."""
    if max(picture.size) > most:
        scale = most / max(picture.size)
        size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
