"""Audits as JSON."""

from typing import TYPE_CHECKING, Any

from protonmf_cli.options import without_secrets

if TYPE_CHECKING:
    from protonmf_cli.jobs.audit import Audited
    from protonmf_cli.models.audit import Candidate, Need, Share, Transplant
    from protonmf_cli.models.prototype import PrototypeModel


def audit_json(audited: "Audited") -> dict[str, Any]:
    """`protonmf.audit/1`: every prototype, those that look most like a shortcut first."""
    found, model = audited.found, audited.loaded.model
    return {
        "schema": "protonmf.audit/1",
        "model": str(audited.loaded.path),
        "model_digest": audited.model_digest,
        "data": without_secrets(str(audited.data.data)),
        "images": found.images,
        "accuracy": found.accuracy,
        "groups": None
        if found.groups is None
        else {name: {"images": images, "accuracy": accuracy} for name, (images, accuracy) in found.groups.items()},
        "shortcuts": len(found.shortcuts),
        "ranking": [
            {"rank": rank, **_candidate_json(model, candidate)}
            for rank, candidate in enumerate(found.candidates, start=1)
        ],
        "notes": list(found.notes),
        "page": None if audited.path is None else str(audited.path),
    }


def _candidate_json(model: "PrototypeModel", candidate: "Candidate") -> dict[str, Any]:
    name = model.card.classes[candidate.class_index]
    return {
        "class_index": candidate.class_index,
        "class": name.shown,
        "label": name.label,
        "prototype": candidate.number,
        "prototype_id": candidate.prototype_id,
        "shortcut": candidate.is_shortcut,
        "score": candidate.score,
        "reason": candidate.reason,
        "transplant": None if candidate.transplant is None else _transplant_json(candidate.transplant),
        "without": None if candidate.need is None else _need_json(candidate.need),
        "outside_object": candidate.outside,
        "signs": [{"kind": sign.kind, "words": sign.words} for sign in candidate.signs],
    }


def _transplant_json(transplant: "Transplant") -> dict[str, Any]:
    """Shares of images of other classes that go to the prototype's class."""
    return {
        "flips": _share_json(transplant.flips),
        "other_pieces": _share_json(transplant.elsewhere),
        "other_prototypes": _share_json(transplant.siblings),
        "left_without": _share_json(transplant.left),
        "recoloured": _share_json(transplant.recoloured),
        "recoloured_left_without": _share_json(transplant.recoloured_left),
    }


def _share_json(share: "Share") -> dict[str, Any] | None:
    """None where nothing was tried."""
    if not share.trials:
        return None
    return {"share": share.value, "interval": [share.low, share.high], "trials": share.trials}


def _need_json(need: "Need") -> dict[str, Any]:
    """Before and after the prototype is taken out."""
    return {
        "images": need.images,
        "class_accuracy": list(need.own),
        "class_probability": list(need.probability),
        "accuracy": list(need.everything),
        "worst_group_accuracy": None if need.worst_group is None else list(need.worst_group),
    }
