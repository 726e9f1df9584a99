"""Exports as JSON."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.export import Export


def export_json(export: "Export") -> dict[str, Any]:
    """`protonmf.export/1`: what was written, and how exactly it gives what the model gives."""
    return {
        "schema": "protonmf.export/1",
        "model": str(export.model),
        "format": export.format,
        "output": str(export.path),
        "edits": export.edits,
        "relative_difference": export.relative_difference,
        "differences": dict(export.differences),
        "rounding": export.rounding,
    }
