"""Exports as JSON."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.export import Export


def export_json(export: "Export") -> dict[str, Any]:
    """`protonmf.export/1`: what was written, and how exactly it gives the model's logits."""
    return {
        "schema": "protonmf.export/1",
        "model": str(export.model),
        "output": str(export.folder),
        "edits": export.edits,
        "relative_difference": export.relative_difference,
    }
