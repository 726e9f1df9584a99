"""A table as a figure: lines with intervals, or groups of bars."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from protonmf_cli.models.sheets import Chart, Table
from protonmf_cli.output.figures.overlay import PALETTE
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, GREY, styled


@styled
def table_figure(table: Table) -> Figure:
    """All charts of a table side by side; whiskers and bands are 95 % bootstrap intervals."""
    curves: list[dict[str, Any]] = table.facts.get("curves") or []
    count = len(table.charts) + (2 if curves else 0)
    figure = Figure(figsize=(max(7.5, 5.2 * count), 4.1), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.suptitle(table.title, fontsize=12, weight="bold", x=0.012, ha="left")
    axes = figure.subplots(1, count, squeeze=False)[0]
    headings = {column.key: column.heading for column in table.columns}
    for place, chart in zip(axes, table.charts, strict=False):
        (_bars if chart.bars else _lines)(place, table, chart, headings)
        _tidy(place, chart.y)
    for place, which in zip(axes[len(table.charts) :], ("deletion", "insertion"), strict=False):
        _curves(place, curves, which)
    figure.tight_layout(rect=(0, 0.02, 1, 0.97))
    return figure


def _name(key: str, headings: dict[str, str]) -> str:
    return headings.get(key, key.replace("_", " "))


def _lines(axes: Axes, table: Table, chart: Chart, headings: dict[str, str]) -> None:
    x = [row[chart.x] for row in table.rows]
    for number, key in enumerate(chart.lines):
        y = [_or_nan(row.get(key)) for row in table.rows]
        shade = PALETTE[number % len(PALETTE)]
        axes.plot(x, y, marker="o", markersize=4, color=shade, label=_name(key, headings))
        spans = [row.get(f"{key}_interval") or [] for row in table.rows]
        if all(spans):
            axes.fill_between(x, [s[0] for s in spans], [s[1] for s in spans], color=shade, alpha=0.15, linewidth=0)
    axes.set_xticks(x)
    axes.set_xlabel(_name(chart.x, headings), fontsize=9)
    axes.legend(fontsize=8, frameon=False)


def _bars(axes: Axes, table: Table, chart: Chart, headings: dict[str, str]) -> None:
    labels = [str(row[chart.x]) if chart.by is None else f"{row[chart.by]},\n{row[chart.x]}" for row in table.rows]
    width = 0.8 / len(chart.lines)
    for number, key in enumerate(chart.lines):
        at = np.arange(len(labels)) + (number - (len(chart.lines) - 1) / 2) * width
        values = [_or_nan(row.get(key)) for row in table.rows]
        spans = [row.get(f"{key}_interval") for row in table.rows]
        whisker = np.array([[v - s[0], s[1] - v] if s else [0, 0] for v, s in zip(values, spans, strict=True)]).T.clip(
            0
        )
        shade = PALETTE[number % len(PALETTE)]
        axes.bar(at, values, width, yerr=whisker, color=shade, label=_name(key, headings), error_kw={"linewidth": 0.9})
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.legend(fontsize=8, frameon=False)


def _curves(axes: Axes, points: list[dict[str, Any]], which: str) -> None:
    """Mean probability against the share of pixels, one line per order."""
    for number, order in enumerate(dict.fromkeys(point["order"] for point in points)):
        line = [(p["share"], p["probability"]) for p in points if p["order"] == order and p["curve"] == which]
        axes.plot(*zip(*line, strict=True), color=PALETTE[number], label=order)
    axes.set_xlabel(f"share of pixels ({which})", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    _tidy(axes, "mean probability of the class")


def _tidy(axes: Axes, y: str) -> None:
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8, colors=GREY)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


@styled
def curves_figure(curves: Mapping[str, Any], names: dict[str, str], chosen: dict[str, int]) -> Figure:
    """Error, residual share and stability against the number of prototypes, one line per class.

    Args:
        curves: class -> what was measured for each number tried.
        names: class -> name.
        chosen: class -> number taken, marked by a dot.
    """
    keys = {
        "feature_relative_error": "squared relative error of the rows",
        "residual_share": "residual share of the logit",
        "stability": "median cosine between halves",
    }
    figure = Figure(figsize=(5.2 * len(keys), 4.3), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.suptitle("numbers of prototypes that were tried", fontsize=12, weight="bold", x=0.012, ha="left")
    for axes, (key, text) in zip(figure.subplots(1, len(keys)), keys.items(), strict=True):
        for number, (c, curve) in enumerate(curves.items()):
            shade = PALETTE[number % len(PALETTE)]
            x, y = [point["prototypes"] for point in curve], [_or_nan(point[key]) for point in curve]
            axes.plot(x, y, color=shade, linewidth=1, alpha=0.7)
            at = x.index(chosen[c]) if chosen[c] in x else None
            if at is not None:
                axes.plot(x[at], y[at], "o", color=shade, markersize=5, label=names[c])
        axes.set_xlabel("prototypes", fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _tidy(axes, text)
    if len(curves) <= MOST_NAMES:
        axes.legend(fontsize=6, frameon=False, ncols=2)
    figure.tight_layout(rect=(0, 0.02, 1, 0.97))
    return figure


MOST_NAMES = 12
"""Classes named in a legend."""
