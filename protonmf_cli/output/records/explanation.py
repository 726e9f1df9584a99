"""Explanations and interventions as JSON."""

from typing import TYPE_CHECKING, Any

from protonmf_cli.models.stability import is_unstable

if TYPE_CHECKING:
    import numpy as np

    from protonmf_cli.models.results import Contrast, Contribution, Explanation, Outcome, Prediction, Unlike


def explanation_json(explanation: "Explanation", contrast: "Contrast | None" = None) -> dict[str, Any]:
    """`protonmf.explanation/1`, with `against` where the class is compared with another one."""
    return {
        "schema": "protonmf.explanation/1",
        "image": explanation.image,
        "model": explanation.model,
        "predictions": [prediction_json(p) for p in explanation.predictions],
        "class_index": explanation.class_index,
        "label": explanation.label,
        "logit": explanation.logit,
        "probability": explanation.probability,
        "multi_label": explanation.multi_label,
        "among": explanation.among,
        "bias": explanation.bias,
        "map_kind": explanation.map_kind,
        "form": explanation.form,
        "evidence": explanation.kind.value,
        "contributions": [contribution_json(c) for c in explanation.contributions],
        "residual": {
            "contribution": explanation.residual,
            "intercept": explanation.intercept,
            "map": _grid(explanation.residual_map),
            "codes": _grid(explanation.residual_codes),
        },
        "no_place": explanation.unplaced,
        "residual_share": explanation.residual_share,
        "ledger_error": explanation.ledger_error,
        "own_against": list(explanation.own_against),
        "without_prototypes": explanation.without_prototypes,
        "best_with_prototypes": None
        if explanation.best_with_prototypes is None
        else prediction_json(explanation.best_with_prototypes),
        "unlike": None if explanation.unlike is None else unlike_json(explanation.unlike),
        **({"named_by": explanation.named_by} if explanation.named_by else {}),
        **({} if contrast is None else {"against": contrast_json(contrast)}),
    }


def contribution_json(contribution: "Contribution") -> dict[str, Any]:
    """One entry of `contributions`."""
    return {
        "prototype": contribution.prototype,
        "prototype_id": contribution.prototype_id,
        "owner_index": contribution.owner_index,
        "owner_label": contribution.owner_label,
        "stability": contribution.stability,
        "unstable": is_unstable(contribution.stability),
        "weight": contribution.weight,
        "evidence": contribution.evidence,
        "usual": contribution.usual and list(contribution.usual),
        "contribution": contribution.contribution,
        "localised": contribution.localised,
        "unlocalised": contribution.unlocalised,
        "box": contribution.box and list(contribution.box),
        "map": _grid(contribution.maps.get("contribution")),
        "presence": _grid(contribution.maps.get("presence")),
        **({"network": contribution.network} if contribution.network else {}),
        **({"caption": contribution.caption} if contribution.caption else {}),
        "examples": [
            {"source": e.path, "sha256": e.sha256, "score": e.score, "box": list(e.box)} for e in contribution.examples
        ],
    }


def unlike_json(unlike: "Unlike") -> dict[str, Any]:
    """`unlike` of an explanation: how usual the image is for the predicted class."""
    return {
        "class_index": unlike.class_index,
        "score": unlike.score,
        "share": unlike.share,
        "images": unlike.images,
        "rest": unlike.rest,
        "amounts": [
            {
                "prototype": amount.prototype,
                "prototype_id": amount.prototype_id,
                "owner_index": amount.owner_index,
                "amount": amount.amount,
                "usual": amount.usual,
                "deviations": amount.deviations,
            }
            for amount in unlike.amounts
        ],
        "words": unlike.said,
    }


def contrast_json(contrast: "Contrast") -> dict[str, Any]:
    """`against` of an explanation: two logits on the same amounts."""
    rows = [
        {
            "prototype": row.prototype,
            "prototype_id": row.prototype_id,
            "owner_index": row.owner_index,
            "amount": row.amount,
            "weights": list(row.weights),
            "difference": row.difference,
        }
        for row in contrast.rows
    ]
    pairs = {"residual": contrast.residual, "no_place": contrast.unplaced, "bias": contrast.bias}
    return {
        "class_indices": [contrast.first, contrast.second],
        "rows": rows,
        **{name: list(pair) for name, pair in pairs.items()},
        "difference": contrast.difference,
    }


def prediction_json(prediction: "Prediction") -> dict[str, Any]:
    """One entry of `predictions`."""
    return {
        "class_index": prediction.class_index,
        "label": prediction.label,
        "description": prediction.name,
        "logit": prediction.logit,
        "probability": prediction.probability,
    }


def outcome_json(outcome: "Outcome") -> dict[str, Any]:
    """`before` or `after` of `protonmf.intervention/1`."""
    return {
        "class_index": outcome.class_index,
        "label": outcome.label,
        "logit": outcome.logit,
        "predictions": [prediction_json(p) for p in outcome.predictions],
    }


def _grid(values: "np.ndarray | None") -> list[list[float]] | None:
    return None if values is None else values.astype(float).tolist()
