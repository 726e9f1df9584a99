"""Interventions as JSON."""

from typing import TYPE_CHECKING, Any

from protonmf_cli.output.records.explanation import outcome_json

if TYPE_CHECKING:
    from protonmf_cli.jobs.intervention import Intervention
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Edit, HeldOut, InterventionOnData, Refit


def intervention_json(found: "Intervention") -> dict[str, Any]:
    """`protonmf.intervention/1`: the edits, the refit, before and after, and where the edited model was saved."""
    model = found.loaded.model
    record: dict[str, Any] = {
        "schema": "protonmf.intervention/1",
        "edits": [_edit_json(model, edit) for edit in found.edits],
    }
    if found.refit is not None:
        record["refit"] = _refit_json(model, found.refit)
    if found.outcomes is not None:
        before, after = map(outcome_json, found.outcomes)
        record |= {"image": found.image, "before": before, "after": after}
    if found.also:
        record["also"] = [
            {"class_index": one.class_index, "label": one.label, "before": one.logit, "after": two.logit}
            for one, two in found.also
        ]
    if found.on_data is not None:
        record |= _data_json(model, found.on_data)
    return record | {"output": None if found.path is None else str(found.path)}


def _edit_json(model: "PrototypeModel", edit: "Edit") -> dict[str, Any]:
    owner = int(model.owner[edit.prototype_id])
    return {
        "class_index": None if edit.everywhere else edit.class_index,
        "label": None if edit.everywhere else model.card.classes[edit.class_index].label,
        "everywhere": edit.everywhere,
        "owner_index": owner,
        "owner_label": model.card.classes[owner].label,
        "prototype": model.number(edit.prototype_id),
        "prototype_id": edit.prototype_id,
        "factor": edit.factor,
    }


def _refit_json(model: "PrototypeModel", refit: "Refit") -> dict[str, Any]:
    classes = model.card.classes
    return {
        "taken": refit.ridge is not None,
        "reason": refit.reason or None,
        "ridge": refit.ridge,
        "images": refit.images,
        "classes": refit.classes,
        "removed": list(refit.removed),
        "candidates": [
            {"ridge": each.ridge, "loss": each.loss, "accuracy": each.right / refit.whole.images}
            for each in refit.candidates
        ],
        "held_out": _held_out_json(refit.whole),
        "per_class": [
            {"class_index": c, "label": classes[c].label, **_held_out_json(figures)}
            for c, figures in refit.per_class.items()
        ],
        "taken_along": [
            {
                "prototype_id": j,
                "owner_label": classes[int(model.owner[j])].label,
                "prototype": model.number(j),
                **_held_out_json(figures),
            }
            for j, figures in refit.taken_along.items()
        ],
    }


def _held_out_json(figures: "HeldOut") -> dict[str, Any]:
    """Shares right of the images that the cross-validation held out; of the refit, by heads that had not seen them."""
    count = figures.images
    return {
        "images": count,
        "before": figures.before / count if count else None,
        "edited": figures.edited / count if count else None,
        "refitted": figures.refitted / count if count and figures.refitted is not None else None,
    }


def _data_json(model: "PrototypeModel", result: "InterventionOnData") -> dict[str, Any]:
    classes = model.card.classes
    return {
        "images": result.images,
        "before": {"accuracy": result.accuracy_before},
        "after": {"accuracy": result.accuracy_after},
        **({} if result.accuracy_unrefitted is None else {"edit_alone": {"accuracy": result.accuracy_unrefitted}}),
        "flips": [
            {
                "image": flip.path,
                "label": classes[flip.target].label,
                **{
                    side: None if c < 0 else classes[c].label
                    for side, c in (("before", flip.before), ("after", flip.after))
                },
            }
            for flip in result.flips
        ],
        "per_class": [
            {"class_index": c, "label": classes[c].label, "images": n, "before": b / n, "after": a / n}
            for c, (n, b, a) in result.per_class.items()
        ],
    }
