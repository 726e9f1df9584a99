"""Which files a figure can be written to; asked before anything is drawn."""

import re

from protonmf_cli.errors import UsageError

FORMATS = ("png", "svg", "pdf")


def format_of(name: str, option: str = "--figure") -> str:
    """One of `FORMATS`, as the end of a file's name says.

    Raises:
        UsageError: it says something else, or nothing.

    >>> format_of("why.PDF")
    'pdf'
    """
    stem, _, suffix = re.split(r"[\\/]", name)[-1].rpartition(".")
    if not stem or suffix.lower() not in FORMATS:
        raise UsageError(f"{option} {name} names no kind of figure: end it in .png, .svg or .pdf.")
    return suffix.lower()


def names_figure(name: str) -> bool:
    """Whether a name ends as a figure's does.

    >>> names_figure("why.png"), names_figure("pictures")
    (True, False)
    """
    return "." in name and name.rpartition(".")[2].lower() in FORMATS
