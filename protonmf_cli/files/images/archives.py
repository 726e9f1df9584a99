"""Images inside a zip archive, read without unpacking it."""

import functools
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from protonmf_cli.errors import InputError

MOST_BYTES = 512 * 2**20
"""Of one image inside an archive, unpacked."""


class State(NamedTuple):
    """What tells one version of a member from another, under the names of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int
    """The checksum stands here: members are told apart by content, not by time."""


@dataclass(frozen=True, order=True)
class ZipMember:
    """One file of an archive; reads like a path."""

    archive: Path
    name: str

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and file name inside the archive."""
        return PurePosixPath(self.name.lstrip("/")).parts

    def exists(self) -> bool:
        """Always: members are listed before they are read."""
        return True

    def is_file(self) -> bool:
        """Always."""
        return True

    def stat(self) -> State:
        """Size and checksum."""
        info = opened(self.archive).getinfo(self.name)
        return State(st_size=info.file_size, st_mtime_ns=info.CRC)

    def read_bytes(self) -> bytes:
        """The unpacked content.

        Raises:
            OSError: the member is damaged, encrypted or too large.
        """
        archive = opened(self.archive)
        if archive.getinfo(self.name).file_size > MOST_BYTES:
            raise OSError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
        try:
            return archive.read(self.name)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError) as failure:
            raise OSError(str(failure)) from failure


def is_archive(path: Path) -> bool:
    """Whether a data set is to be read from a zip archive: by its name."""
    return path.is_file() and path.suffix.lower() == ".zip"


def members(path: Path) -> list[ZipMember]:
    """All files of an archive, sorted by name.

    Raises:
        InputError: the archive is damaged or no zip archive.
    """
    return [ZipMember(path, info.filename) for info in sorted(opened(path).infolist(), key=lambda i: i.filename)
            if not info.is_dir()]  # fmt: skip


def opened(path: Path) -> zipfile.ZipFile:
    """An archive, kept open until another file stands in its place.

    Raises:
        InputError: it is damaged or no zip archive.
    """
    try:
        state = path.stat()
    except OSError as failure:
        raise InputError(f"{path} cannot be read: {failure.strerror}.") from failure
    return _opened(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _opened(path: Path, _size: int, _changed: int) -> zipfile.ZipFile:
    """Reading an archive's table of contents takes longer than reading an image."""
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError) as failure:
        raise InputError(f"{path} is damaged or not a zip archive: {failure}.") from failure
