"""Class folders in a list of names, as an archive holds them."""

from collections.abc import Iterable, Sequence

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.sources.source import SUFFIXES, Groups, Listing, Member, by_name, listed

SPLITS = {"train": ("train",), "val": ("val", "validation")}
"""Names that folders and files have for a split."""
EXPECTED = "Expected CLASS/image.jpg, or train/CLASS/image.jpg"


def split_called(word: str) -> str | None:
    """The split that a folder's or file's word means; None if it is none.

    >>> split_called("validation"), split_called("valley")
    ('val', None)
    """
    return next((split for split, words in SPLITS.items() if word in words), None)


def plain_name(name: str) -> str:
    """A member's name without what does not count.

    >>> plain_name("./a//1.jpg"), plain_name("/a/1.jpg")
    ('a/1.jpg', 'a/1.jpg')
    """
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def visible(images: Iterable[tuple[str, Member]]) -> list[tuple[str, Member]]:
    """Without what lies in a hidden folder, and without what macOS puts into archives."""
    return [image for image in images if not any(part.startswith((".", "__MACOSX")) for part in image[0].split("/"))]


def tree_listing(where: str, name: str, images: Sequence[tuple[str, Member]], split: str) -> Listing:
    """CLASS/image.png, SPLIT/CLASS/image.png, or either below folders that hold everything.

    Args:
        where: address of what holds the images, for messages.
        name: of the data, without suffix.
        images: with their names in it.
        split: to take where there are several.

    Raises:
        InputError: there are no images, no such split, or images outside class folders.
    """
    images = visible(images)
    if not images:
        raise InputError(f"{where} holds no images ({', '.join(sorted(SUFFIXES))}).")
    folders = _folders(images)
    below = _depth_of_classes(folders)
    present = _splits_at(folders, below)
    chosen = present.get(split) or {word for folder in folders if (word := _part(folder, below)) == split}
    if chosen:
        images = [image for image in images if _part(tuple(image[0].split("/")[:-1]), below) in chosen]
        below += 1
    elif present:
        raise no_such_split(where, present, split)
    loose = [image[0] for image in images if image[0].count("/") <= below]
    if loose:
        raise InputError(f"{where} has images outside class folders ({listed(loose)}). {EXPECTED}.")
    groups: Groups = {}
    for full, member in images:
        parts = full.split("/")[below:]
        groups.setdefault(parts[0], []).append(("/".join(parts), member))
    return Listing(
        where=where, split=split if chosen else name, groups={name: by_name(found) for name, found in groups.items()}
    )


def tree_splits(images: Sequence[tuple[str, Member]]) -> list[str]:
    """Which of train and val there are."""
    folders = _folders(visible(images))
    return list(_splits_at(folders, _depth_of_classes(folders))) if folders else []


def no_such_split(where: str, present: Iterable[str], split: str) -> InputError:
    """What to say where other splits are there."""
    found = list(present)
    return InputError(f"{where} has {' and '.join(found)} but no {split}. Give --split {found[0]} to use it.")


def _folders(images: Sequence[tuple[str, Member]]) -> list[tuple[str, ...]]:
    """Folders that hold images, in the order of the names."""
    found = dict.fromkeys(image[0].rpartition("/")[0] for image in images)
    return [tuple(folder.split("/")) if folder else () for folder in found]


def _part(folder: tuple[str, ...], depth: int) -> str:
    return folder[depth] if len(folder) > depth else ""


def _depth_of_classes(folders: Sequence[tuple[str, ...]]) -> int:
    """How many folders hold everything: what follows is a split or a class."""
    different = (n for n, parts in enumerate(zip(*folders, strict=False)) if len(set(parts)) > 1)
    below = next(different, min(map(len, folders)))
    while below and any(len(folder) < below + 1 for folder in folders) and not _splits_at(folders, below):
        below -= 1  # the folder that all share is a class
    return below - 1 if below and split_called(folders[0][below - 1]) else below


def _splits_at(folders: Sequence[tuple[str, ...]], below: int) -> dict[str, set[str]]:
    """Split -> how its folders are called."""
    words = {folder[below] for folder in folders if len(folder) > below}
    found = {split: words & set(names) for split, names in SPLITS.items()}
    return {split: names for split, names in found.items() if names}
