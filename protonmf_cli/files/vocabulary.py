"""Lists of words that prototypes may be called by."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from protonmf_cli.errors import InputError

LONGEST = 200
"""Characters of a word."""


def read_vocabulary(file: Path) -> tuple[str, ...]:
    """The words of a file, one or more of them on each line, as they stand there; empty lines are left out.

    Raises:
        InputError: it cannot be read as text.
    """
    try:
        content = file.read_bytes()
    except OSError as failure:
        raise InputError(f"--vocabulary {file} cannot be read: {failure.strerror or failure}.") from failure
    try:
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as failure:
        line = content[: failure.start].count(b"\n") + 1
        raise InputError(f"--vocabulary {file} is not UTF-8 text (line {line}): save it as UTF-8.") from failure


def checked_vocabulary(words: Iterable[str], source: str) -> tuple[tuple[str, ...], int]:
    """Words without blanks around them, each once, in their order; and how many were repeated.

    Args:
        words: some may be empty, which are left out.
        source: what they are of, for the message.

    Raises:
        InputError: fewer than two different words, or one that cannot be shown.
    """
    given = [word.strip() for word in words]
    kept = [word for word in given if word]
    for word in kept:
        if not word.isprintable() or len(word) > LONGEST:
            raise InputError(
                f"{source} holds {word[:40]!r}, which is no word: printable characters, at most {LONGEST} of them."
            )
    found = tuple(dict.fromkeys(kept))
    if not found:
        raise InputError(f"{source} is empty; it wants a word on each line, two or more in all.")
    if len(found) == 1:
        raise InputError(
            f"{source} holds one word alone, {found[0]!r}: a name is the word that fits better than others: give two "
            "or more."
        )
    return found, len(kept) - len(found)


def digest_of_words(words: Iterable[str]) -> str:
    """sha256 of words, one on each line, in UTF-8: that of the file where it holds nothing else."""
    return hashlib.sha256("".join(f"{word}\n" for word in words).encode()).hexdigest()
