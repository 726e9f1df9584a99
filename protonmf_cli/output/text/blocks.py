"""What a text is made of before a terminal colours it: lines of pieces, and tables whose last column is a bar."""

from collections.abc import Sequence
from dataclasses import dataclass

Piece = str | tuple[str, str]
"""Text, or text and its style, e.g. ("tick", "bold")."""
Line = Sequence[Piece]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    cells: tuple[Piece, ...]
    """As many as the table has headings, then `last`."""
    bar: float | None = None
    """Length and direction of the bar, in the unit of the table's `scale`."""
    style: str = ""
    """Of the first cell, the last of the numbers, and the bar."""
    last: str = ""
    """Behind the bar."""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table for people."""

    headings: tuple[str, ...]
    rows: tuple[Row, ...]
    left: frozenset[int] = frozenset({0})
    """Columns of text; the others hold numbers."""
    title: str | None = None
    wraps: bool = False
    """Whether cells may take several lines."""
    scale: float | None = None
    """The largest bar; None: there are none."""
    last: str | None = None
    """Heading behind the bars; None: nothing stands there."""


Block = Line | TextTable | str
"""A bare text is a line that is never wrapped, such as a command to be copied."""
