"""What stands in the metadata of a graph: everything that its numbers alone do not say."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.versions import installed_versions

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel

PACKAGES = ("protonmf", "torch", "timm", "onnx", "onnxscript")
AMOUNTS = {
    EvidenceKind.AMOUNTS: "amount of the prototype; 1 is usual in images of its own class",
    EvidenceKind.PROJECTIONS: "projection on the prototype, of all rows",
    EvidenceKind.SIMILARITIES: "similarity of the most similar patch",
    EvidenceKind.MATCHES: "how much the image matches the prototype; all matches add up to 1",
}
MAPS = {
    EvidenceKind.AMOUNTS: "amount at each place; a map adds up to the amount",
    EvidenceKind.PROJECTIONS: "projection of each place; a map adds up to what the places have of the amount",
    EvidenceKind.SIMILARITIES: "similarity of each patch; the amount is the largest",
    EvidenceKind.MATCHES: "what each place adds to the logarithm of the match, where it adds anything",
}


def graph_metadata(model: "PrototypeModel", outputs: Sequence[str]) -> dict[str, Any]:
    """`protonmf.onnx/1`: classes, prototypes, preprocessing, exactness and versions, for the model's metadata.

    Args:
        model: that the graph is of.
        outputs: names of what the graph gives.
    """
    card, kind = model.card, model.evidence.kind
    said = {"logits": "logit of each class, edits included", "amounts": AMOUNTS[kind], "maps": MAPS[kind]}
    readout, source = card.readout, card.source
    return {
        "schema": "protonmf.onnx/1",
        "method": card.method,
        "evidence": kind.value,
        "form": "augmented" if model.is_augmented else "plain",
        "input": "(crop / 255 - mean) / std in float32: images, channels, height, width",
        "outputs": {name: said[name] for name in outputs},
        "preprocessing": asdict(card.preprocessing),
        "classes": [asdict(name) for name in card.classes],
        "prototypes": _prototypes(model),
        "source": {"name": source.short_name, "architecture": source.architecture, "digest": source.digest},
        "multi_label": model.multi_label,
        "edits": len(card.edits),
        "exactness": {
            "max_abs_logit_difference": _known(readout.max_abs_logit_difference),
            "relative_difference": _known(readout.relative_difference),
            "images_checked": readout.images_checked,
        },
        "versions": installed_versions(PACKAGES),
    }  # fmt: skip


def _prototypes(model: "PrototypeModel") -> list[dict[str, Any]]:
    """In the order of the amounts."""
    parts = (model.weights.prototype, model.weights.class_index, model.weights.value)
    weights = {(j, c): weight for j, c, weight in zip(*(part.tolist() for part in parts), strict=True)}
    found = []
    for j, owner in enumerate(model.owner.tolist()):
        usual = model.usual_of(j)
        found.append(
            {
                "class_index": owner,
                "label": model.card.classes[owner].label,
                "prototype": model.number(j),
                "weight": weights.get((j, owner)),
                "usual": usual and list(usual),
            }
        )
    return found


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
