"""Tables of an evaluation in words."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from protonmf_cli.output.text.blocks import Block, Row, TextTable

if TYPE_CHECKING:
    from protonmf_cli.models.sheets import Column, Table

MOST_INTERVALS = 4
"""Columns with intervals that fit on a terminal; of a wider table the JSON and the figure have them."""
WRITTEN = {"percent": "{:.1%}", "number": "{:.3f}", "count": "{:d}", "text": "{}"}
"""Kind of a column -> how a value is written."""


def table_blocks(table: "Table") -> Iterator[Block]:
    """A table for a terminal, intervals in brackets where there is room for them, and its notes."""
    spans = sum(f"{column.key}_interval" in row for row in table.rows[:1] for column in table.columns)
    rows = (tuple(written_cell(c, row, spans <= MOST_INTERVALS) for c in table.columns) for row in table.rows)
    yield TextTable(
        headings=tuple(column.heading for column in table.columns),
        rows=tuple(Row(cells=cells) for cells in rows),
        left=frozenset(n for n, column in enumerate(table.columns) if column.kind == "text"),
        title=table.title,
        wraps=True,
    )
    for note in table.notes:
        yield ((note, "dim"),)


def written_cell(column: "Column", row: Mapping[str, Any], with_interval: bool) -> str:
    """One cell in words, with its interval in brackets."""
    value = row.get(column.key)
    if value is None:
        return ""
    write = WRITTEN[column.kind].format
    span = row.get(f"{column.key}_interval")
    return write(value) if not span or not with_interval else f"{write(value)} ({write(span[0])}, {write(span[1])})"
