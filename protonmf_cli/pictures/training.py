"""Curves of a training run over its epochs."""

from collections.abc import Mapping
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from protonmf_cli.pictures.figure import DOTS_PER_INCH, GREY, as_png
from protonmf_cli.pictures.overlay import PALETTE

COSTS = (("cross_entropy", "cross entropy"), ("cluster", "cluster cost"), ("separation", "separation cost"))

PUSHED = (("after push", "accuracy_after", PALETTE[4]), ("after last layer", "accuracy_last_layer", PALETTE[3]))


def training_png(report: Mapping[str, Any]) -> bytes:
    """Costs and accuracy over the steps of a run; dashed lines are pushes.

    Args:
        report: `protonmf.protopnet_training/1`.

    Returns:
        A PNG file.
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
    for name, key, shade in (
        ("after push", "accuracy_after", PALETTE[4]),
        ("after last layer", "accuracy_last_layer", PALETTE[3]),
    ):
        found = [(row["epoch"], row[key]) for row in pushes if key in row]
        if found:
            accuracy.plot(*zip(*found, strict=True), "D", color=shade, markersize=6, label=f"train, {name}")
    for axes, title in ((costs, "costs per image"), (accuracy, "accuracy")):
        for row in pushes:
            axes.axvline(row["epoch"] + 0.5, color=GREY, linestyle="--", linewidth=0.8)
        axes.set_title(title, fontsize=10, loc="left")
        axes.set_xlabel("epoch (dashed: push)", fontsize=9)
        axes.legend(fontsize=8, frameon=False)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    return as_png(figure)
