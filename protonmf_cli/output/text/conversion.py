"""What a conversion says of itself: before (the plan) and after (the summary)."""

from collections.abc import Mapping
from typing import Any

from protonmf_cli.models.wording import rounded


def cancellation_words(found: Mapping[str, float]) -> str:
    """How far the rows of an explanation cancel, in words."""
    return (
        f"{found['median']:.2f} (90 %: {found['high']:.2f}; sum of sizes over size of the sum of an explanation's rows)"
    )


def plan_lines(plan: Mapping[str, Any]) -> list[str]:
    """What would be done; `plan` of `plan_json`."""
    known = {key.replace("_", " "): value for key, value in plan.items() if key != "schema" and value is not None}
    return [
        f"{key:>22}  {value:,.0f}" if isinstance(value, float) else f"{key:>22}  {value}"
        for key, value in known.items()
    ]


MISSING = 8
"""Classes that a share names as missing."""


def share_lines(share: Mapping[str, Any]) -> list[str]:
    """What a share did and what is missing; `share` of `share_json`."""
    missing, whole = share["classes_missing"], share["classes_finished"] + len(share["classes_missing"])
    headline = f"share {share['share']} of {share['shares']} is done: {share['classes_finished']} of {whole} classes are finished"
    if not missing:
        return [headline, f"another process writes {share['output']}"]
    names = ", ".join(missing[:MISSING]) + (f" and {len(missing) - MISSING} more" if len(missing) > MISSING else "")
    return [
        headline,
        f"missing: {names}",
        f"The share that finishes the last of them writes {share['output']}. Where a share never comes, the same command "
        "without --share does what is missing.",
    ]


STAGES = (("network", "extract"), ("NMF", "factorise"), ("head", "head"))


def conversion_lines(summary: Mapping[str, Any]) -> list[str]:
    """The finished conversion in a few lines, a headline first; `summary` of `conversion_json`."""
    readout, seconds = summary["readout"], summary["seconds"]
    grid = f"{readout['grid'][0]} x {readout['grid'][1]} places" if readout["grid"] else "no places"
    share = summary["residual_share"]
    whole = summary["classes"] - summary["classes_with_images"]
    stages = [f"{name} {seconds[key]:.1f}" for name, key in STAGES if seconds[key] is not None]
    kept = "their rows are of other classes" if "ridge" in summary else "kept whole, all residual"
    lines = {
        "classes": f"{summary['classes_with_images']} with images" + (f", {whole} without ({kept})" if whole else ""),
        "prototypes": f"{summary['prototypes']} from {summary['images']} {summary['counted']}"
        + (f", {len(summary['skipped'])} skipped" if summary["skipped"] else ""),
        "readout": f"{readout['kind']}, {grid}, width {readout['width']}",
        "exactness": f"logits differ by at most {summary['max_abs_logit_difference']:.1e}, agreement {summary['agreement']:.2%}",
        "accuracy on these": f"{summary['accuracy_black_box']:.1%} black box, {summary['accuracy_prototype_model']:.1%} prototype model"
        + (f", among all {summary['classes']} classes" if whole else ""),
        "stability": "not measured"
        if summary["stability"] is None
        else f"{summary['stability']:.2f} (median cosine of prototypes between halves of the images)",
        "residual share": "not defined for one class" if share is None else f"{rounded(share)} of the logit (median)",
        "cancellation": cancellation_words(summary["cancellation"]),
        "time": f"{seconds['total']:.1f} s ({', '.join(stages)})",
    }
    headline = f"{summary['output']}  {summary['bytes'] / 2**20:.1f} MiB, from {summary['model']}"
    return [headline, *(f"{name:>18}  {text}" for name, text in lines.items())]
