"""Galleries of prototypes: one strip per prototype, words at the left, pictures beside them."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from protonmf_cli.models.sheets import Cell, Strip
from protonmf_cli.models.wording import shortened
from protonmf_cli.output.figures.overlay import Pixels, as_rgb, colour, heat
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, GREY, colour_bar, styled
from protonmf_cli.output.page.pictures import opened

SIDE = 1.75
"""Inches of one picture."""
WORDS = 2.1
"""Inches of the words at the left."""
HEAD = 0.55
"""Inches above the first strip."""
SCALE = 1.8
"""Inches of the colour bar at the top right."""


@styled
def gallery_figure(title: str, strips: Sequence[Strip], headings: Sequence[str] = ()) -> Figure:
    """Draw strips below each other.

    Args:
        title: of the page.
        strips: one per prototype.
        headings: above the pictures of the first strip, column by column.
    """
    columns = max(len(strip.cells) for strip in strips)
    width, height = WORDS + columns * SIDE, HEAD + len(strips) * (SIDE + 0.22)
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    figure.text(
        0.012, 1 - 0.1 / height, shortened(title, int((width - SCALE) * 7)), fontsize=13, weight="bold", va="top"
    )
    for row, strip in enumerate(strips):
        top = height - HEAD - row * (SIDE + 0.22)
        _words(figure, strip, top / height, height)
        for column, cell in enumerate(strip.cells):
            place = ((WORDS + column * SIDE) / width, (top - SIDE) / height, 0.96 * SIDE / width, 0.96 * SIDE / height)
            axes = figure.add_axes(place)
            heading = headings[column] if row == 0 and column < len(headings) else ""
            _cell(axes, cell, colour(strip.number), heading)
    if any(cell.map is not None for strip in strips for cell in strip.cells):
        bar = figure.add_axes((1 - SCALE / width, 1 - 0.12 / height, (SCALE - 0.05) / width, 0.06 / height))
        colour_bar(bar, 0.0, 1.0, "of the strongest place")
    return figure


def _words(figure: Figure, strip: Strip, top: float, height: float) -> None:
    line = 0.2 / height
    figure.text(0.012, top - line, shortened(strip.title, 24), fontsize=10, weight="bold", color=colour(strip.number))
    for number, text in enumerate(strip.words, start=2):
        figure.text(0.012, top - number * line, shortened(text, 26), fontsize=8, color=GREY)


def _cell(axes: Axes, cell: Cell, shade: str, caption: str) -> None:
    pixels = _decoded(cell.crop) if isinstance(cell.crop, bytes) else as_rgb(cell.crop)
    if cell.cut and cell.box is not None:
        axes.imshow(_inside(pixels, cell.box))
    else:
        axes.imshow(pixels if cell.map is None else heat(pixels, cell.map, strength=0.5, full=cell.full))
        if cell.box is not None:
            left, top, right, bottom = cell.box
            for width, ink in ((3.4, "white"), (1.8, shade)):
                axes.add_patch(
                    Rectangle(
                        (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=ink, linewidth=width
                    )
                )
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(cell.cut)
        spine.set_color(shade)
        spine.set_linewidth(2.5)
    if caption:
        axes.set_title(caption, fontsize=7.5, loc="left", color=GREY, pad=4)


def _decoded(jpeg: bytes) -> Pixels:
    return np.asarray(opened(jpeg))


def _inside(pixels: Pixels, box: tuple[int, int, int, int]) -> Pixels:
    """The part of a picture in a box, enlarged to a square canvas without distortion."""
    left, top, right, bottom = box
    part = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    side = max(pixels.shape[:2])
    scale = side / max(part.size)
    size = (max(1, round(part.width * scale)), max(1, round(part.height * scale)))
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(part.resize(size, Image.Resampling.BICUBIC), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(canvas)
