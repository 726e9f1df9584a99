"""What all figures share: the file that is made of one, and the bar that says which colour is which value."""

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from protonmf_cli.output.figures.formats import format_of
from protonmf_cli.output.figures.overlay import DIVERGING, RAMP, as_bytes

DOTS_PER_INCH = 110
GREY = "#666666"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "protonmf",
}
"""Letters as TrueType in PDF and as outlines in SVG, so that a figure needs no fonts where it is shown."""
UNDATED: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
STEPS = 256


class Drawn(Figure):
    """A figure that notebooks show, whichever display matplotlib has there, or none."""

    def _repr_png_(self) -> bytes:
        return rendered(self, "figure.png")


def rendered(figure: Figure, name: str) -> bytes:
    """The file of a figure as the end of its name says; equal figures give equal bytes."""
    kind, buffer = format_of(name), io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, facecolor="white", metadata=UNDATED[kind])
    return buffer.getvalue()


def colour_bar(bar: Axes, low: float, high: float, unit: str) -> None:
    """Fill small axes with the colours of a map from its least to its strongest value.

    Args:
        bar: as wide as the bar shall be.
        low: below zero where the map is signed, else where its colours begin.
        high: what is drawn at full strength.
        unit: of the values.
    """
    shades = matplotlib.colormaps[DIVERGING if low < 0 else RAMP](np.linspace(0, 1, STEPS))[None, :, :3]
    bar.imshow(as_bytes(shades), aspect="auto", extent=(0, 1, 0, 1))
    bar.set_yticks([])
    bar.set_xticks([])
    for spine in bar.spines.values():
        spine.set_visible(False)
    for place, value, side in ((0.0, low, "left"), (1.0, high, "right")):
        bar.text(place, -0.35, number(value), fontsize=6.5, color=GREY, ha=side, va="top", transform=bar.transAxes)
    bar.text(0.5, -0.35, unit, fontsize=6.5, color=GREY, ha="center", va="top", transform=bar.transAxes)


def bar_below(picture: Axes) -> Axes:
    """Room for a colour bar below a picture, as wide as it."""
    bar: Axes = picture.inset_axes((0.0, -0.065, 1.0, 0.03))
    return bar


def number(value: float) -> str:
    """A value at the end of a colour bar, with two digits that count.

    >>> number(0.0), number(-1.234), number(0.00321), number(12.3)
    ('0', '-1.2', '0.0032', '12')
    """
    return f"{value + 0.0:.2g}" if abs(value) < 100 else f"{value:.0f}"
