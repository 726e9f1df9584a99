"""Evaluations as JSON."""

import math
from typing import TYPE_CHECKING, Any

from protonmf_cli.output.records.tables import table_json

if TYPE_CHECKING:
    from protonmf_cli.jobs.evaluation import Evaluation

NAMES = {
    "black_box": "black box",
    "prototype_model": "prototype model",
    "prototypes_only": "prototypes only",
    "residual_only": "residual only",
    "augmented": "augmented prototypes",
}
"""Ways to answer, in the order in which they are listed."""


def evaluation_json(evaluation: "Evaluation") -> dict[str, Any]:
    """`protonmf.evaluation/1`: accuracy, agreement and exactness, and the further tables."""
    model, scores = evaluation.loaded.model, evaluation.scores
    figures = model.card.conversion
    unknown = {name: None for name in NAMES if name not in scores.accuracy}
    without = {name: None for name in NAMES if name not in scores.agreement and name != "black_box"}
    return {
        "schema": "protonmf.evaluation/1",
        "model_digest": evaluation.model_digest,
        "multi_label": scores.multi_label,
        "images": scores.images,
        "classes": scores.classes,
        "accuracy": scores.accuracy | unknown,
        "agreement": scores.agreement | without,
        "logit_share": {"prototypes_only": scores.logit_share},
        "restricted": {
            "accuracy": scores.restricted["accuracy"] | unknown,
            "agreement": scores.restricted["agreement"] | without,
        },
        "exactness": {
            "max_abs_logit_difference": scores.max_abs_logit_difference,
            "relative_difference": scores.relative_difference,
        },
        "unlike": None
        if scores.unlike is None
        else {
            "share": scores.unlike.share,
            "quantiles": scores.unlike.quantiles,
            "unknown": scores.unlike.unknown,
        },
        "feature_relative_error": None if figures is None else _known(figures.feature_relative_error),
        "head_relative_error": None if figures is None else _known(figures.head_relative_error),
        "intervals": scores.intervals,
        "per_class": [
            {"class_index": c, "label": model.card.classes[c].label, **row} for c, row in scores.per_class.items()
        ],
        "tables": {name: table_json(table) for name, table in evaluation.tables.items()},
    }


def _known(figure: float) -> float | None:
    """A figure that a card may lack."""
    return None if math.isnan(figure) else figure
