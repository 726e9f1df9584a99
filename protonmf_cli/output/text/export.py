"""An export in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.export import Export


LOADED = {
    "timm": "timm.create_model('local-dir:{1}', pretrained=True)",
    "transformers": "transformers.AutoModelForImageClassification.from_pretrained('{1}')",
}
"""How a library loads a checkpoint."""


def export_lines(export: "Export") -> list[str]:
    """What was written, and how it is read."""
    edits = f"{export.edits} edit{'s' * (export.edits != 1)}"
    first = f"{export.path}: {export.architecture} with {edits}"
    if export.format == "checkpoint":
        loads = LOADED.get(export.library, "{0} with the weights {1}/model.safetensors")
        said = loads.format(export.architecture, export.path)
        return [
            first,
            f"{said} gives these logits (float64 difference {export.relative_difference:.0e} of their spread)",
        ]
    said = ", ".join(f"{name} {difference:.0e}" for name, difference in export.differences.items())
    return [
        first,
        f"onnxruntime.InferenceSession('{export.path}') gives {', '.join(export.differences)} of any number of images",
        f"largest differences from the model in float64, of the spread: {said} (torch's own float32: {export.rounding:.0e})",
    ]
