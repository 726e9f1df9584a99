"""Images inside tar archives, read where they lie: WebDataset shards, or class folders."""

import json
import posixpath
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.sources.kept import kept_path
from protonmf_cli.files.images.sources.shards import distinct, labelled_listing, of_split, splits_in
from protonmf_cli.files.images.sources.source import MOST_BYTES, File, Listing, is_image, stem, suffix
from protonmf_cli.files.images.sources.trees import SPLITS, plain_name, tree_listing, tree_splits

SHARDS_AT_ONCE = 8
LABELS = (".json", ".cls")
"""Endings of files with an image's class; the later one counts."""
FIELDS = ("label", "cls", "class", "class_name")
"""Of a JSON file, in the order in which they are looked for."""
MOST_LINKS = 40
"""That lead from one to the other."""
LONGEST_LABEL = 1 << 16
"""Bytes of a file with a class."""
NO_LABEL = re.compile(r"(-\d+)?")
"""Words for no class: nothing, or a number below 0."""
INDEX = "2"
"""Changes with what an index holds."""
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


Place = tuple[int, int]
"""Offset and length in bytes."""


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

    @property
    def mark(self) -> str:
        """Shard and folders, which tell images of one file name apart."""
        return "-".join((stem(self.shard.name), *self.name.split("/")[:-1]))

    def called(self, name: str) -> TarMember:
        """The same as a member of another name."""
        return TarMember(self.shard, name, self.offset, self.length)


def tar_listing(where: str, name: str, files: Sequence[File], split: str) -> Listing:
    """The labelled images of shards.

    Args:
        where: address of all of them, for messages.
        name: of the data, without suffix.
        files: the shards.
        split: to take, where folders in the shards or the names of the shards speak of splits; the folders in a single
            shard come before its name.

    Raises:
        InputError: a shard is damaged, an image has no label, or there are none of this split.
    """
    if len(files) == 1:
        images = _placed(files)
        named = None if _tree_splits(images) else of_split(where, files, split)[1]
    else:
        chosen, named = of_split(where, files, split)
        images = _placed(chosen)
    lost = [image.name for image in images if image.label is None]
    if len(lost) == len(images):
        _refuse_loose(where, lost)
        return tree_listing(where, named or name, [(image.name, image.called(image.name)) for image in images], split)
    if lost:
        raise InputError(f"{len(lost)} of {len(images)} images in {where} have no label, e.g. {lost[0]}. {EXPECTED}.")
    labels = [image.label or "" for image in images]
    places = [(image.name.rpartition("/")[2], image.mark) for image in images]
    shown = distinct([(label, *place) for label, place in zip(labels, places, strict=True)])
    members = [image.called(name) for image, name in zip(images, shown, strict=True)]
    return labelled_listing(where, named or name, zip(labels, shown, members, strict=True))


def tar_splits(files: Sequence[File]) -> list[str]:
    """Which of train and val shards have: see `tar_listing`."""
    named = [split for split in splits_in(files) if split in SPLITS]
    return named if named and len(files) > 1 else _tree_splits(_placed(files)) or named


def _tree_splits(images: Sequence[Placed]) -> list[str]:
    """By folders inside shards; empty where labels stand beside images."""
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
    """With their labels; further pictures of a sample, as `key.mask.png` beside `key.jpg`, are left out.

    Raises:
        InputError: which of two pictures is the sample's cannot be told.
    """
    plain = {_without_suffix(name) for name, *_ in index.images}
    taken: dict[str, str] = {}
    for name, offset, size in index.images:
        key = _without_suffix(name)
        if key not in index.labels and _sample(name) in index.labels:
            key = _sample(name)
            if key in plain:
                continue
        label = index.labels.get(key)
        other = taken.setdefault(key, name)
        if label is not None and other != name:
            raise InputError(
                f"{shard} has two pictures of one sample, {other} and {name}, and which is its image cannot be told. "
                "Call only one of them as its label is called (`key.jpg` beside `key.cls`), or leave the other out."
            )
        yield Placed(shard, name, offset, size, label)


def _without_suffix(name: str) -> str:
    return name[: -len(suffix(name))]


def _sample(name: str) -> str:
    """Key of a sample as WebDataset has it: up to the first dot of the file's name."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _index(shard: File) -> Index:
    """What a shard holds, from the cache folder where it was read before and its store tells when it is replaced.

    Raises:
        InputError: it is damaged.
    """
    version = shard.version()
    kept = None if version is None else kept_path("tar-index", shard, f"{INDEX} {version}")
    with suppress(OSError, ValueError, TypeError):
        if kept is not None:
            return Index(*json.loads(kept.read_bytes()))
    try:
        with shard.open() as file, tarfile.open(fileobj=file, mode="r:") as opened:
            found = _read(shard, file, opened)
            file.seek(opened.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end")
    except tarfile.TarError as failure:
        raise InputError(f"{shard} is cut short, damaged or no tar archive: {failure}.") from failure
    with suppress(OSError, InputError):
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, json.dumps(found).encode())
    return found


def _read(shard: File, file: IO[bytes], opened: tarfile.TarFile) -> Index:
    """One pass over the headers; only small files with labels are read.

    Raises:
        InputError: an image is a link that leads to no file of the archive.
    """
    held: dict[str, Place | str] = {}
    labels: dict[str, dict[str, str]] = {ending: {} for ending in LABELS}

    def note_label(name: str, place: Place) -> None:
        file.seek(place[0])
        label = _label(file.read(place[1]), suffix(name)) if place[1] <= LONGEST_LABEL else None
        if label is not None:
            labels[suffix(name)][_without_suffix(name)] = label

    for entry in opened:
        name = plain_name(entry.name)
        if entry.isreg():
            held[name] = entry.offset_data, entry.size
            if suffix(name) in labels:
                note_label(name, (entry.offset_data, entry.size))
        elif entry.issym():
            held[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
        elif entry.islnk():
            held[name] = plain_name(entry.linkname)
    for name, found in held.items():
        if suffix(name) in labels and isinstance(found, str) and (place := _followed(held, name)):
            note_label(name, place)
    places = [(name, _followed(held, name)) for name in held if is_image(name)]
    lost = [name for name, place in places if place is None]
    if lost:
        raise InputError(
            f"{len(lost)} images in {shard} are links that lead to no file in it, e.g. {lost[0]}. Pack the files "
            "themselves (`tar --dereference`)."
        )
    merged = {key: label for ending in LABELS for key, label in labels[ending].items()}
    return Index([(name, *place) for name, place in places if place is not None], merged)


def _followed(held: Mapping[str, Place | str], name: str) -> Place | None:
    """Where a file lies, or what a link leads to; None where that is no file of the archive."""
    found: Place | str | None = held[name]
    for _ in range(MOST_LINKS):
        found = held.get(found) if isinstance(found, str) else found
    return None if isinstance(found, str) else found


def _label(content: bytes, ending: str) -> str | None:
    """Class in a file; None where it says nothing of one."""
    try:
        facts = {"label": content.decode().strip()} if ending == ".cls" else json.loads(content)
    except ValueError:
        return None
    values = [facts[field] for field in FIELDS if field in facts] if isinstance(facts, dict) else []
    words = [str(value) for value in values if type(value) in (str, int)]
    return next((word for word in words if not NO_LABEL.fullmatch(word)), None)
