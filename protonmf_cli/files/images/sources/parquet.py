"""Images in the rows of parquet files, as Hugging Face data sets have them.

Rows lie in groups that can only be read as a whole, and a class's rows are usually spread over all groups. So the
images of a file are copied once, in order, to the user's cache folder, where each can be read by itself.
"""

import functools
import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.sources.kept import kept_path
from protonmf_cli.files.images.sources.local import read_local
from protonmf_cli.files.images.sources.shards import distinct, labelled_listing, of_split
from protonmf_cli.files.images.sources.source import File, Listing, SourceError, listed, stem
from protonmf_cli.files.leftovers import sweep

FILES_AT_ONCE = 8
ROWS_AT_ONCE = 64
IMAGES = ("image", "img", "jpg", "png", "picture", "pixels")
"""Columns of images that bring no word of what they are."""
LABELS = ("label", "labels", "fine_label", "class", "cls", "target", "category")
"""Columns of classes that bring no word of what they are."""


class Columns(NamedTuple):
    """Where a file has what."""

    image: str
    nested: bool
    """The image is a struct with bytes."""
    path: bool
    """And the struct has the name of the file."""
    label: str
    names: tuple[str, ...]
    """Of the classes, where the data set brings them and its labels are their numbers."""


@dataclass(frozen=True)
class Table:
    """A file with images, as it was when it was listed."""

    file: File
    version: str | None
    length: int
    """Bytes of the file."""
    footer: str
    """Digest of where its rows lie, how large they are, and what was noted of their values."""
    columns: Columns


@dataclass(frozen=True, slots=True)
class ParquetRow:
    """The image of one row."""

    table: Table
    row: int
    name: str
    """`CLASS/file`"""

    def __str__(self) -> str:
        return f"{self.table.file}/{self.name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Class and file name."""
        return tuple(self.name.split("/"))

    @property
    def local(self) -> Path | None:
        """None: it lies in a table."""
        return None

    def state(self) -> str:
        """Its row and the file's bytes and footer: those of the image are not known before all are read."""
        return f"{self.row} of {self.table.length} {self.table.footer}"

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            OSError: the row has none.
            SourceError: the file's images cannot be copied.
        """
        try:
            return self._read(*_copied(self.table))
        except FileNotFoundError:  # the cache folder was emptied
            _copied.cache_clear()
            return self._read(*_copied(self.table))

    def _read(self, path: Path, ends: np.ndarray) -> bytes:
        start = int(ends[self.row - 1]) if self.row else 0
        if start == ends[self.row]:
            raise OSError("its row has no bytes of an image")
        return read_local(path, start, int(ends[self.row]) - start)

    def glance(self) -> bytes:
        """Nothing: all images of its file would be copied first."""
        return b""

    def check_source(self) -> None:
        """The file."""
        self.table.file.check()


class Row(NamedTuple):
    """What is known of a row before its image is read."""

    table: Table
    number: int
    label: str | None
    file: str
    """Name of the image's file, or empty."""

    @property
    def mark(self) -> str:
        """A name that no other row has."""
        return f"{stem(self.table.file.name)}-{self.number:06d}"


def parquet_listing(where: str, name: str, files: Sequence[File], split: str) -> Listing:
    """The labelled images of parquet files.

    Args:
        where: address of all of them, for messages.
        name: of the data, without suffix.
        files: as they are.
        split: to take, where the names of the files speak of splits.

    Raises:
        InputError: pyarrow is missing, a file is damaged, has no images or no classes, or there are none of this split.
    """
    chosen, named = of_split(where, files, split)
    rows = [row for found in ahead(_read, chosen, workers=FILES_AT_ONCE, window=2 * FILES_AT_ONCE) for row in found]
    lost = [f"row {row.number} of {row.table.file}" for row in rows if row.label is None]
    if lost:
        raise InputError(f"{len(lost)} of {len(rows)} images in {where} have no label, e.g. {lost[0]}.")
    labels = [row.label or "" for row in rows]
    shown = distinct([(label, row.file or row.mark, row.mark) for label, row in zip(labels, rows, strict=True)])
    members = [ParquetRow(row.table, row.number, name) for row, name in zip(rows, shown, strict=True)]
    tables = list({id(row.table): row.table for row in rows}.values())
    order = tables[0].columns.names if tables else ()
    return labelled_listing(where, named or name, zip(labels, shown, members, strict=True), order, _to_copy(tables))


def _to_copy(tables: Sequence[Table]) -> tuple[str, ...]:
    """What will be copied, for the user; nothing where it is there already."""
    lost = [table for table in tables if not _copy_of(table).is_file()]
    if not lost:
        return ()
    size = sum(table.length for table in lost) / 2**30
    return (
        f"the images in parquet ({size:.1f} GiB) are copied to {_copy_of(lost[0]).parent} when they are first read: "
        "there each can be read by itself",
    )


def _copy_of(table: Table) -> Path:
    return kept_path("images", table.file, f"{table.version} {table.length} {table.footer}")


def _pyarrow(file: File) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as failure:
        raise InputError(
            f"{file} is parquet, which is read by pyarrow: install it with `pip install 'protonmf[parquet]'`."
        ) from failure
    return pyarrow


def _opened(pyarrow: Any, file: File) -> Any:
    source: Any = file.open() if file.local is None else str(file.local)
    return pyarrow.parquet.ParquetFile(source, buffer_size=1 << 20, pre_buffer=False)


def _read(file: File) -> list[Row]:
    """All rows of a file, without their images."""
    pyarrow = _pyarrow(file)
    try:
        with _opened(pyarrow, file) as opened:
            columns = _columns(pyarrow, file, opened.schema_arrow)
            _check_held(file, opened.metadata, columns)
            paths = [f"{columns.image}.path"] if columns.path else []
            found = opened.read(columns=[*paths, columns.label], use_threads=False)
            values = found.column(columns.label).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as failure:
        raise InputError(f"{file} is damaged or not parquet: {str(failure).rstrip('.')}.") from failure
    size = file.size()
    table = Table(file=file, version=file.version(), length=size, footer=_footer(file, size), columns=columns)
    labels = [_label(value, columns.names, file) for value in values]
    files = found.column(columns.image).combine_chunks().flatten()[0] if paths else pyarrow.nulls(len(labels))
    names = [_last(each) for each in files.cast(pyarrow.binary()).to_pylist()]
    return [Row(table, n, label, name) for n, (label, name) in enumerate(zip(labels, names, strict=True))]


def _last(path: bytes | None) -> str:
    """Name of a file, in which any byte may be."""
    return (path or b"").decode(errors="surrogateescape").rpartition("/")[2]


def _footer(file: File, size: int) -> str:
    """Digest of what ends a file: the footer, its length (4 bytes) and PAR1."""
    length = int.from_bytes(file.read_range(size - 8, 4), "little")
    return hashlib.sha256(file.read_range(size - 8 - length, length)).hexdigest()[:16]


def _check_held(file: File, metadata: Any, columns: Columns) -> None:
    """Refuse a file that only names its images, as one that is written without embedding them."""
    wanted = f"{columns.image}.bytes" if columns.nested else columns.image
    lost = [
        chunk.statistics is not None and chunk.statistics.null_count == chunk.num_values
        for chunk in _chunks(metadata)
        if chunk.path_in_schema == wanted
    ]
    if lost and all(lost):
        raise InputError(
            f"{file} names the files of its images but does not hold them: give the folder of the images, or write the "
            "table with its images embedded, as `push_to_hub` does."
        )


def _chunks(metadata: Any) -> list[Any]:
    """Every column of every group of rows."""
    groups = [metadata.row_group(n) for n in range(metadata.num_row_groups)]
    return [group.column(n) for group in groups for n in range(group.num_columns)]


def _label(value: str | int | None, names: Sequence[str], file: File) -> str | None:
    """A class; None where a row has none, as test sets have an empty name or a number below 0."""
    if value is None or value == "" or (isinstance(value, int) and value < 0):
        return None
    if not names or not isinstance(value, int):
        return str(value)
    if value >= len(names):
        raise InputError(
            f"{file} has a row of class {value}, but its features name {len(names)} classes only, counted from 0 "
            f"({listed(names)}). Correct the labels or the names."
        )
    return names[value]


def _columns(pyarrow: Any, file: File, schema: Any) -> Columns:
    """Columns of images and of classes: as the data set's own features say, else by type and name."""
    features = _features(schema.metadata or {})
    types = {field.name: field.type for field in schema}
    kinds = {name: feature.get("_type") for name, feature in features.items() if isinstance(feature, dict)}
    is_a = pyarrow.types
    nested = {n: [f.name for f in kind] for n, kind in types.items() if is_a.is_struct(kind)}
    nested = {n: fields for n, fields in nested.items() if "bytes" in fields}
    images = [*nested, *(n for n, kind in types.items() if is_a.is_binary(kind) or is_a.is_large_binary(kind))]
    words = (is_a.is_string, is_a.is_large_string, is_a.is_dictionary, is_a.is_integer)
    classes = [n for n, kind in types.items() if any(is_word(kind) for is_word in words)]
    image = _first([n for n in images if kinds.get(n) == "Image"] or images, IMAGES)
    label = _first([n for n in classes if kinds.get(n) == "ClassLabel"] or [n for n in LABELS if n in classes], LABELS)
    if image is None or label is None:
        what = "images (a struct of bytes and path, or bytes)" if image is None else "classes (numbers or names)"
        raise InputError(
            f"{file} has no column of {what}: its columns are {listed(types)}. Give it one that is called "
            f"{'image' if image is None else 'label'}."
        )
    names = tuple(map(str, features.get(label, {}).get("names") or ()))
    fields = nested.get(image, ())
    return Columns(image=image, nested=image in nested, path="path" in fields, label=label, names=names)


def _first(found: Sequence[str], preferred: Sequence[str]) -> str | None:
    return next((name for name in (*preferred, *found) if name in found), None)


def _features(metadata: dict[bytes, bytes]) -> dict[str, Any]:
    """What Hugging Face's own library noted about the columns."""
    try:
        found = json.loads(metadata[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


@functools.cache
def _copied(table: Table) -> tuple[Path, np.ndarray]:
    """Where the images of a file stand one after the other, and where each ends (int64, bytes from the start)."""
    try:
        path = _copy_of(table)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                sweep(path.parent, path.name)
                write_atomically(path, functools.partial(_copy, table))
        return path, _ends(path)
    except (OSError, InputError) as failure:
        raise SourceError(f"the images of {table.file} cannot be copied to the cache folder: {failure}") from failure


def _copy(table: Table, target: Path) -> None:
    """Write all images of a file, in order, then where each ends, then how many there are."""
    pyarrow = _pyarrow(table.file)
    image = table.columns.image
    ends, end = [], 0
    try:
        with _opened(pyarrow, table.file) as opened, target.open("wb") as written:
            _check_space(opened.metadata, image, target.parent)
            column = f"{image}.bytes" if table.columns.nested else image
            for batch in opened.iter_batches(batch_size=ROWS_AT_ONCE, columns=[column], use_threads=False):
                values = batch.column(0).flatten()[0] if table.columns.nested else batch.column(0)
                for value in values:
                    content = value.as_buffer()
                    end += written.write(content) if content is not None else 0
                    ends.append(end)
            written.write(np.array([*ends, len(ends)], dtype="<i8").tobytes())
    except pyarrow.ArrowException as failure:
        raise OSError(f"{table.file} is damaged: {failure}") from failure


def _check_space(metadata: Any, image: str, folder: Path) -> None:
    chunks = [chunk for chunk in _chunks(metadata) if chunk.path_in_schema.split(".")[0] == image]
    needed = sum(chunk.total_uncompressed_size for chunk in chunks)
    if needed > shutil.disk_usage(folder).free:
        raise OSError(
            f"{needed / 2**30:.1f} GiB are needed in {folder}; free them, or set XDG_CACHE_HOME to another disk."
        )


def _ends(path: Path) -> np.ndarray:
    size = path.stat().st_size
    count = int(np.frombuffer(read_local(path, size - 8, 8), dtype="<i8")[0])
    return np.frombuffer(read_local(path, size - 8 * (count + 1), 8 * count), dtype="<i8")
