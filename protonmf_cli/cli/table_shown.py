"""Written tables on the terminal."""

from rich.table import Table
from rich.text import Text

from protonmf_cli.cli.console import Shown
from protonmf_cli.output.text.tables import WrittenTable


def show_table(table: WrittenTable, shown: Shown) -> None:
    """A table with its notes below it."""
    grid = Table(box=None, pad_edge=False, header_style="dim", title=table.title, title_justify="left")
    for number, heading in enumerate(table.headings):
        justify = "left" if number in table.left else "right"
        grid.add_column(heading, justify=justify, no_wrap=not table.wraps)  # type: ignore[arg-type]
    for row in table.rows:
        grid.add_row(*map(Text, row))
    shown.out.print(grid)
    for note in table.notes:
        shown.out.print(note, style="dim", markup=False)
