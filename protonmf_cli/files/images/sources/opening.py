"""From what a user names as data to its images: the only way into the kinds of sources."""

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from protonmf_cli.errors import UNPRINTABLE, InputError, printable
from protonmf_cli.files.checks import check_data_there
from protonmf_cli.files.images.sources.lists import list_listing
from protonmf_cli.files.images.sources.local import LocalFile, LocalFolder
from protonmf_cli.files.images.sources.parquet import parquet_listing
from protonmf_cli.files.images.sources.remote import RemoteFile, RemoteFolder, Store, explained, is_url
from protonmf_cli.files.images.sources.shards import RANGE, expanded, of_no_split, splits_in
from protonmf_cli.files.images.sources.source import (
    SUFFIXES,
    File,
    Folder,
    Groups,
    Listing,
    Member,
    listed,
    stem,
    suffix,
)
from protonmf_cli.files.images.sources.tar_shards import tar_listing, tar_splits
from protonmf_cli.files.images.sources.trees import SPLITS, no_such_split, tree_listing, tree_splits
from protonmf_cli.files.images.sources.zip_archive import zip_images
from protonmf_cli.options import without_secrets

Data = Path | str
"""A path, or a URL as a string."""
READ = (
    "Labelled images are read from a folder of class folders, a .zip or .tar of one, .tar shards of WebDataset, "
    ".parquet files of Hugging Face, or a text file with lines `path label`."
)
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
LISTS = (".txt", ".csv", ".tsv")
"""Of lists behind a URL; on this machine they may be called as they like."""
NO_FILES = "links to nothing or to folders, pipes, sockets or devices left out"
"""What lies among class folders and images, and is neither a folder nor a file."""
LOOKED_INTO = 100
"""Folders in which data of another form is looked for, before there is none."""
HEAD = 4096
"""Bytes of a list that show whether it is text."""


def _zip_listing(where: str, name: str, files: Sequence[File], split: str) -> Listing:
    return tree_listing(where, name, zip_images(files), split)


HOLDERS: dict[str, Callable[[str, str, Sequence[File], str], Listing]] = {
    ".zip": _zip_listing,
    ".tar": tar_listing,
    ".parquet": parquet_listing,
}
"""Suffix of files that hold many images -> how they are listed: address of all, name of the data, files, split."""
SHARDS = (".tar", ".parquet")
"""Of which there may be several."""


def list_images(data: Data, split: str) -> Listing:
    """The images of one split by class.

    Args:
        data: folder, archive, shards, tables or list; see `READ`.
        split: which of `train` and `val` to take where they exist.

    Raises:
        InputError: nothing is there, it cannot be read, or has no such split; of train and val where there are no
            splits, all is taken.
    """
    with _in_words(data):
        listing = _listing(data, split)
    if split not in SPLITS and listing.split != split:
        raise InputError(
            f"{listing.where} has no split {split!r}: it holds the classes {listed(listing.names)}, in no split. "
            "Leave out --split."
        )
    return _as_text(listing)


def _listing(data: Data, split: str) -> Listing:
    found = place_of(data)
    if isinstance(found, Folder):
        return _of_folder(found, split)
    where, name, kind = without_secrets(str(data)), stem(_path_of(data)), suffix(_path_of(data))
    if kind in HOLDERS:
        return _of_holders(kind, where, name, found, split)
    if len(found) > 1:
        raise InputError(f"{data} names {len(found)} files: ranges are of {', '.join(HOLDERS)} files.")
    return list_listing(found[0], name, _text(found[0]), _beside(found[0]))


def _of_holders(kind: str, where: str, name: str, files: Sequence[File], split: str) -> Listing:
    found, unnamed = HOLDERS[kind](where, name, files, split), of_no_split(files)
    note = f"files whose names speak of no split left out: {listed(unnamed)}"
    return replace(found, notes=(*found.notes, note)) if unnamed else found


def _as_text(listing: Listing) -> Listing:
    """The same with names that messages, records and pages can hold; the images are found by their own."""
    names = (listing.split, *listing.groups, *(shown for found in listing.groups.values() for shown, _ in found))
    if not any(map(UNPRINTABLE.search, names)):
        return listing
    groups: Groups = {}
    for name, found in listing.groups.items():
        groups.setdefault(printable(name), []).extend((printable(shown), member) for shown, member in found)
    order = tuple(dict.fromkeys(map(printable, listing.order)))
    return replace(listing, split=printable(listing.split), groups=groups, order=order)


def splits_of(data: Data) -> list[str]:
    """Which of train and val the data has.

    Raises:
        InputError: it cannot be read.
    """
    with _in_words(data):
        found = place_of(data)
        if isinstance(found, Folder):
            folders, files, _ = found.entries()
            present = [split for split, names in SPLITS.items() if set(names) & set(folders)]
            kind, shards = next(iter(_shards(found, files).items()), ("", []))
            beside = any(not name.startswith(".") for name in folders)
            return present or _splits_of("" if beside else kind, shards)
        return _splits_of(suffix(_path_of(data)), found)


def _splits_of(kind: str, files: Sequence[File]) -> list[str]:
    if kind == ".zip":
        return tree_splits(zip_images(files))
    return tar_splits(files) if kind == ".tar" else [split for split in splits_in(files) if split in SPLITS]


def _shards(folder: Folder, names: Sequence[str]) -> dict[str, list[File]]:
    """Kind -> files of a folder that are shards; what is hidden is left out."""
    found = {kind: [name for name in names if suffix(name) == kind and not name.startswith(".")] for kind in SHARDS}
    return {kind: [folder.file(name) for name in each] for kind, each in found.items() if each}


def check_there(data: Data) -> None:
    """Refuse data that does not exist or is of no kind that is read, without listing it.

    Raises:
        InputError: naming it.
    """
    with _in_words(data):
        found = place_of(data)
        if isinstance(found, RemoteFolder):
            found.entries()
        elif isinstance(found, list):
            found[0].size()


def place_of(data: Data) -> Folder | list[File]:
    """What data names: a folder, or files of one kind that hold images.

    Raises:
        InputError: it does not exist, or is of a kind that is not read.
    """
    words = str(data)
    if isinstance(data, str) and is_url(data):
        return _remote(words)
    check_data_there(data)
    path = Path(data)
    if path.is_dir():
        return LocalFolder(path)
    paths = [path] if path.is_file() else [Path(each) for each in expanded(words)] if RANGE.search(words) else []
    missing = [str(each) for each in paths if not each.is_file()]
    if not paths:
        raise InputError(f"the data {data} is neither a folder nor a file.")
    if missing:
        raise InputError(f"{len(missing)} of the {len(paths)} files {data} do not exist: {listed(missing)}.")
    _refuse_compressed(data)
    return [LocalFile(each.parent, each.name) for each in paths]


def _remote(url: str) -> Folder | list[File]:
    """By its suffix, without a request."""
    scheme, _, rest = url.partition("://")
    if scheme in ("file", "local"):
        if not rest:
            raise InputError(f"{url} names no file and no folder: give a path.")
        return place_of(Path(rest))
    _refuse_compressed(url)
    kind = suffix(_path_of(url))
    if kind in (*HOLDERS, *LISTS):
        return [_remote_file(each) for each in expanded(url)]
    if scheme in ("http", "https"):
        raise InputError(
            f"{url} is no file that is read: behind {scheme}:// there are no folders to list, but "
            f"{', '.join((*HOLDERS, *LISTS))} files are read."
        )
    return RemoteFolder(url)


def _refuse_compressed(data: Data) -> None:
    ending = next((each for each in COMPRESSED if _path_of(data).lower().endswith(each)), None)
    if ending is not None:
        raise InputError(
            f"{data} is compressed as a whole ({ending}), so that no image in it can be read by itself. Decompress it "
            "and give the .tar."
        )


def _remote_file(url: str) -> RemoteFile:
    path = _path_of(url)
    folder, _, name = path.rpartition("/")
    name += url[len(path) :]
    return RemoteFile(Store(folder, witness=name), name)


def _path_of(data: Data) -> str:
    """Without what follows the path of a web address."""
    words = str(data)
    return words.partition("?")[0].partition("#")[0] if words.startswith(("http://", "https://")) else words


@contextmanager
def _in_words(data: Data) -> Iterator[None]:
    """What a disk or a store raises, in a sentence."""
    if isinstance(data, str) and is_url(data):
        with explained(data):
            yield
    else:
        try:
            yield
        except OSError as failure:
            raise InputError(f"{data} cannot be read: {failure.strerror or failure}.") from failure


def _of_folder(data: Folder, split: str) -> Listing:
    """Class folders, or shards, of a folder or of the split in it."""
    folder, named = _split_folder(data, split)
    folders, files, neither = folder.entries()
    images, below = folder.images_in(name for name in folders if not name.startswith("."))
    neither = [*(name for name in neither if not name.startswith(".")), *below]
    groups = {name: found for name, found in images.items() if found}
    shards = _shards(folder, files)
    if not groups and shards:
        (kind, chosen), *others = shards.items()
        listing = _of_holders(kind, str(folder), named or folder.name, chosen, split)
        beside = [file.name for _, found in others for file in found]
        notes = _left_out({f"files beside the {kind} files left out": beside, NO_FILES: neither})
        return replace(listing, notes=(*listing.notes, *notes))
    if not groups:
        raise InputError(
            f"{folder} holds no class folder with images ({', '.join(sorted(SUFFIXES))}). "
            f"Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg.{_hint(folder, folders, files, neither)}"
        )
    empty = tuple(name for name, found in images.items() if not found)
    notes = _left_out(
        {
            "hidden folders left out": [name for name in folders if name.startswith(".")],
            "folders without images left out": empty,
            "files beside the class folders left out": [file.name for found in shards.values() for file in found],
            NO_FILES: neither,
        }
    )
    return Listing(where=str(folder), split=named or folder.name, groups=groups, empty=empty, notes=notes)


def _left_out(names: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"{what}: {listed(found)}" for what, found in names.items() if found)


def _split_folder(data: Folder, split: str) -> tuple[Folder, str | None]:
    folders, *_ = data.entries()
    present = {each: name for each, names in SPLITS.items() for name in names if name in folders}
    if split in present:
        return data.child(present[split]), split
    if split in folders:
        return data.child(split), split
    if present:
        raise no_such_split(str(data), present, split)
    return data, None


def _hint(folder: Folder, folders: Sequence[str], files: Sequence[str], others: Sequence[str]) -> str:
    """Where something that could be read lies, one step away; else what is there instead."""
    for name in files:
        if suffix(name) in HOLDERS and not name.startswith("."):
            return f" It holds {name}: give that file."
    for name in folders[:LOOKED_INTO]:
        kind = next((suffix(file) for file in folder.child(name).entries()[1] if suffix(file) in SHARDS), None)
        if kind is not None:
            return f" {folder.child(name)} holds {kind} files: give that folder."
    return f" There are {NO_FILES}: {listed(others)}." if others else ""


def _text(file: File) -> str:
    """Content of a list.

    Raises:
        InputError: it is no text, or a web page.
    """
    try:
        if b"\0" in file.read_range(0, HEAD):
            raise ValueError
        names = suffix(file.name) in LISTS  # of files, in which any byte may be
        text = file.read_bytes().decode("utf-8-sig", errors="surrogateescape" if names else "strict")
    except ValueError as failure:
        raise InputError(f"{file} is of no kind that is read. {READ}") from failure
    if text[:HEAD].lstrip().lower().startswith(("<!doctype html", "<html")):
        raise InputError(f"{file} is a web page, and no list. {READ}")
    return text


def _beside(file: File) -> Callable[[str], Member]:
    """The image of a path in a list."""
    if isinstance(file, RemoteFile):
        return lambda path: RemoteFile(file.store, path)
    root, there = Path(str(file)).parent, functools.cache(os.path.isdir)

    def found(path: str) -> LocalFile:
        return LocalFile(root, path, lost=not there(os.path.dirname(os.path.join(root, path))))  # noqa: PTH118, PTH120

    return found
