"""A plain table on the terminal."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, cast

from rich.table import Table
from rich.text import Text

from protonmf_cli.cli.console import Shown
from protonmf_cli.output.text.blocks import Piece


def show_rows(headings: Mapping[str, str], rows: Iterable[Sequence[Piece]], shown: Shown) -> None:
    """Rows under headings.

    Args:
        headings: name -> "left" or "right", where the column's cells stand.
        rows: a cell for each heading; names in them are no markup.
        shown: the terminal.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name, side in headings.items():
        table.add_column(name, no_wrap=True, justify=cast(Literal["left", "right"], side))
    for row in rows:
        table.add_row(*(Text(cell) if isinstance(cell, str) else Text(*cell) for cell in row))
    shown.out.print(table)
