"""Images inside a zip archive, read without unpacking it."""

import functools
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.sources.source import MOST_BYTES, File, Member, is_image
from protonmf_cli.files.images.sources.trees import plain_name

LOCAL_HEADER = struct.Struct("<4s22xHH")
"""Signature, and lengths of the name and of the extra field that stand before a member's content."""
SPARE = 256
"""Bytes of extra field, read along; longer ones are read again."""
ENCRYPTED = 0x1


@dataclass(frozen=True, slots=True)
class ZipMember:
    """One file of an archive, with what the table of contents says of it."""

    archive: File
    name: str
    """As the archive has it."""
    offset: int
    """Of its header, in bytes."""
    packed: int
    """Bytes in the archive."""
    unpacked: int
    crc: int
    method: int
    flags: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Folders and file name inside the archive."""
        return tuple(plain_name(self.name).split("/"))

    @property
    def local(self) -> Path | None:
        """None: it lies in an archive."""
        return None

    def state(self) -> str:
        """Size and checksum."""
        return f"{self.unpacked} {self.crc:08x}"

    def read_bytes(self) -> bytes:
        """The unpacked content.

        Raises:
            OSError: the member is damaged, encrypted or too large.
        """
        if max(self.packed, self.unpacked) > MOST_BYTES:
            raise OSError(f"it unpacks to more than {MOST_BYTES >> 20} MiB")
        if self.flags & ENCRYPTED:
            raise OSError("it is encrypted")
        before = LOCAL_HEADER.size + len(self.name.encode()) + SPARE
        raw = self.archive.read_range(self.offset, before + self.packed)
        if len(raw) < LOCAL_HEADER.size or not raw.startswith(b"PK\3\4"):
            raise OSError("the archive has something else in its place")
        _, name, extra = LOCAL_HEADER.unpack_from(raw)
        start = LOCAL_HEADER.size + name + extra
        content = raw[start : start + self.packed]
        if len(content) < self.packed:
            content += self.archive.read_range(self.offset + start + len(content), self.packed - len(content))
        return self._unpacked(content)

    def _unpacked(self, content: bytes) -> bytes:
        info = zipfile.ZipInfo(self.name)
        info.compress_type, info.CRC, info.compress_size, info.file_size = (
            self.method, self.crc, self.packed, self.unpacked,
        )  # fmt: skip
        try:
            with zipfile.ZipExtFile(io.BytesIO(content), "r", info) as member:
                return member.read(self.unpacked)  # and no more, whatever it would unpack to
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError) as failure:
            raise OSError(str(failure)) from failure

    def glance(self) -> bytes:
        """Nothing: its checksum is known."""
        return b""

    def check_source(self) -> None:
        """The archive."""
        self.archive.check()


def zip_images(archives: Sequence[File]) -> list[tuple[str, Member]]:
    """All images of an archive with their names in it.

    Raises:
        InputError: the archive is damaged or no zip archive.
    """
    found: list[tuple[str, Member]] = []
    for archive in archives:
        version = archive.version()
        found += _images(archive) if version is None else _images_of(archive, version)
    return found


@functools.lru_cache(maxsize=4)
def _images_of(archive: File, _version: str) -> tuple[tuple[str, Member], ...]:
    """Reading a table of contents takes longer than reading an image."""
    return _images(archive)


def _images(archive: File) -> tuple[tuple[str, Member], ...]:
    try:
        with archive.open() as file, zipfile.ZipFile(file) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as failure:  # the last of a version beyond all
        raise InputError(f"{archive} is damaged or not a zip archive: {str(failure).rstrip('.')}.") from failure
    return tuple((plain_name(info.filename), _member(archive, info)) for info in infos if is_image(info.filename))


def _member(archive: File, info: zipfile.ZipInfo) -> ZipMember:
    return ZipMember(
        archive=archive, name=info.filename, offset=info.header_offset, packed=info.compress_size,
        unpacked=info.file_size, crc=info.CRC, method=info.compress_type, flags=info.flag_bits,
    )  # fmt: skip
