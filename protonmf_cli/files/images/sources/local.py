"""Files and folders of this machine."""

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.ahead import ahead_if_slow
from protonmf_cli.files.images.sources.source import Member, SourceError, by_name, is_image

FOLDERS_AT_ONCE, SLOW = 16, 0.02
"""Threads that read folders, where one takes longer than so many seconds: on a network's disk each is a wait."""
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""A pipe is opened without waiting for its other end, and then refused."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file below a folder."""

    root: Path
    name: str
    """Below the folder, or absolute."""
    lost: bool = False
    """Its own folder was not there either when it was listed: it is alone to blame that it cannot be read."""

    def __str__(self) -> str:
        return str(self.local)

    @property
    def local(self) -> Path:
        """Its path."""
        return self.root / self.name

    @property
    def parts(self) -> tuple[str, ...]:
        """Of the path."""
        return self.local.parts

    def state(self) -> str:
        """Size in bytes."""
        return str(self.size())

    def size(self) -> int:
        """Bytes."""
        return os.stat(os.path.join(self.root, self.name)).st_size  # noqa: PTH116, PTH118 (one per image: quicker so)

    def version(self) -> str:
        """Size and time of the last change."""
        found = self.local.stat()
        return f"{found.st_size} {found.st_mtime_ns}"

    def open(self) -> IO[bytes]:
        """Buffered."""
        return self.local.open("rb")

    def read_bytes(self) -> bytes:
        """See `read_local`."""
        return read_local(self.local)

    def read_range(self, start: int, size: int) -> bytes:
        """See `read_local`."""
        return read_local(self.local, start, size)

    def glance(self) -> bytes:
        """The content."""
        return self.read_bytes()

    def check_source(self) -> None:
        """The folder of all images, gone or empty as the place of a disk that was unmounted, and the file's own."""
        if self.lost:
            return
        own = self.local.parent
        folder = own if Path(self.name).is_absolute() else self.root
        if _is_gone(folder):
            raise _gone(folder)
        try:
            own.stat()
        except FileNotFoundError as failure:
            raise _gone(own) from failure
        except OSError:
            return

    def check(self) -> None:
        """The file, which held many images."""
        if not self.local.is_file():
            raise _gone(self.local)


def _is_gone(folder: Path) -> bool:
    """Whether a folder is not there or empty, as far as it may be looked into."""
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except OSError as failure:
        return not isinstance(failure, PermissionError)


def _gone(path: Path) -> SourceError:
    return SourceError(
        f"{path} is not there any more: it was removed, or its disk is no longer mounted. Bring it back and run the "
        "same command again."
    )


def no_file(mode: int) -> str:
    """Why a path is no image, and what to name instead."""
    if stat.S_ISDIR(mode):
        return "it is a folder; name the images in it (FOLDER/*.jpg), or give it to `protonmf report --images`"
    return "it is not a file"


def read_local(path: Path, start: int = 0, size: int | None = None) -> bytes:
    """Content of a file, or part of it, with no other call than to open, read and close it.

    Raises:
        OSError: it cannot be read, or is a folder, a pipe or a device.
    """
    number = os.open(path, _FLAGS)
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(no_file(found.st_mode))
        if start:
            os.lseek(number, start, os.SEEK_SET)
        left = found.st_size - start if size is None else size
        content = []
        while left > 0 and (part := os.read(number, left)):
            content.append(part)
            left -= len(part)
        return content[0] if len(content) == 1 else b"".join(content)
    finally:
        os.close(number)


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """Of the folder, also where it is given as `.`."""
        return self.path.name or self.path.resolve().name

    def entries(self) -> tuple[list[str], list[str], list[str]]:
        """Links count as what they lead to."""
        folders: list[str] = []
        files: list[str] = []
        others: list[str] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    (folders if _is(entry.is_dir) else files if _is(entry.is_file) else others).append(entry.name)
        except OSError as failure:
            raise InputError(f"{self.path} cannot be read: {failure.strerror or failure}.") from failure
        return sorted(folders), sorted(files), sorted(others)

    def child(self, name: str) -> "LocalFolder":
        """A folder in it."""
        return LocalFolder(self.path / name)

    def file(self, name: str) -> LocalFile:
        """A file in it."""
        return LocalFile(self.path, name)

    def images_in(self, folders: Iterable[str]) -> tuple[dict[str, list[tuple[str, Member]]], list[str]]:
        """One pass over each folder's entries, without a look at single files."""
        found: dict[str, list[tuple[str, Member]]] = {}
        others: list[str] = []
        for folder, names, left_out in ahead_if_slow(
            self._named, folders, workers=FOLDERS_AT_ONCE, window=4 * FOLDERS_AT_ONCE, seconds=SLOW
        ):
            found[folder] = by_name([(name, LocalFile(self.path, name)) for name in names])
            others += left_out
        return found, others

    def _named(self, folder: str) -> tuple[str, Sequence[str], Sequence[str]]:
        names, others = image_names_below(self.path / folder)
        return folder, [f"{folder}/{name}" for name in names], [f"{folder}/{name}" for name in others]


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; False of a link that leads in circles, or where nobody may look."""
    try:
        return kind()
    except OSError:
        return False


def image_names_below(folder: Path) -> tuple[list[str], list[str]]:
    """Image files of a folder and those below it, and what is neither file nor folder there, named from there.

    What is hidden is left out. Links to images are taken as they are; others are not followed.

    Raises:
        InputError: a folder cannot be read.
    """
    found: list[str] = []
    others: list[str] = []
    waiting: list[tuple[str, str]] = [("", str(folder))]
    while waiting:
        above, path = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    link = entry.is_symlink()
                    if is_image(entry.name) and (link or entry.is_file(follow_symlinks=False)):
                        found.append(above + entry.name)
                    elif entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
                        waiting.append((f"{above}{entry.name}/", entry.path))
                    elif not (entry.name.startswith(".") or _is(entry.is_file)):
                        others.append(above + entry.name)
        except OSError as failure:
            raise InputError(f"{path} cannot be read: {failure.strerror or failure}.") from failure
    return found, others


def images_below(folder: Path) -> list[Path]:
    """All image files of a folder and those below it, sorted; what is hidden is left out.

    Raises:
        InputError: a folder cannot be read.
    """
    return sorted(folder / name for name in image_names_below(folder)[0])
