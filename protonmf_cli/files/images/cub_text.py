"""The text files of CUB-200-2011: numbered lines, in a folder or a zip archive.

Reference: Wah, Branson, Welinder, Perona and Belongie 2011, The Caltech-UCSD Birds-200-2011 Dataset.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

from protonmf_cli.errors import InputError, is_whole


def numbered_lines(
    source: Path, name: str, words: int, needed: str, *, splits: int = -1
) -> Iterable[tuple[int, list[str]]]:
    """Number and further words of each line of one text file.

    Args:
        source: folder (the file may lie in parts/), zip archive, or one of the text files.
        name: of the file.
        words: fewest words of a line.
        needed: names of all files that are needed, for messages.
        splits: at how many blanks a line is split at most; -1: at every one.

    Raises:
        InputError: the file is missing, or a line is not a number with further words; names file and line.
    """
    source = source.parent if source.suffix == ".txt" else source
    for place, line in enumerate(_text(source, name, needed).splitlines(), start=1):
        found = line.strip().split(maxsplit=splits)
        if not found:
            continue
        if len(found) < words or not is_whole(found[0]):
            raise InputError(f"line {place} of {source}/{name} is not as CUB-200-2011 writes it: {line[:80]!r}.")
        yield int(found[0]), found[1:]


def numbered_names(source: Path, name: str, needed: str) -> dict[int, str]:
    """Number -> what stands behind it, blanks inside it kept, of each line of one text file; see `numbered_lines`."""
    return {number: words[0] for number, words in numbered_lines(source, name, 2, needed, splits=1)}


def _text(source: Path, name: str, needed: str) -> str:
    try:
        if source.is_dir():
            path = next((p for p in (source / name, source / "parts" / name) if p.is_file()), source / name)
            return path.read_text(encoding="utf-8")
        with zipfile.ZipFile(source) as archive:
            inside = [entry for entry in archive.namelist() if entry.split("/")[-1] == name]
            if not inside:
                raise InputError(f"{source} has no {name}; {needed} are needed.")
            return archive.read(min(inside, key=len)).decode("utf-8")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise InputError(
            f"{source / name} cannot be read ({reason}). Give the folder or zip archive with {needed} of CUB-200-2011."
        ) from failure
