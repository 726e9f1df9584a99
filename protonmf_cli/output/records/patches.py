"""Stored training patches beside their images, as JSON."""

from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import printable
from protonmf_cli.options import without_secrets

if TYPE_CHECKING:
    from protonmf_cli.jobs.patches import PatchInspection
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.stored_patches import CheckedPrototype, Patch


def patches_json(found: "PatchInspection") -> dict[str, Any]:
    """`protonmf.patches/1`: what is as the file says, of how many, and every prototype with its patches."""
    return {
        "schema": "protonmf.patches/1",
        "file": printable(str(found.path)),
        "data": without_secrets(str(found.data.data)),
        "images": found.images,
        "as_said": {name: {"count": count, "of": of} for name, (count, of) in found.counts.items()},
        "failed": len(found.failed),
        "notes": list(found.notes),
        "prototypes": [_prototype_json(found.model, each) for each in found.prototypes],
    }


def _prototype_json(model: "PrototypeModel", checked: "CheckedPrototype") -> dict[str, Any]:
    name = model.card.classes[checked.owner]
    return {
        "prototype_id": checked.prototype,
        "class_index": checked.owner,
        "class": name.shown,
        "label": name.label,
        "prototype": checked.number,
        "faults": list(checked.faults),
        "map": checked.map,
        "least_map": checked.least_map,
        "negative": checked.negative,
        "left": checked.left,
        "patches": [_patch_json(model, patch) for patch in checked.patches],
    }


def _patch_json(model: "PrototypeModel", patch: "Patch") -> dict[str, Any]:
    image = patch.image
    return {
        "source": image.source.path,
        "sha256": image.source.sha256,
        "found": image.said,
        "reason": image.reason or None,
        "classes": [model.card.classes[c].label for c in image.classes],
        "own_class": patch.own_class,
        "picture": patch.picture,
        "same_picture": patch.same_picture,
        "map": patch.map,
    }
