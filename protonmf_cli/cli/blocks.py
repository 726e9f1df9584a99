"""Lines and tables of text on the terminal, with colours and bars."""

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from protonmf_cli.cli.console import Shown
from protonmf_cli.output.text.blocks import Block, Piece, Row, TextTable

BAR = 24
"""Characters of the longest bar; half of them where what stands behind needs the room."""
GAP = 2
"""Characters between columns."""
WIDE = 100
"""Columns from which a table also says what stands behind its bars."""


def show_blocks(blocks: Iterable[Block], shown: Shown) -> None:
    """One after the other on stdout."""
    for block in blocks:
        if isinstance(block, TextTable):
            shown.out.print(_table(block, shown.out.width))
        elif isinstance(block, str):
            shown.out.print(block, markup=False, soft_wrap=True)
        else:
            shown.out.print(Text.assemble(*block))


def _table(table: TextTable, width: int) -> Table:
    title = None if table.title is None else Text(table.title)
    drawn = Table(box=None, pad_edge=False, header_style="dim", title=title, title_justify="left")
    columns = zip(table.headings, *(map(_styled, row.cells) for row in table.rows), strict=True)
    for number, (heading, *cells) in enumerate(columns):
        least = max(len(heading), *(cell.cell_len for cell in cells), 6 if number and table.scale is not None else 0)
        drawn.add_column(
            Text(heading),
            justify="left" if number in table.left else "right",
            no_wrap=not table.wraps,
            min_width=None if table.wraps else least,
        )
        width -= least + GAP
    longest = max((len(row.last) + GAP for row in table.rows), default=0) if table.last is not None else 0
    bar = BAR if width >= BAR + GAP + longest else BAR // 2
    if table.scale is not None:
        drawn.add_column("", no_wrap=True, min_width=bar)
        width -= bar + GAP
    if table.last is not None:
        drawn.add_column(table.last, no_wrap=True, style="dim")
    for row in table.rows:
        drawn.add_row(*_cells(row, table, bar, max(width, 1)))
    return drawn


def _cells(row: Row, table: TextTable, bar: int, room: int) -> list[Text]:
    cells = [_styled(cell) for cell in row.cells]
    if row.style:
        cells[0].stylize(row.style)
        cells[-1].stylize(row.style)
    if table.scale is not None:
        cells.append(Text() if row.bar is None else _bar(row.bar, table.scale, bar, row.style))
    if table.last is not None:
        cells.append(Text(row.last[-room:]))  # the end of a path says most
    return cells


def _styled(cell: Piece) -> Text:
    return Text(cell) if isinstance(cell, str) else Text(*cell)


def _bar(value: float, scale: float, longest: int, style: str) -> Text:
    length = round(longest * abs(value) / scale)
    return Text("█" * length if value >= 0 else "░" * length, style=style or ("green" if value >= 0 else "red"))
