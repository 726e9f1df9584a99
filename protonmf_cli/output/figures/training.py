"""Curves of a training run over its epochs."""

from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from protonmf_cli.output.figures.overlay import PALETTE
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, GREY, styled

COSTS = (("cross_entropy", "cross entropy"), ("cluster", "cluster cost"), ("separation", "separation cost"))

PUSHED = (
    ("train, after push", "accuracy_after", "v", PALETTE[4]),
    ("train, after last layer", "accuracy_last_layer", "^", PALETTE[3]),
    ("held out, after last layer", "held_out", "D", PALETTE[1]),
)


@styled
def training_figure(report: Mapping[str, Any]) -> Figure:
    """Costs and accuracy over the steps of a run; dashed lines are pushes.

    Args:
        report: `protonmf.protopnet_training/1`.
    """
    epochs, pushes = report["epochs"], report["stages"]
    figure = Figure(figsize=(11, 4.1), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    costs, accuracy = figure.subplots(1, 2)
    x = [row["epoch"] for row in epochs if row["stage"] != "head"]
    shown = [row for row in epochs if row["stage"] != "head"]
    for number, (key, name) in enumerate(COSTS):
        costs.plot(x, [row[key] for row in shown], color=PALETTE[number], marker="o", markersize=3, label=name)
    costs.set_yscale("log")
    accuracy.plot(
        x, [row["accuracy"] for row in shown], color=PALETTE[0], marker="o", markersize=3, label="train, augmented"
    )
    held = [(row["epoch"], row["held_out"]) for row in shown if row["held_out"] is not None]
    if held:
        accuracy.plot(*zip(*held, strict=True), color=PALETTE[1], marker="o", markersize=3, label="held out")
    for name, key, shape, shade in PUSHED:
        found = [(row["epoch"] + 0.5, row[key]) for row in pushes if row.get(key) is not None]
        if found:
            accuracy.plot(*zip(*found, strict=True), shape, color=shade, markersize=6, label=name)
    for axes, title in ((costs, "costs per image"), (accuracy, "accuracy")):
        for row in pushes:
            axes.axvline(row["epoch"] + 0.5, color=GREY, linestyle="--", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch (dashed: push)", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    return figure
