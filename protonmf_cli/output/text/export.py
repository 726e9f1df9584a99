"""An export in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.export import Export


def export_lines(export: "Export") -> list[str]:
    """What was written, and how timm reads it."""
    edits = f"{export.edits} edit{'s' * (export.edits != 1)}"
    return [
        f"{export.folder}: {export.architecture} with {edits}",
        f"timm.create_model('local-dir:{export.folder}', pretrained=True) gives these logits "
        f"(float64 difference {export.relative_difference:.0e} of their spread)",
    ]
