"""Files and folders behind a URL: s3://, gs://, hf://, https:// and whatever else fsspec opens."""

import functools
import io
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.sources.source import Member, SourceError, by_name, is_image
from protonmf_cli.options import without_secrets

Result = TypeVar("Result")
WAITS = (0.5, 2.0, 8.0)
"""Seconds before another try."""
FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, InputError)
"""What no further try changes."""
BLOCK = 8 * 2**20
"""Bytes that are fetched at once where a file is read in order."""
VERSIONS = (
    "ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "Digest", "sha", "blob_id", "xet_hash", "last_commit",
    "mtime", "modified", "modify", "modificationTime", "LastModified", "last_modified", "Last-Modified", "updated",
    "created",
)  # fmt: skip
"""What stores say of a file that changes when it is replaced."""


def is_url(words: str) -> bool:
    """Whether words are an address of a store rather than a path.

    >>> is_url("s3://bucket/train"), is_url("C:/data")
    (True, False)
    """
    scheme, mark, _ = words.partition("://")
    return bool(mark) and len(scheme) > 1 and scheme.replace("+", "").replace("-", "").isalnum()


@dataclass(frozen=True)
class Store:
    """A folder behind a URL, below which files are named."""

    url: str
    witness: str = ""
    """What is below it as long as the store is: a file, or the folder itself."""

    @property
    def place(self) -> tuple[Any, str]:
        """The file system and the folder's path in it; see `opened`."""
        return opened(self.url)

    def path_of(self, name: str) -> str:
        """Path of something below it, in the file system."""
        return f"{self.place[1].rstrip('/')}/{name}" if name else self.place[1]

    def check(self) -> None:
        """After something below it could not be read.

        Raises:
            SourceError: it cannot be reached any more.
        """
        address = without_secrets("/".join(filter(None, (self.url.rstrip("/"), self.witness))))
        try:
            files, path = self.place[0], self.path_of(self.witness)
            files.invalidate_cache()
            patiently(lambda: files.info(path))
        except InputError as failure:
            raise SourceError(without_secrets(failure.words)) from failure
        except Exception as failure:  # each kind of store has its own
            raise SourceError(
                f"{address} cannot be reached any more ({_reason(failure)}): it was removed, the connection is lost, "
                "or credentials have expired. Run the same command again when it is there."
            ) from failure


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store."""

    store: Store
    name: str
    length: int | None = None
    """Bytes, as listed; asked for where they are not."""

    def __str__(self) -> str:
        return without_secrets(f"{self.store.url.rstrip('/')}/{self.name}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Last folder of the store's address, folders below it, and file name."""
        return (self.store.url.rstrip("/").rpartition("/")[2], *self.name.split("/"))

    @property
    def local(self) -> Path | None:
        """None: it lies elsewhere."""
        return None

    @property
    def path(self) -> str:
        """In the store's file system."""
        return self.store.path_of(self.name)

    def _info(self) -> dict[str, Any]:
        found: dict[str, Any] = patiently(lambda: self.store.place[0].info(self.path))
        return found

    def state(self) -> str:
        """Size in bytes."""
        return str(self.size())

    def size(self) -> int:
        """Bytes."""
        return self.length if self.length is not None else int(self._info()["size"])

    def version(self) -> str | None:
        """Size, and what the store has for a version; None where it has nothing."""
        info = self._info()
        found = [f"{key} {info[key]}" for key in VERSIONS if info.get(key)]
        return " ".join([str(info.get("size")), *found]) if found else None

    def open(self) -> IO[bytes]:
        """Read in large blocks, each by a request of its own."""
        return io.BufferedReader(_Blocks(self), BLOCK)

    def read_bytes(self) -> bytes:
        """The content."""
        found: bytes = patiently(lambda: self.store.place[0].cat_file(self.path))
        return found

    def read_range(self, start: int, size: int) -> bytes:
        """One request.

        Raises:
            OSError: it failed.
            SourceError: the store gives files as a whole only, as some web servers do.
        """
        found: bytes = patiently(lambda: self.store.place[0].cat_file(self.path, start=start, end=start + size))
        if len(found) > size:
            raise SourceError(
                f"{self} is given as a whole only, so that no image in it can be read: give a copy of it."
            )
        return found

    def glance(self) -> bytes:
        """The content."""
        return self.read_bytes()

    def check_source(self) -> None:
        """The store."""
        self.store.check()

    def check(self) -> None:
        """The file, which held many images."""
        Store(self.store.url, self.name).check()


class _Blocks(io.RawIOBase):
    """A remote file that is read in order, with jumps."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self.size, self.place = file, file.size(), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        count = max(0, min(len(buffer), self.size - self.place))
        found = self.file.read_range(self.place, count) if count else b""
        buffer[: len(found)] = found
        self.place += len(found)
        return len(found)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder of a store."""

    url: str

    def __str__(self) -> str:
        return without_secrets(self.url)

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.url.rstrip("/").rpartition("/")[2]

    def entries(self) -> tuple[list[str], list[str], list[str]]:
        """By one request."""
        files, root = opened(self.url)
        with explained(self.url):
            found = patiently(lambda: files.ls(root, detail=True))
        folders: list[str] = []
        others: list[str] = []
        for each in found:
            name = each["name"].rstrip("/").rpartition("/")[2]
            if each["name"].rstrip("/") != root.rstrip("/"):
                (folders if each["type"] == "directory" else others).append(name)
        return sorted(folders), sorted(others), []

    def child(self, name: str) -> "RemoteFolder":
        """A folder in it."""
        return RemoteFolder(f"{self.url.rstrip('/')}/{name}")

    def file(self, name: str) -> RemoteFile:
        """A file in it."""
        return RemoteFile(Store(self.url), name)

    def images_in(self, folders: Iterable[str]) -> tuple[dict[str, list[tuple[str, Member]]], list[str]]:
        """All files below it are listed at once, with their sizes."""
        found: dict[str, list[tuple[str, Member]]] = {folder: [] for folder in folders}
        if not found:
            return {}, []
        files, root = opened(self.url)
        with explained(self.url):
            listed = patiently(lambda: files.find(root, detail=True))
        store = Store(self.url)
        for path, info in listed.items():
            name = path[len(root.rstrip("/")) + 1 :]
            folder, _, below = name.partition("/")
            if folder in found and is_image(name) and not any(part.startswith(".") for part in below.split("/")):
                found[folder].append((name, RemoteFile(store, name, info.get("size"))))
        return {folder: by_name(images) for folder, images in found.items()}, []


@functools.lru_cache(maxsize=64)
def opened(url: str) -> tuple[Any, str]:
    """The file system of a URL, and the path in it.

    Raises:
        InputError: there is no such kind of store, or the package that opens it is missing.
    """
    import fsspec

    scheme = url.partition("://")[0]
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as failure:
        missing = getattr(failure.__cause__, "name", None) or getattr(failure, "name", None) or "the package for it"
        raise InputError(f"{url} is opened by {missing}: install it with `pip install {missing}`.") from failure
    except ValueError as failure:
        if scheme in fsspec.available_protocols():
            raise InputError(f"{url} cannot be opened: {_reason(failure)}.") from failure
        raise InputError(
            f"{url}: {scheme}:// is no kind of store that is known; s3://, gs://, az://, hf://, https:// and others of "
            "fsspec are."
        ) from failure
    return files, str(path)


@contextmanager
def explained(url: str) -> Iterator[None]:
    """What a store raises, in a sentence.

    Raises:
        InputError: there is nothing, no access, or no connection.
    """
    shown = without_secrets(url)
    try:
        yield
    except InputError as failure:
        raise type(failure)(without_secrets(failure.words)) from failure
    except FileNotFoundError as failure:
        raise InputError(
            f"the data {shown} does not exist, cannot be reached, or is not shown without credentials."
        ) from failure
    except Exception as failure:
        if _is_refusal(failure):
            scheme = url.partition("://")[0]
            raise InputError(
                f"{shown} may not be read: {_reason(failure)}. Set the credentials of {scheme}:// as its own tools "
                "take them, in the environment or in their files."
            ) from failure
        raise InputError(f"{shown} cannot be reached: {_reason(failure)}.") from failure


def patiently(request: Callable[[], Result]) -> Result:
    """A request, made again after some seconds while the store fails in a way that may pass.

    Raises:
        OSError: it failed for good, or every time.
        InputError: there is no package for the store.
    """
    for wait in (*WAITS, None):
        try:
            return request()
        except FINAL:
            raise
        except Exception as failure:  # each kind of store has its own
            if _is_refusal(failure):
                raise PermissionError(_reason(failure)) from failure
            if wait is None:
                raise OSError(_reason(failure)) from failure
            time.sleep(wait)
    raise AssertionError


def _is_refusal(failure: Exception) -> bool:
    return isinstance(failure, PermissionError) or "credential" in f"{type(failure).__name__} {failure}".lower()


def _reason(failure: Exception) -> str:
    """First line of what a store said."""
    return without_secrets((str(failure) or type(failure).__name__).splitlines()[0].rstrip("."))
