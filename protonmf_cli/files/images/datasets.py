"""Labelled images of a model's classes: where they lie, which class each folder or label means, and in which order."""

import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.ahead import ahead_if_slow
from protonmf_cli.files.images.reader import ImageFile
from protonmf_cli.files.images.sources.lists import numbered_pairs
from protonmf_cli.files.images.sources.opening import Data, list_images
from protonmf_cli.files.images.sources.source import LISTED, Listing, Member, listed
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.class_names import find_class, is_number, nearest_names

SAMPLED = 64
"""Images whose content counts in a fingerprint."""
AT_ONCE, EACH, SLOW = 16, 256, 0.02
"""Threads that ask for sizes, where so many together take longer than so many seconds: a network's disk lets wait."""

SEPARATORS = re.compile(r"\s*[;|]\s*")
"""Between the classes that one label names."""


@dataclass(frozen=True, kw_only=True)
class ClassMapping:
    """How a folder's name becomes a class of the model."""

    file: Path | None = None
    """folder -> class, as JSON object or lines `folder class` / `folder,class`."""
    by_order: bool = False
    """Sorted folders are the classes in order; their number must match."""
    multi_label: bool = False
    """A label may name several classes, see `SEPARATORS`."""


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Image files by class, in a fixed order."""

    where: str
    """Their address, for messages."""
    split: str
    """The split's name where there is one, else the name of the data without its suffix."""
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

    def once(self) -> "LabelledImages":
        """Each image that is of several classes under the first of these alone; classes without any left stay."""
        seen: set[Path | Member] = set()
        files = {}
        for c, found in self.files.items():
            files[c] = tuple(file for file in found if len(file.labels) < 2 or file.path not in seen)
            seen.update(file.path for file in files[c] if len(file.labels) > 1)
        return replace(self, files=files)

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
        """Changes when an image is added, removed, renamed or resized, and with the content of some of them.

        The same for the same images on another machine: it knows nothing of times and folders. Of images in a zip it
        knows all contents, of those in parquet only what the footer of their file says: where their groups of rows lie,
        how large they are, and the least and largest values, where they were noted.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        files = self.of(sorted(self.files))
        digest = hashlib.sha256()
        parts = [files[start : start + EACH] for start in range(0, len(files), EACH)]
        for lines in ahead_if_slow(_lines, parts, workers=AT_ONCE, window=2 * AT_ONCE, seconds=SLOW):
            digest.update(lines.encode())
        sample = files[:: -(-len(files) // SAMPLED) or 1]
        for content in ahead_if_slow(_content, sample, workers=AT_ONCE, window=SAMPLED, seconds=SLOW):
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()


def _lines(files: Iterable[ImageFile]) -> str:
    return "".join(map(_line, files))


def _line(file: ImageFile) -> str:
    try:
        state = file.state()
    except OSError:
        state = "missing"
    return f"{file.class_index}\0{file.name}\0{state}\0{file.box or ''}\n"


def _content(file: ImageFile) -> bytes:
    try:
        return file.glance()
    except OSError:
        return b""


def find_images(data: Data, split: str, classes: tuple[ClassName, ...], mapping: ClassMapping) -> LabelledImages:
    """List the labelled images of one split, by class and then by name.

    Args:
        data: folder, archive, shards, parquet or list, on this machine or behind a URL; see `list_images`.
        split: which of `train` and `val` to take where they exist.
        classes: of the model.
        mapping: how folders or labels are matched.

    Raises:
        InputError: nothing is there, or a folder or label matches no class.
    """
    listing = list_images(data, split)
    words = None if mapping.file is None or mapping.by_order else _words_of(mapping.file)
    index = _match(listing, classes, mapping, words or {})
    files: dict[int, list[ImageFile]] = {}
    several = _several(listing, index) if mapping.multi_label else {}
    for name in listing.names:
        for c in index[name]:
            files.setdefault(c, []).extend(
                ImageFile(path=each, name=shown, class_index=c, labels=several.get(each, (c,)))
                for shown, each in listing.groups[name]
            )
    notes = (*_note_of_numbers(index, classes, mapping), *_note_of_map(listing.names, mapping, words))
    return LabelledImages(
        where=listing.where, split=listing.split, files={c: tuple(files[c]) for c in sorted(files)},
        notes=(*listing.notes, *notes), left_out={},
    )  # fmt: skip


def _several(listing: Listing, index: Mapping[str, tuple[int, ...]]) -> dict[Member, tuple[int, ...]]:
    """The classes of each image, of which it may be listed under several."""
    found: dict[Member, tuple[int, ...]] = {}
    for name in listing.names:
        for _, each in listing.groups[name]:
            found[each] = tuple(dict.fromkeys((*found.get(each, ()), *index[name])))
    return found


def _note_of_numbers(
    index: Mapping[str, tuple[int, ...]], classes: tuple[ClassName, ...], mapping: ClassMapping
) -> list[str]:
    """Say which classes names that are numbers mean, unless somebody said so: they may be numbers of other classes."""
    if mapping.by_order or mapping.file is not None or len(index) == len(classes):
        return []
    numbers = [name for name in index if is_number(classes, name)]
    if not numbers:
        return []
    means = listed(f"{name} is {classes[index[name][0]].shown}" for name in numbers)
    return [
        f"classes named by numbers are the model's classes of these numbers: {means}. If not, give --class-map FILE."
    ]


def class_folders(data: Data, split: str) -> tuple[ClassName, ...]:
    """The classes of a data set that brings its own: its folders or labels, sorted unless it has an order of its own.

    The description is the name in words: "001.Black_footed_Albatross" is "Black footed Albatross".

    Raises:
        InputError: nothing is there, or a folder has no images.
    """
    listing = list_images(data, split)
    if listing.empty:
        raise InputError(
            f"{listing.where} has folders without images: {listed(listing.empty)}. A class cannot be learnt from "
            "nothing: add images or remove the folder."
        )
    return tuple(ClassName(label=name, description=_in_words(name)) for name in listing.names)


def _in_words(name: str) -> str:
    words = re.sub(r"^(n\d{8}|\d+)[\s._-]+", "", name).replace("_", " ").replace(",", " ").strip()
    return "" if words == name else words


def _match(
    listing: Listing, classes: tuple[ClassName, ...], mapping: ClassMapping, words: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Folder name or label -> class indices, of which there are several only where labels may name several."""
    names, where = listing.names, listing.where
    if mapping.by_order:
        names = list(listing.order) or names
        if len(names) != len(classes):
            raise UsageError(
                f"--class-order needs as many folders as classes: {where} has {len(names)}, "
                f"the model has {len(classes)}."
            )
        return {name: (n,) for n, name in enumerate(names)}
    found, unmatched = {}, []
    for name in names:
        try:
            found[name] = _meant(name, words, classes, mapping)
        except InputError as failure:
            unmatched.append((name, words.get(name, name), failure))
    if unmatched:
        lines = [
            (name if word == name else f"{name} as {word!r}") + _hint(classes, word)
            for name, word, _ in unmatched[:LISTED]
        ]
        more = f"; and {len(unmatched) - LISTED} more" if len(unmatched) > LISTED else ""
        raise InputError(
            f"{len(unmatched)} of {len(names)} classes in {where} match no class of the model "
            f"({len(classes)} classes, e.g. {classes[0].label}): {'; '.join(lines)}{more}. "
            + _advice([name for name, _, _ in unmatched], mapping, by_order=len(names) == len(classes))
        )
    return found


def _words_of(file: Path) -> dict[str, str]:
    """Folder or label -> class, as a file maps them.

    Raises:
        InputError: two lines of one folder name two classes.
    """
    words: dict[str, str] = {}
    for first, second in read_pairs(file):
        if words.setdefault(first, second) != second:
            raise InputError(f"{file} maps {first!r} to {words[first]!r} and to {second!r}. Leave one of them out.")
    return words


def _note_of_map(names: Sequence[str], mapping: ClassMapping, words: Mapping[str, str] | None) -> list[str]:
    """Say that a class map is of other folders or labels than those that are there."""
    if words is None or words.keys() & {part for name in names for part in (name, *SEPARATORS.split(name))}:
        return []
    return [
        f"{mapping.file} maps {listed(words) or 'nothing'}, and none of these is there: the data have {listed(names)}. "
        "Its lines are `folder,class`."
    ]


def _meant(
    name: str, words: Mapping[str, str], classes: tuple[ClassName, ...], mapping: ClassMapping
) -> tuple[int, ...]:
    """The classes that a folder or label means.

    Raises:
        InputError: it means none.
    """
    try:
        return (find_class(classes, words.get(name, name)),)
    except InputError:
        parts = [part for part in SEPARATORS.split(words.get(name, name)) if part]
        if not mapping.multi_label or len(parts) < 2:
            raise
    return tuple(dict.fromkeys(find_class(classes, words.get(part, part)) for part in parts))


def _hint(classes: tuple[ClassName, ...], word: str) -> str:
    """Names that are close, in brackets."""
    said = nearest_names(classes, word).strip()
    return f" ({said[0].lower()}{said[1:]})" if said else ""


def _advice(names: Sequence[str], mapping: ClassMapping, *, by_order: bool) -> str:
    if not mapping.multi_label and all(SEPARATORS.search(name) for name in names):
        return (
            "If these are several labels of one image, the network must have been trained for that: convert it with "
            "--multi-label."
        )
    order = ", or --class-order" if by_order else ""
    return f"Rename them, or give --class-map FILE with lines `folder,class`{order}."


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Folder and class, or class and number: a JSON object, or lines `first,second`.

    Raises:
        InputError: the file cannot be read so.
    """
    if file.suffix.lower() != ".json":
        try:
            pairs = numbered_pairs(file.read_text(encoding="utf-8-sig"), str(file))
        except (OSError, UnicodeDecodeError) as failure:
            raise InputError(f"{file} cannot be read as text: {failure}.") from failure
        for number, first, second in pairs:
            if not first or not second:
                raise InputError(f"{file}: line {number} is not `first,second`: {first or second!r} stands alone.")
        return [pair[1:] for pair in pairs]
    try:
        return [(str(first), str(second)) for first, second in json.loads(file.read_text(encoding="utf-8")).items()]
    except (OSError, ValueError) as failure:
        raise InputError(f"{file} is not a JSON object of pairs: {failure}.") from failure
    except AttributeError as failure:
        raise InputError(f'{file} is no JSON object of pairs, as {{"folder": "class"}}.') from failure
