"""Explanations and interventions in words: for the terminal and as JSON."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from protonmf_cli.cli.console import Shown
from protonmf_cli.models.prototype import is_unstable
from protonmf_cli.models.results import Contrast, Contribution, Explanation, Outcome, Prediction
from protonmf_cli.models.wording import rounded, shortened

BAR = 24
"""Characters of the longest bar."""
MOST_NAME = 20
"""Characters of an owner's name."""
MOST_SOURCE = 36
"""Last characters of a training image's path."""
WIDE = 100
"""Columns from which the ledger also names a training image."""
EVIDENCE = {"sum": "projections", "max": "similarities", "soft": "matches"}
"""What evidence is where it is no amount, by pooling."""


def explanation_json(explanation: Explanation, contrast: Contrast | None = None) -> dict[str, Any]:
    """`protonmf.explanation/1`, with `against` where the class is compared with another one."""
    return {
        "schema": "protonmf.explanation/1",
        "image": explanation.image,
        "model": explanation.model,
        "predictions": [prediction_json(p) for p in explanation.predictions],
        "class_index": explanation.class_index,
        "label": explanation.label,
        "logit": explanation.logit,
        "bias": explanation.bias,
        "map_kind": explanation.map_kind,
        "form": explanation.form,
        "evidence": "amounts" if explanation.reads_amounts else EVIDENCE[explanation.pooling],
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
        "without_prototypes": explanation.without_prototypes,
        "best_with_prototypes": None
        if explanation.best_with_prototypes is None
        else prediction_json(explanation.best_with_prototypes),
        **({} if contrast is None else {"against": contrast_json(contrast)}),
    }


def contribution_json(contribution: Contribution) -> dict[str, Any]:
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
        "examples": [
            {"source": e.path, "sha256": e.sha256, "score": e.score, "box": list(e.box)} for e in contribution.examples
        ],
    }


def contrast_json(contrast: Contrast) -> dict[str, Any]:
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


def _show_contrast(contrast: Contrast, top: int, shown: Shown) -> None:
    """Why one class and not the other, the largest differences first."""
    first, second = (shortened(name, MOST_NAME) for name in contrast.names)
    shown.out.print()
    shown.out.print(Text(f"why {first} and not {second}?", style="bold"))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    for name in ("amount", f"weight {first}", f"weight {second}", "difference"):
        table.add_column(name, justify="right")
    table.add_column("", no_wrap=True, min_width=BAR // 2)
    rest = sum(row.difference for row in contrast.rows[top:])
    others = {"no place": contrast.unplaced, "residual": contrast.residual, "bias": contrast.bias}
    others = {name: pair for name, pair in others.items() if any(pair)}
    scale = max([abs(row.difference) for row in contrast.rows] + [abs(a - b) for a, b in others.values()]) or 1.0
    for row in contrast.rows[:top]:
        name = f"prototype {row.prototype} of {shortened(row.owner_name, MOST_NAME)}"
        numbers = (f"{row.amount:.2f}", *(f"{weight:+.2f}" for weight in row.weights), f"{row.difference:+.2f}")
        table.add_row(name, *numbers, _bar(row.difference, scale))
    if len(contrast.rows) > top:
        table.add_row(f"{len(contrast.rows) - top} more", "", "", "", f"{rest:+.2f}", _bar(rest, scale))
    for name, (one, two) in others.items():
        table.add_row(name, "", f"{one:+.2f}", f"{two:+.2f}", f"{one - two:+.2f}", _bar(one - two, scale, "grey50"))
    table.add_row(Text("= difference of the logits", style="bold"), "", "", "", f"{contrast.difference:+.2f}", "")
    shown.out.print(table)


def prediction_json(prediction: Prediction) -> dict[str, Any]:
    """One entry of `predictions`."""
    return {
        "class_index": prediction.class_index,
        "label": prediction.label,
        "description": prediction.name,
        "logit": prediction.logit,
        "probability": prediction.probability,
    }


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """`before` or `after` of `protonmf.intervention/1`."""
    return {
        "class_index": outcome.class_index,
        "label": outcome.label,
        "logit": outcome.logit,
        "predictions": [prediction_json(p) for p in outcome.predictions],
    }


def show_explanation(
    explanation: Explanation, top: int, shown: Shown, contrast: Contrast | None = None, *, first: bool = True
) -> None:
    """Prediction, ledger with bars, residual share, where each prototype comes from, and a comparison."""
    if not first:
        shown.out.print()
    best = explanation.predictions[0]
    others = ", ".join(f"{p.name} {p.probability:.1%}" for p in explanation.predictions[1:3])
    shown.out.print(
        Text.assemble(
            (best.name, "bold"), f" {best.probability:.1%}", (f"   then {others}", "dim"), f"   {explanation.image}"
        )
    )
    if explanation.class_index != best.class_index:
        shown.out.print(Text.assemble("why ", (explanation.name, "bold"), "?"))
    if explanation.without_prototypes:
        shown.out.print(without_prototypes_words(explanation), markup=False)
    shown.out.print(_ledger_table(explanation, top, wide=shown.out.width >= WIDE))
    share = explanation.residual_share
    if explanation.form == "augmented" and not explanation.residual:
        shown.out.print("augmented prototypes: each carries its share of the residual", style="dim")
    said = "not defined" if share is None else rounded(share)
    amounts_alone = explanation.reads_amounts and explanation.form == "plain"
    unit = "amount 1: as much as usual in images of the prototype's own class; " if amounts_alone else ""
    what = {
        "sum": f"{unit}residual share {said}",
        "max": "evidence: similarity of the most similar patch",
        "soft": "evidence: how much the image matches the prototype (all matches add up to 1)",
    }
    shown.out.print(
        f"{what[explanation.pooling]}   ledger error {explanation.ledger_error:.1e}", style="dim", markup=False
    )
    if contrast is not None:
        _show_contrast(contrast, top, shown)


def without_prototypes_words(explanation: Explanation) -> str:
    """What it means that the explained class has no prototypes of its own, and which class to ask for instead."""
    nearest = explanation.best_with_prototypes
    hint = (
        f" The best class with prototypes is {nearest.name} ({nearest.probability:.1%}): --class {nearest.class_index}."
        if nearest
        else ""
    )
    if not explanation.additive:
        left = "its logit is always zero"
    elif explanation.contributions:
        left = "its rows are parts of other classes, and more of its logit is residual"
    else:
        left = "its logit is all residual"
    return f"{explanation.name} has no prototypes of its own in this model: {left}.{hint}"


def _ledger_table(explanation: Explanation, top: int, *, wide: bool) -> Table:
    """One line per prototype, the largest first, then what has no place, residual, bias and their sum.

    `wide` adds where a prototype was seen.
    """
    listed, rest = explanation.contributions[:top], [c.contribution for c in explanation.contributions[top:]]
    values = [c.contribution for c in listed] + [sum(rest), explanation.residual, explanation.bias, explanation.logit]
    scale = max(map(abs, values)) or 1.0
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("", no_wrap=True)
    amounts = explanation.reads_amounts
    for name in ("amount", "usual", "weight", "logit") if amounts else ("weight", "evidence", "logit"):
        table.add_column(name, justify="right", no_wrap=True, min_width=max(6, len(name)))
    table.add_column("", no_wrap=True, min_width=BAR // 2)
    if wide:
        table.add_column("seen most in", no_wrap=True, style="dim")

    def add(name: str, value: float, numbers: Sequence[str] = (), *, style: str = "", source: str = "") -> None:
        cells: list[Text | str] = [
            Text(name, style=style),
            *(numbers or ("",) * (3 if amounts else 2)),
            Text(f"{value:+.2f}", style=style),
            _bar(value, scale, style),
        ]
        table.add_row(*([*cells, Text(source)] if wide else cells))

    for c in listed:
        borrowed = c.owner_index != explanation.class_index
        name = f"prototype {c.prototype}" + (f" of {shortened(c.owner_name, MOST_NAME)}" if borrowed else "")
        name += f" ({shortened(c.network, MOST_NAME)})" if c.network else ""
        name += " (unstable)" if is_unstable(c.stability) else ""
        source = c.examples[0].path[-MOST_SOURCE:] if c.examples else ""
        weight = f"{c.weight:+.2f}" if amounts else f"{c.weight:+.3f}"
        numbers = (f"{c.evidence:.2f}", range_words(c), weight) if amounts else (weight, f"{c.evidence:.2f}")
        add(name, c.contribution, numbers, source=source)
    if rest:
        add(f"{len(rest)} more", sum(rest))
    if explanation.additive:
        if explanation.unplaced is not None:
            add("no place", explanation.unplaced, style="grey50")
        if explanation.has_residual:
            add("residual", explanation.residual, style="grey50")
        add("bias", explanation.bias, style="grey50")
    add("= logit", explanation.logit, style="bold")
    return table


def range_words(contribution: Contribution) -> str:
    """The usual amounts of a prototype, e.g. "0.7-1.2"; empty where evidence is no amount."""
    if contribution.usual is None:
        return ""
    low, high = contribution.usual
    return f"{low + 0.0:.1f} to {high + 0.0:.1f}"


def _bar(value: float, scale: float, style: str = "") -> Text:
    length = round(BAR * abs(value) / scale)
    return Text("█" * length if value >= 0 else "░" * length, style=style or ("green" if value >= 0 else "red"))


def show_outcomes(before: Outcome, after: Outcome, edits: Sequence[str], shown: Shown) -> None:
    """Before and after, side by side."""
    shown.out.print("; ".join(edits), style="bold", markup=False)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "before", "after", "change"):
        table.add_column(name, justify="right" if name else "left")
    table.add_row(
        f"logit of {before.name}", f"{before.logit:.2f}", f"{after.logit:.2f}", f"{after.logit - before.logit:+.2f}"
    )
    first, second = before.predictions[0], after.predictions[0]
    table.add_row("prediction", f"{first.name} {first.probability:.1%}", f"{second.name} {second.probability:.1%}",
                  "" if first.class_index == second.class_index else Text("flipped", style="bold red"))  # fmt: skip
    for rank in range(1, 3):
        if rank < len(before.predictions):
            p, q = before.predictions[rank], after.predictions[rank]
            table.add_row(
                "then" if rank == 1 else "", f"{p.name} {p.probability:.1%}", f"{q.name} {q.probability:.1%}", ""
            )
    shown.out.print(table)


def _grid(values: np.ndarray | None) -> list[list[float]] | None:
    return None if values is None else np.asarray(values, dtype=float).tolist()
