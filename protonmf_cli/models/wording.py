"""Numbers and names in few characters."""

import math


def rounded(share: float) -> str:
    """A share in whole percent, never "-0%".

    >>> rounded(-0.001), rounded(0.456)
    ('0%', '46%')
    """
    return f"{round(share, 2) + 0.0:.0%}"


def usual_words(usual: tuple[float, float]) -> str:
    """A range of amounts, never "-0.0".

    >>> usual_words((-0.04, 1.24))
    '0.0 to 1.2'
    """
    low, high = (round(value, 1) + 0.0 for value in usual)
    return f"{low:.1f} to {high:.1f}"


def shortened(name: str, length: int) -> str:
    """A name that fits, with an ellipsis where it was cut.

    >>> shortened("Phoebastria immutabilis", 12), shortened("tick", 12)
    ('Phoebastria…', 'tick')
    """
    return name if len(name) <= length else name[: length - 1].rstrip() + "…"


def shortened_path(path: str, length: int) -> str:
    """The end of a path, with an ellipsis where its beginning was cut.

    >>> shortened_path("albatross/0004.jpg", 12)
    '…ss/0004.jpg'
    """
    return path if len(path) <= length else "…" + path[1 - length :]


WHOLE = "as a whole"
"""What stands in place of a prototype's number where it is a class itself."""


def owned_name(owner: str, number: int) -> str:
    """What a prototype is called by its owner, in few words.

    >>> owned_name("heron", 2), owned_name("heron", 0)
    ('heron 2', 'heron as a whole')
    """
    return f"{owner} {number or WHOLE}"


def part_name(number: int, owner: str = "") -> str:
    """What a prototype is called; `owner` where it is another class's. The number 0 is a class as a whole.

    >>> part_name(2), part_name(2, "heron"), part_name(0, "heron")
    ('prototype 2', 'prototype 2 of heron', 'heron as a whole')
    """
    if not number:
        return owned_name(owner, 0)
    return f"prototype {number}" + (f" of {owner}" if owner else "")


def known(value: float, form: str) -> str:
    """A figure as a format says; "unknown" where a file does not hold it, which is NaN.

    >>> known(0.5, ".1%"), known(float("nan"), ".1%")
    ('50.0%', 'unknown')
    """
    return "unknown" if math.isnan(value) else format(value, form)
