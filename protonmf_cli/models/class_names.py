"""Which class a user means, and how a class is called on a command line."""

import difflib
import re
from collections import Counter
from collections.abc import Callable

from protonmf_cli.errors import InputError, is_whole
from protonmf_cli.models.backbone import ClassName

WORDNET_ID = re.compile(r"n\d{8}")

NAMES_OF_A_CLASS: tuple[Callable[[ClassName], list[str]], ...] = (
    lambda c: [c.label],
    lambda c: [c.description],
    lambda c: c.description.split(","),
    lambda c: [c.label[:9], c.label[10:]] if WORDNET_ID.match(c.label) else [],
)


def find_class(classes: tuple[ClassName, ...], words: str) -> int:
    """Index of the class called `words`: exact label, then label, description or synonym, then index.

    Upper case, underscores and spaces do not count. A WordNet id may stand alone or begin a folder name
    (`n02110341_dalmatian`).

    Raises:
        InputError: no class or several are called so.

    >>> find_class((ClassName(label="n02110341", description="dalmatian, coach dog"),), "Coach_Dog")
    0
    """
    called = _called(classes, words)
    if called is not None:
        return called
    if is_whole(words.strip()) and int(words) < len(classes):
        return int(words)
    if WORDNET_ID.match(words) and not words[9:10].isdecimal() and len(words) > 9:
        return find_class(classes, words[:9])
    raise InputError(
        f"no class of the model is called {words!r} (it has {len(classes)} classes).{nearest_names(classes, words)}"
    )


def _called(classes: tuple[ClassName, ...], words: str) -> int | None:
    """Index of the class that has these words as a name; None where there is none.

    Raises:
        InputError: several classes are called so.
    """
    for names in NAMES_OF_A_CLASS:
        wanted = _plain(words)
        found = [n for n, c in enumerate(classes) if wanted and wanted in map(_plain, names(c))]
        exact = [n for n in found if words in names(classes[n])]
        found = exact or found
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(f"{n} ({classes[n].label})" for n in found[:5])
            raise InputError(f"several classes are called {words!r}: {listed}. Give the label or the index.")
    return None


def is_number(classes: tuple[ClassName, ...], words: str) -> bool:
    """Whether `find_class` takes words for a class's index, not for its name.

    >>> is_number((ClassName(label="zero"), ClassName(label="7")), "0"), is_number((ClassName(label="7"),), "7")
    (True, False)
    """
    return words.strip().isdecimal() and _called(classes, words) is None


def words_for(classes: tuple[ClassName, ...]) -> list[str]:
    """For each class a word that `find_class` takes for it and a command line for no option: its label or its index.

    Where its index is the name of another class the label stays, and is at worst refused as one of several.

    >>> words_for((ClassName(label="tick"), ClassName(label="tick"), ClassName(label="--ox")))
    ['0', '1', '2']
    >>> words_for((ClassName(label="-x"), ClassName(label="0")))
    ['-x', '0']
    """
    count = Counter(name.label for name in classes)
    taken = {_plain(word) for name in classes for names in NAMES_OF_A_CLASS for word in names(name)}
    return [
        name.label
        if str(c) in taken or (_plain(name.label) and not name.label.startswith("-") and count[name.label] == 1)
        else str(c)
        for c, name in enumerate(classes)
    ]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


MOST_SUGGESTED = 5
ALIKE, SHORT, ALIKE_IF_SHORT = 0.6, 5, 0.8
"""Ratio of `difflib` from which a name is like the one given; words with fewer letters are alike by chance."""


def nearest_names(classes: tuple[ClassName, ...], words: str) -> str:
    """A "did you mean" sentence with a leading blank, or nothing: names that hold the words, else names that are spelt
    alike, else names with a word that is.

    >>> nearest_names((ClassName(label="crate"), ClassName(label="n02123045", description="tabby, tabby cat")), "cats")
    ' Did you mean tabby cat?'
    """
    wanted = _plain(words)
    if not wanted:
        return ""
    names = [[name.strip() for name in (c.label, *c.description.split(",")) if name.strip()] for c in classes]
    held = (next((name for name in each if _holds(name, wanted)), None) for each in names)
    found = [name for name in held if name is not None][:MOST_SUGGESTED]
    if not found:
        whole = {_plain(name): name for each in names for name in each}
        parts = {part: name for plain, name in whole.items() for part in plain.split()}
        cutoff = ALIKE_IF_SHORT if len(wanted) < SHORT else ALIKE
        close = difflib.get_close_matches(wanted, whole, n=3, cutoff=cutoff)
        found = [whole[each] for each in close] or [
            parts[each] for each in difflib.get_close_matches(wanted, parts, n=3, cutoff=ALIKE_IF_SHORT)
        ]
    return f" Did you mean {' or '.join(dict.fromkeys(found))}?" if found else ""


def _holds(name: str, wanted: str) -> bool:
    """Whether the words are part of a name, in singular or plural."""
    return f" {_singular(wanted)} " in f" {_singular(_plain(name))} "


def _singular(words: str) -> str:
    return " ".join(word.removesuffix("s") if len(word) > 3 else word for word in words.split())
