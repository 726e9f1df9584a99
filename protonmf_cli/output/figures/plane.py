"""Training images by class and prototypes as black diamonds, on two axes."""

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from protonmf_cli.models.results import Plane
from protonmf_cli.models.wording import shortened
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, GREY, styled

MARKERS = "osv^PX"
MOST_NAMED = 40
"""Classes in the legend."""


@styled
def plane_figure(plane: Plane) -> Figure:
    """Draw a plane; a diamond carries the number of the class that its prototype speaks for."""
    names = plane.names[:MOST_NAMED]
    columns = 1 + (len(names) - 1) // 20
    figure = Figure(figsize=(8.2 + 1.9 * columns, 7.0), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shades = colormaps["tab20"].colors  # type: ignore[attr-defined]
    for c, name in enumerate(plane.names):
        x, y = plane.samples[plane.labels == c].T
        # neighbouring numbers get strong shades first: even entries of tab20, then the pale ones
        shade = shades[(2 * c) % 20 + (c // 10) % 2]
        label = f"{c}  {shortened(name, 22)}" if c < MOST_NAMED else None
        marker = MARKERS[(c // 20) % len(MARKERS)]
        axes.scatter(x, y, s=34, color=shade, marker=marker, edgecolor="white", linewidth=0.5, label=label)
    for (x, y), (u, v) in zip(plane.prototypes.tolist(), plane.means.tolist(), strict=True):
        axes.plot([x, u], [y, v], color="black", linewidth=0.8, zorder=2)
    for j, ((x, y), winner) in enumerate(zip(plane.prototypes.tolist(), plane.winners, strict=True)):
        fill, ink = ("white", "black") if j in plane.flagged else ("black", "white")
        axes.scatter(x, y, s=210, marker="D", color=fill, edgecolor="black", zorder=3)
        axes.text(x, y, str(winner), color=ink, fontsize=7.5, ha="center", va="center", zorder=4, weight="bold")
    axes.set_xlabel(f"first principal axis ({plane.shares[0]:.0%} of the variance)", color=GREY)
    axes.set_ylabel(f"second principal axis ({plane.shares[1]:.0%})", color=GREY)
    hollow_words = ", hollow: ambiguous or unused" if plane.flagged else ""
    axes.set_title(
        "training images by class; diamonds: prototypes with the class they speak for,\n"
        f"tied to the mean of the images that match them{hollow_words}",
        loc="left", fontsize=10,
    )  # fmt: skip
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=8, frameon=False, ncols=columns)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.tight_layout()
    return figure
