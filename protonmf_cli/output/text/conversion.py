"""What a conversion says of itself: before (the plan) and after (the summary)."""

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Shown
from protonmf_cli.options import ConversionOptions

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.models.prototype import PrototypeModel

LISTS = ("stability", "curves", "alike")
"""Figures with one entry per prototype or class: `inspect --json` has them."""


def conversion_summary(model: "PrototypeModel", output: Path) -> dict[str, Any]:
    """The figures of `protonmf.conversion/1`, without the times."""
    card = model.card
    return {
        "schema": "protonmf.conversion/1",
        "model": card.source.name,
        "output": str(output),
        "classes": len(card.classes),
        "classes_with_images": len(model.active_classes),
        "prototypes": len(model.prototypes),
        "images": card.data["images"],
        "skipped": card.data["skipped"],
        "left_out": card.data["left_out"],
        "readout": card.readout,
        "max_abs_logit_difference": card.readout["max_abs_logit_difference"],
        **{name: value for name, value in card.measured.items() if name not in LISTS},
        "stability": median_of(card.measured.get("stability", [])),
    }


def cancellation_words(found: Mapping[str, float]) -> str:
    """How far the rows of an explanation cancel, in words."""
    return (
        f"{found['median']:.2f} (90 %: {found['high']:.2f}; sum of sizes over size of the sum of an explanation's rows)"
    )


def median_of(values: Sequence[float | None]) -> float | None:
    """Median of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def show_plan(
    backbone: "Backbone",
    images: "LabelledImages",
    options: ConversionOptions,
    output: Path,
    *,
    workers: int,
    cached: bool,
    shown: Shown,
    as_json: bool,
) -> None:
    """What would be done: readout, classes, disk and time, from one small batch."""
    from protonmf_cli.jobs.loaded import image_reader
    from protonmf_cli.pipelines.conversion.classes import SAMPLED_IMAGES

    files = images.of(images.counts)
    reader = image_reader(backbone.preprocessing, batch_size=8, workers=workers)
    start = time.monotonic()
    batch = next(reader.batches(files[:8]))
    if len(batch.crops):
        backbone.read(batch.crops)
    per_image = (time.monotonic() - start) / max(1, len(batch.sources) + len(batch.skipped))
    width = backbone.readout.width
    per_class = options.prototypes or options.max_prototypes
    prototypes = per_class * len(images.counts)
    grid = backbone.readout.places or len(backbone.readout.unplaced)
    kept = len(files) * 4 * width * grid if cached else 0
    plan = {
        "schema": "protonmf.plan/1",
        "model": backbone.source.name,
        "output": str(output),
        "readout": backbone.readout.kind,
        "spatial": backbone.readout.spatial,
        "classes": len(backbone.classes),
        "classes_with_images": len(images.counts),
        "images": len(files),
        "prototypes": prototypes if options.prototypes else None,
        "most_prototypes": prototypes,
        "bytes_of_cached_features": kept + len(files) * math.prod(backbone.preprocessing.input_size) if cached else 0,
        "bytes_while_working": len(files) * 4 * width
        + len(images.counts) * SAMPLED_IMAGES * grid * 4 * width
        + prototypes * options.examples * 20_000,
        "seconds": per_image * len(files),
    }
    if as_json:
        shown.json(plan)
        return
    for key, value in plan.items():
        if key != "schema" and value is not None:
            shown.out.print(
                f"{key.replace('_', ' '):>22}  {value:,.0f}"
                if isinstance(value, float)
                else f"{key.replace('_', ' '):>22}  {value}"
            )


def show_summary(summary: Mapping[str, Any], size: int, shown: Shown) -> None:
    """The finished conversion in a few lines."""
    from protonmf_cli.models.results import rounded

    readout, seconds = summary["readout"], summary["seconds"]
    grid = f"{readout['grid'][0]} x {readout['grid'][1]} places" if readout["grid"] else "no places"
    share = summary["residual_share"]
    whole = summary["classes"] - summary["classes_with_images"]
    kept = "their rows are parts of other classes" if "ridge" in summary else "kept whole, all residual"
    lines = {
        "classes": f"{summary['classes_with_images']} with images" + (f", {whole} without ({kept})" if whole else ""),
        "prototypes": f"{summary['prototypes']} from {summary['images']} images"
        + (f", {len(summary['skipped'])} skipped" if summary["skipped"] else ""),
        "readout": f"{readout['kind']}, {grid}, width {readout['width']}",
        "exactness": f"max |logit difference| {summary['max_abs_logit_difference']:.1e}, agreement {summary['agreement']:.2%}",
        "accuracy on these": f"{summary['accuracy_black_box']:.1%} black box, {summary['accuracy_prototype_model']:.1%} prototype model",
        "stability": "not measured"
        if summary["stability"] is None
        else f"{summary['stability']:.2f} (median cosine of prototypes between halves of the images)",
        "residual share": "not defined for one class" if share is None else f"{rounded(share)} of the logit (median)",
        "cancellation": cancellation_words(summary["cancellation"]),
        "time": f"{seconds['total']:.1f} s (network {seconds['extract']:.1f}, NMF {seconds['factorise']:.1f}, head {seconds['head']:.1f})",
    }
    shown.out.print(f"[bold]{summary['output']}[/bold]  {size / 2**20:.1f} MiB, from {summary['model']}")
    for name, text in lines.items():
        shown.out.print(f"{name:>18}  {text}", markup=False)
    for skip in summary["skipped"][:5]:
        shown.note(f"skipped {skip['path']}: {skip['reason']}")
