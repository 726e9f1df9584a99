"""Conversions as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protonmf_cli.jobs.conversion import Conversion, ConversionPlan, ConvertedShare

LISTS = ("stability", "curves", "alike")
"""Figures with one entry per prototype or class: `inspect --json` has them."""


def conversion_json(conversion: "Conversion") -> dict[str, Any]:
    """`protonmf.conversion/1`: what was converted, how exactly, and how long it took."""
    model = conversion.loaded.model
    card = model.card
    return {
        "schema": "protonmf.conversion/1",
        "model": card.source.name,
        "output": str(conversion.loaded.path),
        "bytes": conversion.bytes,
        "classes": len(card.classes),
        "classes_with_images": len(model.active_classes),
        "prototypes": len(model.parts),
        "wholes": int(model.wholes.sum()),
        "images": card.data.images,
        "counted": "labelled images" if model.multi_label else "images",
        "skipped": [asdict(skip) for skip in card.data.skipped or ()],
        "left_out": card.data.left_out,
        "readout": card.readout.as_json(),
        "max_abs_logit_difference": card.readout.max_abs_logit_difference,
        **{name: value for name, value in conversion.figures.as_json().items() if name not in LISTS},
        "stability": median_of(conversion.figures.stability),
        "seconds": dict(conversion.seconds),
    }


def share_json(share: "ConvertedShare") -> dict[str, Any]:
    """`protonmf.share/1`: a share that is done, and which classes the others have not finished."""
    return {
        "schema": "protonmf.share/1",
        "output": str(share.output),
        "share": share.share.number,
        "shares": share.share.shares,
        "classes_finished": share.finished,
        "classes_missing": list(share.missing),
    }


def plan_json(plan: "ConversionPlan") -> dict[str, Any]:
    """`protonmf.plan/1`: what a conversion would do."""
    prepared = plan.prepared
    backbone, counts = prepared.backbone, prepared.images.counts
    return {
        "schema": "protonmf.plan/1",
        "model": backbone.source.name,
        "output": str(prepared.output),
        "readout": backbone.readout.kind,
        "spatial": backbone.readout.spatial,
        "classes": len(backbone.classes),
        "classes_with_images": len(counts),
        "images": plan.images,
        "prototypes": plan.most_prototypes if prepared.options.prototypes else None,
        "most_prototypes": plan.most_prototypes,
        "bytes_of_cached_features": plan.bytes_of_cached_features,
        "bytes_while_working": plan.bytes_while_working,
        "seconds": plan.seconds,
    }


def median_of(values: Sequence[float | None]) -> float | None:
    """Median of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
