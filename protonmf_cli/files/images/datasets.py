"""Labelled data on disk: class folders, train/val above them, or a list; and the class map."""

import csv
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.archives import ZipMember, is_archive, members
from protonmf_cli.files.images.reader import SUFFIXES, ImageFile
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.class_names import find_class, nearest_names

SPLITS = ("train", "val")
_Grouped = dict[str, list[tuple[Path | ZipMember, str]]]
"""folder -> files, each with its name relative to the data"""
LISTED = 8
"""Names shown in a message before "and N more"."""


@dataclass(frozen=True, kw_only=True)
class ClassMapping:
    """How a folder's name becomes a class of the model."""

    file: Path | None = None
    """folder -> class, as JSON object or lines `folder class` / `folder,class`."""
    by_order: bool = False
    """Sorted folders are the classes in order; their number must match."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Image files by class, in a fixed order."""

    root: Path
    files: Mapping[int, tuple[ImageFile, ...]]
    notes: tuple[str, ...]
    """What was left out, for the user."""
    left_out: Mapping[int, int]
    """class -> files left out to stay within memory."""

    @property
    def counts(self) -> dict[int, int]:
        """class -> files"""
        return {c: len(files) for c, files in self.files.items()}

    def of(self, classes: Iterable[int]) -> list[ImageFile]:
        """Files of the given classes, class after class."""
        return [file for c in classes for file in self.files[c]]

    def limited(self, most: int, seed: int) -> "LabelledImages":
        """At most so many files per class, drawn with a recorded seed, in their old order."""
        files, left_out = dict(self.files), {}
        for c, found in self.files.items():
            if len(found) > most:
                chosen = sorted(random.Random(seed + c).sample(range(len(found)), most))
                files[c] = tuple(found[n] for n in chosen)
                left_out[c] = len(found) - most
        return replace(self, files=files, left_out=left_out)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, renamed, resized or touched; reads no file's content."""
        digest = hashlib.sha256()
        for file in self.of(sorted(self.files)):
            try:
                stat = file.path.stat()
                state = f"{stat.st_size}\0{stat.st_mtime_ns}"
            except OSError:
                state = "missing"
            digest.update(f"{file.class_index}\0{file.name}\0{state}\n".encode())
        return digest.hexdigest()


def find_images(data: Path, split: str, classes: tuple[ClassName, ...], mapping: ClassMapping) -> LabelledImages:
    """List the labelled images of one split.

    Args:
        data: class folders; `train` and `val` above them; a zip archive of either; or a text or CSV file of
            `path label` lines.
        split: which of `train` and `val` to take where they exist.
        classes: of the model.
        mapping: how folders are matched.

    Raises:
        InputError: nothing is there, or a folder matches no class.
    """
    notes: list[str] = []
    if is_archive(data):
        root, grouped = data, _from_archive(data, split)
    elif data.is_file():
        root, grouped = data.parent, _from_list(data)
    elif data.is_dir():
        root = _split_folder(data, split)
        grouped, notes = _from_folders(root)
    else:
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    if not grouped:
        raise InputError(
            f"{root} holds no class folder with images ({', '.join(sorted(SUFFIXES))}). "
            "Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg."
        )
    index = _match(sorted(grouped), classes, mapping, root)
    files: dict[int, list[ImageFile]] = {}
    for name in sorted(grouped):
        entries = [ImageFile(path=path, name=shown, class_index=index[name]) for path, shown in grouped[name]]
        files.setdefault(index[name], []).extend(entries)
    return LabelledImages(root=root, files={c: tuple(files[c]) for c in sorted(files)}, notes=tuple(notes), left_out={})


def class_folders(data: Path, split: str) -> tuple[ClassName, ...]:
    """The classes of a data set that brings its own: its folders (or labels of a list) in sorted order.

    The description is the name in words: "001.Black_footed_Albatross" is "Black footed Albatross".

    Raises:
        InputError: nothing is there, or a folder has no images.
    """
    if data.is_file():
        grouped = _from_archive(data, split) if is_archive(data) else _from_list(data)
        return tuple(ClassName(label=name, description=_in_words(name)) for name in sorted(grouped))
    if not data.is_dir():
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    root = _split_folder(data, split)
    grouped, _ = _from_folders(root)
    empty = [e.name for e in root.iterdir() if e.is_dir() and not e.name.startswith(".") and e.name not in grouped]
    if empty:
        raise InputError(
            f"{root} has folders without images: {listed(sorted(empty))}. A class cannot be learnt from nothing: "
            "add images or remove the folder."
        )
    return tuple(ClassName(label=name, description=_in_words(name)) for name in sorted(grouped))


def _in_words(name: str) -> str:
    words = re.sub(r"^(n\d{8}|\d+)[\s._-]+", "", name).replace("_", " ").replace(",", " ").strip()
    return "" if words == name else words


def _split_folder(data: Path, split: str) -> Path:
    present = splits_of(data)
    if split in present:
        return data / split
    if (data / split).is_dir():
        return data / split
    if present:
        raise InputError(f"{data} has {' and '.join(present)} but no {split}. Give --split {present[0]} to use it.")
    return data


def _from_folders(root: Path) -> tuple[_Grouped, list[str]]:
    grouped: _Grouped = {}
    hidden: list[str] = []
    empty: list[str] = []
    try:
        folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    except OSError as failure:
        raise InputError(f"{root} cannot be read: {failure.strerror or failure}.") from failure
    for folder in folders:
        if folder.name.startswith("."):
            hidden.append(folder.name)
            continue
        paths = images_below(folder)
        if paths:
            grouped[folder.name] = [(path, path.relative_to(root).as_posix()) for path in paths]
        else:
            empty.append(folder.name)
    notes = []
    if hidden:
        notes.append(f"hidden folders left out: {listed(hidden)}")
    if empty:
        notes.append(f"folders without images left out: {listed(empty)}")
    return grouped, notes


def images_below(folder: Path) -> list[Path]:
    """All image files of a folder and those below it, sorted; hidden files are left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def _from_archive(archive: Path, split: str) -> _Grouped:
    """CLASS/image.png, SPLIT/CLASS/image.png, or either below folders that hold everything."""
    images = _images_in(archive)
    if not images:
        raise InputError(f"{archive} holds no images ({', '.join(sorted(SUFFIXES))}).")
    below = _depth_of_classes(images)
    present = _splits_at(images, below)
    if present or split in {m.parts[below] for m in images}:
        images = [m for m in images if m.parts[below] == split]
        below += 1
        if not images:
            raise InputError(
                f"{archive} has {' and '.join(present)} but no {split}. Give --split {present[0]} to use it."
            )
    loose = [m.name for m in images if len(m.parts) < below + 2]
    if loose:
        raise InputError(
            f"{archive} has images outside class folders ({listed(loose)}). Expected CLASS/image.jpg, or "
            "train/CLASS/image.jpg."
        )
    grouped: _Grouped = {}
    for member in images:
        grouped.setdefault(member.parts[below], []).append((member, "/".join(member.parts[below:])))
    return grouped


def _depth_of_classes(images: Sequence[ZipMember]) -> int:
    """How many folders hold everything: what follows is a split or a class."""
    shared = os.path.commonpath(["/".join(m.parts[:-1]) for m in images])
    below = len(PurePosixPath(shared).parts)
    while below and any(len(m.parts) < below + 2 for m in images):  # the folder that all share is a class
        below -= 1
    return below - 1 if below and images[0].parts[below - 1] in SPLITS else below


def _splits_at(images: Sequence[ZipMember], below: int) -> list[str]:
    return sorted({m.parts[below] for m in images if len(m.parts) > below + 1} & set(SPLITS))


def _images_in(archive: Path) -> list[ZipMember]:
    return [m for m in members(archive) if PurePosixPath(m.name).suffix.lower() in SUFFIXES and not _hidden(m)]


def splits_of(data: Path) -> list[str]:
    """Which of train and val a folder or an archive has."""
    if is_archive(data):
        images = _images_in(data)
        return _splits_at(images, _depth_of_classes(images)) if images else []
    return [name for name in SPLITS if (data / name).is_dir()]


def _hidden(member: ZipMember) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in member.parts)


def _from_list(file: Path) -> _Grouped:
    grouped: _Grouped = {}
    for number, (path, label) in enumerate(_pairs(file), start=1):
        if not label:
            raise InputError(f"{file}: line {number} ({path!r}) has no label. Expected `path label` on each line.")
        grouped.setdefault(label, []).append((file.parent / path, path))
    return grouped


def _pairs(file: Path) -> list[tuple[str, str]]:
    """Lines `first,second` or `first second` (the first may hold blanks), without a `path,label` header."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as failure:
        raise InputError(f"{file} cannot be read as text: {failure}.") from failure
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = []
    for line in lines:
        if "\t" in line:
            first, _, second = line.partition("\t")
        elif "," in line:
            try:
                row = next(csv.reader(io.StringIO(line)))
            except csv.Error as failure:
                raise InputError(f"{file}: a line cannot be read as CSV: {failure}.") from failure
            first, second = row[0], row[1] if len(row) > 1 else ""
        else:
            first, _, second = line.rpartition(" ")
            first, second = (first, second) if first else (second, "")
        found.append((first.strip(), second.strip()))
    header = {"path", "file", "image", "filename", "folder"}
    return found[1:] if found and found[0][0].lower() in header else found


def _match(names: Sequence[str], classes: tuple[ClassName, ...], mapping: ClassMapping, root: Path) -> dict[str, int]:
    """Folder name -> class index."""
    if mapping.by_order:
        if len(names) != len(classes):
            raise UsageError(
                f"--class-order needs as many folders as classes: {root} has {len(names)}, "
                f"the model has {len(classes)}."
            )
        return {name: n for n, name in enumerate(names)}
    words = dict(read_pairs(mapping.file)) if mapping.file else {}
    found, unmatched = {}, []
    for name in names:
        try:
            found[name] = find_class(classes, words.get(name, name))
        except InputError as failure:
            unmatched.append((name, words.get(name, name), failure))
    if unmatched:
        lines = [f"{name}{nearest_names(classes, word)}" for name, word, _ in unmatched[:LISTED]]
        more = f"; and {len(unmatched) - LISTED} more" if len(unmatched) > LISTED else ""
        raise InputError(
            f"{len(unmatched)} of {len(names)} class folders in {root} match no class of the model "
            f"({len(classes)} classes, e.g. {classes[0].label}): {'; '.join(lines)}{more}. Rename them, or give "
            "--class-map FILE with lines `folder,class`"
            + (", or --class-order." if len(names) == len(classes) else ".")
        )
    return found


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Folder and class, or class and number: a JSON object, or lines `first,second`.

    Raises:
        InputError: the file cannot be read so.
    """
    if file.suffix.lower() != ".json":
        return _pairs(file)
    try:
        return [(str(first), str(second)) for first, second in json.loads(file.read_text(encoding="utf-8")).items()]
    except (OSError, ValueError, AttributeError) as failure:
        raise InputError(f"{file} is not a JSON object of pairs: {failure}.") from failure


def listed(names: Sequence[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
