"""Tables of an evaluation as JSON."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.models.sheets import Table


def table_json(table: "Table") -> dict[str, Any]:
    """One entry of `tables` of `protonmf.evaluation/1`."""
    columns = [asdict(column) for column in table.columns]
    return {
        "title": table.title, "columns": columns, "rows": list(table.rows), "notes": list(table.notes), **table.facts
    }  # fmt: skip
