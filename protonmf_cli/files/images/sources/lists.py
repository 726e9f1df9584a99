"""Text files with lines `path label`."""

import csv
import io
from collections.abc import Callable

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.sources.shards import labelled_listing
from protonmf_cli.files.images.sources.source import File, Listing, Member

HEADER = {"path", "file", "image", "filename", "folder"}
"""First word of a first line that is none."""


def list_listing(file: File, name: str, text: str, beside: Callable[[str], Member]) -> Listing:
    """The images of a list, with their paths as names.

    Args:
        file: the list.
        name: of it, without suffix.
        text: its content.
        beside: the image of a path, which is relative to the list.

    Raises:
        InputError: a line has no label.
    """
    images = []
    for number, path, label in numbered_pairs(text, str(file)):
        if "\0" in path:
            raise InputError(f"{file}: line {number} holds a zero byte, and no path does. Repair that line.")
        if not label:
            raise InputError(f"{file}: line {number} ({path!r}) has no label. Expected `path label` on each line.")
        images.append((label, path, beside(path)))
    if not images:
        raise InputError(f"{file} lists no images. Expected `path label` on each line.")
    return labelled_listing(str(file), name, images)


def numbered_pairs(text: str, where: str) -> list[tuple[int, str, str]]:
    """Lines `first,second` or `first second` (the first may hold blanks), without a `path,label` header.

    Args:
        text: comments begin with #.
        where: it is from, for messages.

    Returns:
        Number of the line, from 1, first and second.

    Raises:
        InputError: a line with commas is not as CSV has it.
    """
    found = []
    for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
        if not line or line.startswith("#"):
            continue
        if "\t" in line:
            first, _, second = line.partition("\t")
        elif "," in line:
            try:
                row = next(csv.reader(io.StringIO(line)))
            except csv.Error as failure:
                raise InputError(f"{where}: line {number} cannot be read as CSV: {failure}.") from failure
            first, second = row[0], row[1] if len(row) > 1 else ""
        else:
            first, _, second = line.rpartition(" ")
            first, second = (first, second) if first else (second, "")
        found.append((number, first.strip(), second.strip()))
    return found[1:] if found and found[0][1].lower() in HEADER else found
