"""What is in a model file, and how a network's head is read, as JSON."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import printable
from protonmf_cli.models.stability import is_unstable

if TYPE_CHECKING:
    from protonmf_cli.jobs.inspection import Inspection
    from protonmf_cli.jobs.network_inspection import NetworkInspection
    from protonmf_cli.models.prototype import PrototypeModel


OF_MACHINE = ("dtype", "device")


def inspection_json(inspection: "Inspection") -> dict[str, Any]:
    """`protonmf.inspection/1`: the card, counts, and the prototypes of each class, or of the one that was named."""
    model, chosen = inspection.model, inspection.class_index
    listed = model.active_classes.tolist() if chosen is None else [chosen]
    facts = inspection_facts(inspection.path, model, embedded=inspection.embedded)
    card = {key: value for key, value in model.card.as_json().items() if key != "classes"}
    return {**facts, "card": card, "per_class": [class_json(model, c) for c in listed]}


def inspection_facts(path: Path, model: "PrototypeModel", *, embedded: bool) -> dict[str, Any]:
    """`protonmf.inspection/1` without the card and the list of classes."""
    card, weights = model.card, model.weights
    against = (model.owner[weights.prototype] == weights.class_index) & (weights.value < 0)
    return {
        "schema": "protonmf.inspection/1",
        "file": printable(str(path)),
        "bytes": path.stat().st_size,
        "format": model.file_format,
        "method": card.method,
        "backbone_embedded": embedded,
        "classes": len(card.classes),
        "classes_with_prototypes": len(model.active_classes),
        "prototypes": len(model.parts),
        "wholes": int(model.wholes.sum()),
        "examples": int((~model.wholes)[model.examples.prototype.cpu()].sum()),
        "augmented": model.is_augmented,
        "unstable": sum(is_unstable(model.stability(j)) for j in range(len(model.prototypes))),
        "classes_with_own_against": len(weights.class_index[against].unique()),
    }


def class_json(model: "PrototypeModel", class_index: int) -> dict[str, Any]:
    """One class with its prototypes."""
    name = model.card.classes[class_index]
    return {
        "class_index": class_index,
        "label": name.label,
        "description": name.description,
        "residual_norm": float(model.residual[class_index].norm()),
        "own_against": list(model.own_against(class_index)),
        "prototypes": [_entry_json(model, entry) for entry in model.entries(class_index)],
    }


def _entry_json(model: "PrototypeModel", entry: int) -> dict[str, Any]:
    """One weight of a class, and the prototype it stands on."""
    prototype = int(model.weights.prototype[entry])
    owner, usual = int(model.owner[prototype]), model.usual_of(prototype)
    return {
        "prototype": model.number(prototype),
        "prototype_id": prototype,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "owner_description": model.card.classes[owner].shown,
        "weight": float(model.weights.value[entry]),
        "residual_share": float(model.weights.residual_share[entry]),
        "usual": usual and list(usual),
        "stability": model.stability(prototype),
        "unstable": is_unstable(model.stability(prototype)),
        **({"caption": caption} if (caption := model.caption(prototype)) else {}),
        "examples": [
            {"source": model.examples.sources[e].path, "score": float(model.examples.score[e])}
            for e in model.examples.of(prototype)
        ],
    }


def network_json(inspection: "NetworkInspection") -> dict[str, Any]:
    """`protonmf.network/1`: how a head is read, and figures of its rows on two photographs."""
    backbone, reading = inspection.backbone, inspection.reading
    source = backbone.source
    return {
        "schema": "protonmf.network/1",
        "model": source.name,
        "architecture": source.architecture,
        "weights_digest": source.digest,
        "weights": inspection.weights,
        "input_size": list(backbone.preprocessing.input_size),
        "classes": len(backbone.classes),
        "readout": {name: value for name, value in inspection.readout.as_json().items() if name not in OF_MACHINE},
        "relative_difference_float64": backbone.formula_difference,
        "relative_difference_float32": reading.relative_difference,
        "placed_share": reading.placed_share,
        "quadrants_followed": reading.quadrants,
        "clipped_share": reading.clipped_share,
    }
