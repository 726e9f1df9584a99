"""An export in words."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.export import Export


LOADED = {
    "timm": "timm.create_model({local!r}, pretrained=True)",
    "transformers": "transformers.AutoModelForImageClassification.from_pretrained({folder!r})",
}
"""How a library loads a checkpoint."""


def export_lines(export: "Export") -> list[str]:
    """What was written, and how it is read."""
    edits = f"{export.edits} edit{'s' * (export.edits != 1)}"
    first = f"{export.path}: {export.architecture} with {edits}"
    if export.format == "checkpoint":
        loads = LOADED.get(export.library, "{architecture} with the weights {folder}/model.safetensors")
        folder = str(export.path)
        said = loads.format(architecture=export.architecture, folder=folder, local=f"local-dir:{folder}")
        return [
            first,
            f"{said} gives these logits (float64 difference {export.relative_difference:.0e} of their spread)",
        ]
    said = ", ".join(f"{name} {difference:.0e}" for name, difference in export.differences.items())
    return [
        first,
        f"onnxruntime.InferenceSession({str(export.path)!r}) gives {', '.join(export.differences)} of any number of images",
        f"largest differences from the model in float64, of the spread: {said} (torch's own float32: {export.rounding:.0e})",
    ]
