"""Which class a user means, and how a class is called on a command line."""

import difflib
import re
from collections import Counter
from collections.abc import Callable

from protonmf_cli.errors import InputError
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
    if words.strip().isdecimal() and int(words) < len(classes):
        return int(words)
    if WORDNET_ID.match(words) and not words[9:10].isdecimal() and len(words) > 9:
        return find_class(classes, words[:9])
    raise InputError(
        f"no class of the model is called {words!r} (it has {len(classes)} classes).{nearest_names(classes, words)}"
    )


def words_for(classes: tuple[ClassName, ...]) -> list[str]:
    """For each class a word that `find_class` takes for it and a command line for no option: its label or its index.

    >>> words_for((ClassName(label="tick"), ClassName(label="tick"), ClassName(label="--ox")))
    ['0', '1', '2']
    """
    count = Counter(name.label for name in classes)
    return [
        name.label if _plain(name.label) and not name.label.startswith("-") and count[name.label] == 1 else str(c)
        for c, name in enumerate(classes)
    ]


def _plain(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def nearest_names(classes: tuple[ClassName, ...], words: str) -> str:
    """A "did you mean" sentence with a leading blank, or nothing."""
    names = {_plain(name): name for c in classes for name in (c.label, *c.description.split(",")) if name.strip()}
    close = difflib.get_close_matches(_plain(words), list(names), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(names[name].strip() for name in close)}?" if close else ""
