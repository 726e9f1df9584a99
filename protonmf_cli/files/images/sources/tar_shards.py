"""Images inside tar archives, read where they lie: WebDataset shards, or class folders."""

import json
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.sources.kept import kept_path
from protonmf_cli.files.images.sources.shards import distinct, labelled_listing, of_split
from protonmf_cli.files.images.sources.source import MOST_BYTES, File, Listing, is_image, stem, suffix
from protonmf_cli.files.images.sources.trees import plain_name, tree_listing, tree_splits

SHARDS_AT_ONCE = 8
LABELS = (".json", ".cls")
"""Endings of files with an image's class; the later one counts."""
FIELDS = ("label", "cls", "class", "class_name")
"""Of a JSON file, in the order in which they are looked for."""
LONGEST_LABEL = 1 << 16
"""Bytes of a file with a class."""
EXPECTED = "Expected `key.jpg` with `key.cls` (a number or a name), or CLASS/image.jpg"


@dataclass(frozen=True, slots=True)
class TarMember:
    """One image of a shard."""

    shard: File
    name: str
    """`CLASS/file`, with further folders before it where the shard has some."""
    offset: int
    """In bytes."""
    length: int
    """Bytes."""

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    @property
    def parts(self) -> tuple[str, ...]:
        """Class and file name."""
        return tuple(self.name.split("/"))

    @property
    def local(self) -> Path | None:
        """None: it lies in a shard."""
        return None

    def state(self) -> str:
        """Size in bytes."""
        return str(self.length)

    def read_bytes(self) -> bytes:
        """The content.

        Raises:
            OSError: it is too large, or the shard ends before it.
        """
        if self.length > MOST_BYTES:
            raise OSError(f"it has more than {MOST_BYTES >> 20} MiB")
        content = self.shard.read_range(self.offset, self.length)
        if len(content) < self.length:
            raise OSError("the shard ends before it does")
        return content

    def glance(self) -> bytes:
        """The content."""
        return self.read_bytes()

    def check_source(self) -> None:
        """The shard."""
        self.shard.check()


class Index(NamedTuple):
    """What a shard holds."""

    images: list[tuple[str, int, int]]
    """Name, offset and bytes."""
    labels: dict[str, str]
    """Name without its suffix -> class."""


class Placed(NamedTuple):
    """An image in a shard."""

    shard: File
    name: str
    offset: int
    length: int
    label: str | None

    def called(self, name: str) -> TarMember:
        """The same as a member of another name."""
        return TarMember(self.shard, name, self.offset, self.length)


def tar_listing(where: str, name: str, files: Sequence[File], split: str) -> Listing:
    """The labelled images of shards.

    Args:
        where: address of all of them, for messages.
        name: of the data, without suffix.
        files: the shards.
        split: to take, where the names of the shards or of folders in them speak of splits.

    Raises:
        InputError: a shard is damaged, an image has no label, or there are none of this split.
    """
    chosen, named = of_split(where, files, split)
    images = _placed(chosen)
    lost = [image.name for image in images if image.label is None]
    if len(lost) == len(images):
        _refuse_loose(where, lost)
        return tree_listing(where, named or name, [(image.name, image.called(image.name)) for image in images], split)
    if lost:
        raise InputError(f"{len(lost)} of {len(images)} images in {where} have no label, e.g. {lost[0]}. {EXPECTED}.")
    labels = [image.label or "" for image in images]
    places = [(image.name.rpartition("/")[2], stem(image.shard.name)) for image in images]
    shown = distinct([(label, *place) for label, place in zip(labels, places, strict=True)])
    members = [image.called(name) for image, name in zip(images, shown, strict=True)]
    return labelled_listing(where, named or name, zip(labels, shown, members, strict=True))


def tar_splits(files: Sequence[File]) -> list[str]:
    """Which of train and val shards have, by folders inside them; empty where labels stand beside images."""
    images = _placed(files)
    if any(image.label is not None for image in images):
        return []
    return tree_splits([(image.name, image.called(image.name)) for image in images])


def _refuse_loose(where: str, names: Sequence[str]) -> None:
    loose = [name for name in names if "/" not in name]
    if loose:
        raise InputError(
            f"{len(loose)} images in {where} have neither a label nor a class folder, e.g. {loose[0]}. {EXPECTED}."
        )


def _placed(shards: Sequence[File]) -> list[Placed]:
    """The images of all shards, in the order of the shards."""
    indices = ahead(_index, shards, workers=SHARDS_AT_ONCE, window=2 * SHARDS_AT_ONCE)
    return [image for shard, index in zip(shards, indices, strict=True) for image in _labelled(shard, index)]


def _labelled(shard: File, index: Index) -> Iterator[Placed]:
    """With their labels; further pictures of a sample, as `key.mask.png` beside `key.jpg`, are left out."""
    for name, offset, size in index.images:
        stem = name[: -len(suffix(name))]
        label = index.labels.get(stem)
        if label is None and _sample(name) in index.labels:
            continue
        yield Placed(shard, name, offset, size, label)


def _sample(name: str) -> str:
    """Key of a sample as WebDataset has it: up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _index(shard: File) -> Index:
    """What a shard holds, from the cache folder where it was read before.

    Raises:
        InputError: it is damaged.
    """
    kept = kept_path("tar-index", shard, shard.version())
    with suppress(OSError, ValueError, TypeError):
        return Index(*json.loads(kept.read_bytes()))
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as opened:
            found = _read(file, opened)
            file.seek(opened.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as failure:
        raise InputError(f"{shard} is cut short, damaged or no tar archive: {failure}.") from failure
    with suppress(OSError, InputError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(found).encode())
    return found


def _read(file: IO[bytes], opened: tarfile.TarFile) -> Index:
    """One pass over the headers; only small files with labels are read."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, str]] = {ending: {} for ending in LABELS}
    for entry in opened:
        name, ending = plain_name(entry.name), suffix(entry.name)
        if is_image(name):
            if entry.isreg():
                images[name] = entry.offset_data, entry.size
            elif entry.islnk() and (place := images.get(plain_name(entry.linkname))):
                images[name] = place
        elif entry.isreg() and ending in labels and entry.size <= LONGEST_LABEL:
            file.seek(entry.offset_data)
            label = _label(file.read(entry.size), ending)
            if label is not None:
                labels[ending][name[: -len(ending)]] = label
    merged = {key: label for ending in LABELS for key, label in labels[ending].items()}
    return Index([(name, *place) for name, place in images.items()], merged)


def _label(content: bytes, ending: str) -> str | None:
    """Class in a file; None where it says nothing of one."""
    try:
        if ending == ".cls":
            return content.decode().strip() or None
        facts = json.loads(content)
    except ValueError:
        return None
    values = [facts[field] for field in FIELDS if field in facts] if isinstance(facts, dict) else []
    return next((str(value) for value in values if type(value) in (str, int) and value not in ("", -1)), None)
