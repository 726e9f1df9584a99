"""Sheets of pictures: one row per image, one column per way to look at it."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from protonmf_cli.models.sheets import Panel
from protonmf_cli.output.figures.overlay import Pixels, as_rgb, colour, composite, enlarge, heat
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, bar_below, colour_bar, styled


@styled
def panels_figure(rows: Sequence[Sequence[Panel]]) -> Figure:
    """Draw rows of panels; captions stand above each picture, and below it the values of its colours."""
    columns = max(len(row) for row in rows)
    figure = Figure(figsize=(2.3 * columns, 2.7 * len(rows)), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for place in line:
            place.axis("off")
        for place, panel in zip(line, row, strict=False):
            place.imshow(_pixels(panel))
            place.set_title(panel.caption, fontsize=8, loc="left")
            if panel.unit and panel.maps:
                strongest = _strongest(panel)
                colour_bar(bar_below(place), -strongest if panel.style == "signed" else 0.0, strongest, panel.unit)
    figure.tight_layout(pad=0.4)
    return figure


def _strongest(panel: Panel) -> float:
    """Value that is drawn at full strength."""
    full = panel.full[0] if panel.full else None
    return float(np.abs(enlarge(panel.maps[0], panel.crop.shape[:2])).max()) if full is None else full


def _pixels(panel: Panel) -> Pixels:
    crop = as_rgb(panel.crop)
    if not panel.maps:
        return crop
    if panel.style == "composite":
        colours = [colour(n) for n in range(1, len(panel.maps) + 1)]
        return composite(crop, panel.maps, colours, full=panel.full or None)
    return heat(crop, panel.maps[0], signed=panel.style == "signed", full=panel.full[0] if panel.full else None)
