"""What all figures share: the file that is made of one, and the bar that says which colour is which value."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names

from protonmf_cli.output.figures.formats import format_of
from protonmf_cli.output.figures.overlay import DIVERGING, RAMP, as_bytes

DOTS_PER_INCH = 110
GREY = "#666666"
OTHER_LETTERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Arial Unicode MS"),
    *("Noto Sans Devanagari", "Noto Sans Thai", "Nirmala UI", "Leelawadee UI"),
)
"""Fonts for letters that matplotlib's own font lacks, where they are installed: names of folders are in any script."""
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", *sorted(set(OTHER_LETTERS) & set(get_font_names()), key=OTHER_LETTERS.index)],
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "protonmf",
    "text.parse_math": False,
}
"""Letters as TrueType in PDF and as outlines in SVG, so that a figure needs no fonts where it is shown; a name with $
is a name and no formula."""


@contextmanager
def _style() -> Iterator[None]:
    log = logging.getLogger("matplotlib.font_manager")  # of fonts that have no normal weight
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)  # it is seen in the picture
            yield
    finally:
        log.setLevel(level)


styled = _style()
"""Around whatever draws: letters take their style when they are placed, and again when a figure is written."""
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


@styled
def rendered(figure: Figure, name: str) -> bytes:
    """The file of a figure as the end of its name says; equal figures give equal bytes."""
    kind, buffer = format_of(name), io.BytesIO()
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
