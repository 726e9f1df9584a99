"""What every source of images is: members that can be read one by one, and how they are grouped by class."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, runtime_checkable

from protonmf_cli.errors import InputError, printable

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MOST_BYTES = 512 * 2**20
"""Of one image inside an archive, unpacked."""
LISTED = 8
"""Names shown in a message before "and N more"."""


class SourceError(InputError):
    """A source that cannot be read as a whole, or not any more: no single image is to blame, and none is skipped."""


class Member(Protocol):
    """One image of a source; small, hashable, and good in another process.

    `str` of it says where it lies, for messages, and ends with its class and its name.
    """

    def __hash__(self) -> int: ...

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders, at least the class, and file name."""

    @property
    def local(self) -> Path | None:
        """The file that holds this image alone, where there is one on this machine."""

    def state(self) -> str:
        """What changes with the content and is the same on every machine: its size, with a checksum where one is kept.

        Raises:
            OSError: it is not there.
        """

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            OSError: this image cannot be read.
            SourceError: its source cannot.
        """

    def glance(self) -> bytes:
        """The content, where a look at it is cheap and `state` has no checksum of it; else nothing.

        Raises:
            OSError: it cannot be read.
        """

    def check_source(self) -> None:
        """After an image could not be read: whether that is the image's fault.

        Raises:
            SourceError: what held all images is gone, e.g. a mount or a store.
        """


class File(Member, Protocol):
    """A file on this machine or an object of a store, which may hold many images."""

    @property
    def name(self) -> str:
        """Below the folder that it was found in, with forward slashes."""

    def open(self) -> IO[bytes]:
        """To be read in order, with jumps.

        Raises:
            OSError: it cannot be read.
        """

    def read_range(self, start: int, size: int) -> bytes:
        """So many bytes from an offset; fewer where it ends before.

        Raises:
            OSError: it cannot be read.
        """

    def size(self) -> int:
        """Bytes.

        Raises:
            OSError: it is not there.
        """

    def version(self) -> str | None:
        """What changes when the file is replaced, for what is kept about it on this machine; None if nothing is known.

        Raises:
            OSError: it is not there.
        """

    def check(self) -> None:
        """After something in it could not be read.

        Raises:
            SourceError: the file itself is gone.
        """


@runtime_checkable
class Folder(Protocol):
    """A folder on this machine or of a store; `str` of it is its address."""

    @property
    def name(self) -> str:
        """Last part of its address."""

    def entries(self) -> tuple[list[str], list[str], list[str]]:
        """Names of the folders, of the files, and of what is neither (pipes, links to nothing) in it, sorted.

        Raises:
            InputError: it cannot be read.
        """

    def child(self, name: str) -> "Folder":
        """A folder in it."""

    def file(self, name: str) -> File:
        """A file in it, or below it."""

    def images_in(self, folders: Iterable[str]) -> tuple[dict[str, list[tuple[str, Member]]], list[str]]:
        """Folder -> its image files and those below it, with their names as of `Listing.groups`; and names of what is
        neither file nor folder there.

        Raises:
            InputError: one cannot be read.
        """


Groups = dict[str, list[tuple[str, Member]]]
"""class -> images, each with its name `CLASS/file`"""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source holds of one split."""

    where: str
    """Address, for messages."""
    split: str
    """The split's name where there is one, else the name of the data without its suffix."""
    groups: Groups
    """As the source calls its classes; the images sorted by name."""
    order: tuple[str, ...] = ()
    """All classes in the source's own order, where it has one; they may have no images."""
    empty: tuple[str, ...] = ()
    """Class folders without images."""
    notes: tuple[str, ...] = ()
    """What was left out, for the user."""

    @property
    def names(self) -> list[str]:
        """Classes with images, in the source's own order, else sorted."""
        return [name for name in self.order or sorted(self.groups) if name in self.groups]


def by_name(images: Iterable[tuple[str, Member]]) -> list[tuple[str, Member]]:
    """Sorted by folders and file name, as a listing of folders is."""
    return sorted(images, key=lambda image: image[0].replace("/", "\0"))


def is_image(name: str) -> bool:
    """Whether a file is called like an image and is not hidden.

    >>> is_image("a/1.JPG"), is_image("a/.1.jpg"), is_image("a/1.txt")
    (True, False, False)
    """
    last = name.rpartition("/")[2]
    return suffix(last) in SUFFIXES and not last.startswith(".")


def suffix(name: str) -> str:
    """What follows the last dot of a file's name, with the dot, in small letters.

    >>> suffix("a.b/1.JPG"), suffix("a.b/1")
    ('.jpg', '')
    """
    stem, dot, last = name.rpartition("/")[2].rpartition(".")
    return f"{dot}{last.lower()}" if stem else ""


def stem(name: str) -> str:
    """Last part of a name or an address, without its suffix.

    >>> stem("data/train-0.tar"), stem("data.v2/images")
    ('train-0', 'images')
    """
    last = name.rstrip("/").rpartition("/")[2]
    return last.removesuffix(last[len(last) - len(suffix(last)) :])


def listed(names: Iterable[str]) -> str:
    """The first few names and how many more there are."""
    found = [printable(name) for name in names]
    more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more
