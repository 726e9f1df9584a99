"""Data sets in several files: ranges of names, which file is of which split, and labels that stand beside images."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.sources.source import File, Groups, Listing, Member, by_name
from protonmf_cli.files.images.sources.trees import no_such_split, split_called

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_SHARDS = 1_000_000
Labelled = tuple[str, str, str]
"""Class, file name, and what stands before the name where another image of the class is called so."""


def expanded(words: str) -> list[str]:
    """Names with every number of their ranges, as a shell writes them.

    Raises:
        InputError: a range ends before it begins, or there are too many names.

    >>> expanded("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    found = RANGE.search(words)
    if found is None:
        return [words]
    first, last, rest = int(found[1]), int(found[2]), expanded(words[found.end() :])
    if not 0 < (last - first + 1) * len(rest) <= MOST_SHARDS:
        raise InputError(
            f"the range {found[0]} in {words} does not rise, or there are more than {MOST_SHARDS:,} names with it."
        )
    width = len(found[1]) if found[1].startswith("0") else 0
    return [f"{words[: found.start()]}{number:0{width}d}{end}" for number in range(first, last + 1) for end in rest]


def split_in(name: str) -> str | None:
    """The split that a shard's name speaks of.

    >>> split_in("imagenet1k-validation-03.tar"), split_in("data/test-0.parquet"), split_in("valley-0.tar")
    ('val', 'test', None)
    """
    words = re.split(r"[^a-z]+", name.rpartition("/")[2].lower())
    return next((found for word in words if (found := "test" if word == "test" else split_called(word))), None)


def splits_in(files: Sequence[File]) -> dict[str, list[File]]:
    """Split -> its shards; those whose names speak of none are left out."""
    found: dict[str, list[File]] = {}
    for file in files:
        split = split_in(file.name)
        if split is not None:
            found.setdefault(split, []).append(file)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def of_no_split(files: Sequence[File]) -> list[str]:
    """Names that speak of no split, where others do."""
    return [file.name for file in files if split_in(file.name) is None] if splits_in(files) else []


def of_split(where: str, files: Sequence[File], split: str) -> tuple[list[File], str | None]:
    """The shards of a split and its name; all and None where no name speaks of a split.

    Raises:
        InputError: there are other splits only.
    """
    present = splits_in(files)
    if not present:
        return list(files), None
    if split not in present:
        raise no_such_split(where, present, split)
    return present[split], split


def distinct(images: Sequence[Labelled]) -> list[str]:
    """`CLASS/file` of each image, all different.

    >>> distinct([("ant", "0.jpg", "a"), ("ant", "0.jpg", "b"), ("bee", "0.jpg", "b")])
    ['ant/a-0.jpg', 'ant/b-0.jpg', 'bee/0.jpg']
    """
    count = Counter((label, file) for label, file, _ in images)
    found = [f"{label}/{file if count[label, file] == 1 else f'{mark}-{file}'}" for label, file, mark in images]
    seen: Counter[str] = Counter()
    for n, name in enumerate(found):
        seen[name] += 1
        if seen[name] > 1:  # shards of one name in several folders
            label, _, file = name.partition("/")
            found[n] = f"{label}/{seen[name]}-{file}"
    return found


def labelled_listing(
    where: str,
    split: str,
    images: Iterable[tuple[str, str, Member]],
    order: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Listing:
    """Images whose classes stand beside them.

    Args:
        where, split, order, notes: as of `Listing`; without an order, classes that are all numbers are in theirs.
        images: class, name and member of each.
    """
    groups: Groups = {}
    for label, name, member in images:
        groups.setdefault(label, []).append((name, member))
    if order:
        order = (*order, *sorted(groups.keys() - set(order)))
    elif all(label.isdecimal() for label in groups):
        order = tuple(sorted(groups, key=int))
    sorted_groups = {label: by_name(found) for label, found in groups.items()}
    return Listing(where=where, split=split, groups=sorted_groups, order=order, notes=notes)
