"""The figure of one explanation: its ledger, and every prototype beside the training patches that it is like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.results import Contribution, ExampleView, Explanation
from protonmf_cli.models.stability import is_unstable
from protonmf_cli.models.wording import WHOLE, owned_name, rounded, shortened, shortened_path, usual_words
from protonmf_cli.output.figures.overlay import PALETTE, Pixels, as_rgb, colour, composite, enlarge, heat
from protonmf_cli.output.figures.rendering import DOTS_PER_INCH, GREY, Drawn, bar_below, colour_bar, styled
from protonmf_cli.output.page.pictures import opened

PATCHES = 4
"""Training patches drawn beside each prototype."""
NOT_SPATIAL = "this head is read through\none row per image:\nnothing can be placed"


UNITS = {
    EvidenceKind.AMOUNTS: "amount per place",
    EvidenceKind.PROJECTIONS: "code per place",
    EvidenceKind.SIMILARITIES: "similarity of the patch",
    EvidenceKind.MATCHES: "added to log match",
}
"""Of maps of presence."""
LOGIT = "logit per place"
"""Unit of maps of contributions."""
NAMES = 0.12
"""Share of the figure's width for the names of the ledger's rows."""
OF_THE_STRONGEST = 0.2
"""Of the strongest place of all prototypes: what of the residual is drawn at full strength, unless it has more."""


@styled
def explanation_figure(explanation: Explanation, top: int) -> Figure:
    """ "This looks like that": the image's ledger and, for each prototype, the image beside its training patches.

    Args:
        explanation: of one image.
        top: prototypes drawn, the largest contributions first; the ledger adds the others up.
    """
    shown = explanation.contributions[:top]
    figure = Drawn(figsize=(13.2, 3.9 + 2.25 * len(shown)), dpi=DOTS_PER_INCH)
    FigureCanvasAgg(figure)
    heights = [1.35] + [1.0] * len(shown)
    grid = GridSpec(
        1 + len(shown), 2 + PATCHES, figure=figure, height_ratios=heights, width_ratios=[1.0] * (2 + PATCHES),
        left=0.015, right=0.985, top=1 - 0.62 / figure.get_figheight(), wspace=0.06, hspace=0.2,
        bottom=0.4 / figure.get_figheight(),
    )  # fmt: skip
    figure.text(
        0.015, 1 - 0.14 / figure.get_figheight(), _verdict(explanation), fontsize=16, weight="bold", va="top"
    )  # fmt: skip
    figure.text(
        0.985,
        1 - 0.18 / figure.get_figheight(),
        shortened_path(explanation.image, 40),
        fontsize=10,
        color=GREY,
        va="top",
        ha="right",
    )
    _overview(figure, grid, explanation, shown)
    for row, contribution in enumerate(shown, start=1):
        _prototype_row(figure, grid, row, explanation, contribution)
    figure.text(0.985, 0.1 / figure.get_figheight(), explanation.names_note, fontsize=8, color=GREY, ha="right")
    return figure


def _verdict(explanation: Explanation) -> str:
    """What the image is taken for, at most about 60 letters of which the last are never lost."""
    best, beside = explanation.predictions[0], explanation.beside
    if not explanation.is_said:
        name, first = shortened(explanation.name, 16), shortened(best.name, 16)
        return f"why {name}?   ({explanation.first_is}: {first}, {best.probability:.1%})"
    also = f"   (also: {shortened(', '.join(p.name for p in beside), 30)})" if beside else ""
    return f"{shortened(explanation.name, 22 if beside else 34)}   {explanation.probability:.1%}{also}"


def shade_of(explanation: Explanation, contribution: Contribution) -> str:
    """Colour of a prototype: of own ones by their number; of others, the largest first, one that is free, so that two
    are alike only where there are more prototypes than colours."""
    if contribution.owner_index == explanation.class_index:
        return colour(contribution.prototype)
    own = {colour(c.prototype) for c in explanation.contributions if c.owner_index == explanation.class_index}
    others = [c.prototype_id for c in explanation.contributions if c.owner_index != explanation.class_index]
    free = [shade for shade in PALETTE if shade not in own] or PALETTE
    return free[others.index(contribution.prototype_id) % len(free)]


def title_of(contribution: Contribution, class_index: int, length: int = 16) -> str:
    """ "prototype 2", with the owner's name when it is borrowed; at most about `length` characters."""
    if contribution.owner_index == class_index:
        return f"prototype {contribution.prototype}"
    most = max(length - len(owned_name("", contribution.prototype)), length // 2)
    return owned_name(shortened(contribution.owner_name, most), contribution.prototype)


def _overview(figure: Figure, grid: GridSpec, explanation: Explanation, shown: Sequence[Contribution]) -> None:
    """First row: the crop, all prototypes in it, the residual's map, the ledger."""
    crop = as_rgb(explanation.crop)
    _picture(figure.add_subplot(grid[0, 0]), crop, "what the network saw")
    # prototypes of another network of a combined model saw another crop
    placed = [c for c in shown if c.maps and c.owner_index == explanation.class_index and _same_crop(explanation, c)]
    all_in_one = figure.add_subplot(grid[0, 1])
    residual = figure.add_subplot(grid[0, 2])
    if placed:
        maps = [explanation.kind.drawn(c.maps["presence"]) for c in placed]
        colours = [shade_of(explanation, c) for c in placed]
        full = [c.peak for c in placed]
        floor = explanation.kind.composite_floor
        _picture(all_in_one, composite(crop, maps, colours, floor, full), "its own prototypes")
    else:
        _words(all_in_one, _why_no_map(explanation, shown))
    if explanation.residual_codes is not None:
        _picture(residual, heat(crop, explanation.residual_codes.clip(0)), "where the residual is")
    elif explanation.residual_map is not None and explanation.residual:
        top = max((float(np.abs(c.maps["contribution"]).max()) for c in shown if c.maps), default=0.0)
        strongest = max(_strongest(explanation.residual_map, crop, None), OF_THE_STRONGEST * top)
        seen = heat(crop, explanation.residual_map, signed=True, full=strongest)
        _picture(residual, seen, "the residual: for and against")
        _scale(residual, -strongest, strongest, LOGIT)
    else:
        _words(residual, "the prototypes carry\nthe residual" if explanation.form == "augmented" else "")
    _ledger(figure.add_subplot(grid[0, 3:]), explanation, shown)


def _same_crop(explanation: Explanation, contribution: Contribution) -> bool:
    return contribution.crop is None or np.array_equal(contribution.crop, explanation.crop)


def _why_no_map(explanation: Explanation, shown: Sequence[Contribution]) -> str:
    if explanation.kind.adds_up:
        if any(c.maps for c in shown):
            return "none of the prototypes\nbelow is its own"
        return NOT_SPATIAL if shown else "this class has no prototypes:\nno images were given for it"
    return "this class has no\nprototypes of its own"


def _ledger(axes: Axes, explanation: Explanation, shown: Sequence[Contribution]) -> None:
    """A waterfall from the bias over prototypes and residual to the logit."""
    steps = [("bias", explanation.bias, "#bbbbbb")] if explanation.kind.adds_up else []
    steps += [(title_of(c, explanation.class_index), c.contribution, shade_of(explanation, c)) for c in shown]
    kept = {c.prototype_id for c in shown}
    rest = [c for c in explanation.contributions if c.prototype_id not in kept]
    if rest:
        steps.append((f"{len(rest)} more", sum(c.contribution for c in rest), "#dddddd"))
    if explanation.unplaced is not None:
        steps.append(("no place", explanation.unplaced, "#999999"))
    if explanation.has_residual:
        steps.append(("residual", explanation.residual, "#555555"))
    levels = np.cumsum([0.0] + [value for _, value, _ in steps])
    reach = float(levels.max() - min(levels.min(), 0.0)) or 1.0
    axes.set_xlim(min(float(levels.min()), 0.0) - 0.02 * reach, float(levels.max()) + 0.2 * reach)
    level = 0.0
    for place, (_, value, shade) in enumerate(steps):
        axes.barh(place, value, left=level, color=shade, height=0.66, edgecolor="black", linewidth=0.4)
        axes.text(max(level, level + value), place, f"  {value:+.2f}", va="center", fontsize=10)
        level += value
    axes.barh(len(steps), level, color="black", height=0.66)
    axes.text(max(level, 0), len(steps), f"  {level:.2f}", va="center", fontsize=10, weight="bold")
    axes.set_yticks(range(len(steps) + 1), [name for name, _, _ in steps] + ["logit"], fontsize=10)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.6)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)
    share = explanation.residual_share
    said = "" if share is None or not explanation.kind.adds_up else f" — residual share {rounded(share)}"
    box = axes.get_position()
    axes.set_position((box.x0 + NAMES, box.y0 + 0.012, box.width - NAMES, box.height - 0.012))
    title = f"what the logit of {shortened(explanation.name, 20)} is made of{said}"
    axes.set_title(title, fontsize=10, loc="left", x=-0.5 * NAMES / (box.width - NAMES))


def _prototype_row(
    figure: Figure, grid: GridSpec, row: int, explanation: Explanation, contribution: Contribution
) -> None:
    shade = shade_of(explanation, contribution)
    crop = as_rgb(explanation.crop if contribution.crop is None else contribution.crop)
    here = figure.add_subplot(grid[row, 0])
    kind, evidence = explanation.map_kind, explanation.kind
    if contribution.maps:
        adds = kind == "contribution"
        shown = contribution.maps[kind] if adds else evidence.drawn(contribution.maps[kind])
        full, signed = contribution.scale[kind], adds or explanation.lacks(contribution)
        _picture(here, heat(crop, shown, signed=signed, full=full), "")
        start, strongest = float((contribution.maps[kind] - shown).flat[0]), _strongest(shown, crop, full)
        _scale(here, -strongest if signed else start, start + strongest, LOGIT if adds else UNITS[evidence])
        if not contribution.is_less_than_none:
            _box(here, contribution.box, shade)
    else:
        _picture(here, crop, "")
    _frame(here, shade)
    _row_words(figure.add_subplot(grid[row, 1]), explanation, contribution, shade)
    for place in range(PATCHES):
        axes = figure.add_subplot(grid[row, 2 + place])
        if place < len(contribution.examples):
            _patch(axes, contribution.examples[place], shade, evidence)
            if place == 0 and (row == 1 or contribution.is_less_than_none):
                axes.set_title(_likeness(explanation, contribution), fontsize=9, loc="left", color=GREY)
            elif row == 1 and place == 1 and evidence.is_of_patches:
                axes.set_title("and the training patches nearest to it", fontsize=9, loc="left", color=GREY)
        else:
            axes.axis("off")
    if row == 1:
        named = evidence.map_name if kind == "presence" else f"{kind} map"
        here.set_title(f"this ({named})" if contribution.maps else "this image", fontsize=9, loc="left", color=GREY)


def _row_words(axes: Axes, explanation: Explanation, contribution: Contribution, shade: str) -> None:
    """Whose prototype it is, what it was named, and the product that it adds."""
    axes.axis("off")
    sum_, said = _sum_words(contribution)
    lines = [
        (0.84, _row_title(contribution, explanation.class_index), 14, "bold", shade),
        (0.66, _owner_words(contribution), 10, "normal", GREY),
        (0.55, shortened(contribution.caption, 26), 10, "normal", "black"),
        (0.43, sum_, 12, "normal", "black"),
        (0.30, said, 8, "normal", GREY),
        (0.12, f"=  {contribution.contribution:+.2f}", 15, "bold", "black"),
    ]
    for height, text, size, weight, ink in lines:
        axes.text(0.5, height, text, ha="center", va="center", fontsize=size, weight=weight, color=ink)
    if explanation.map_kind == "contribution" and contribution.maps and abs(contribution.unlocalised) > 5e-3:
        axes.text(
            0.5, -0.03, f"{contribution.unlocalised:+.2f} of it has no place", ha="center", fontsize=8, color=GREY
        )


def _sum_words(contribution: Contribution) -> tuple[str, str]:
    """The product that a contribution is, and what its factors are."""
    if contribution.usual is None:
        return f"{contribution.weight:+.3f}  ×  {contribution.evidence:.2f}", "weight × evidence"
    said = f"amount × weight; usual {usual_words(contribution.usual)}"
    amount, weight = (round(value, 2) + 0.0 for value in (contribution.evidence, contribution.weight))  # never -0.00
    return f"{amount:.2f}  ×  {weight:+.2f}", said


def _likeness(explanation: Explanation, contribution: Contribution) -> str:
    """What the image has to do with the training patches beside it."""
    if contribution.is_less_than_none:
        return "less than none of this"
    return "looks like that (its patch)" if explanation.kind.is_of_patches else "looks like these training images"


def _row_title(contribution: Contribution, class_index: int) -> str:
    """ "prototype 2"; of a class as a whole its name, which the next line completes."""
    return title_of(contribution, class_index) if contribution.prototype else shortened(contribution.owner_name, 16)


def _owner_words(contribution: Contribution) -> str:
    """ "of flamingo", with a flag where it is unstable; at most 26 characters or so."""
    if not contribution.prototype:
        return WHOLE
    if is_unstable(contribution.stability):
        return f"of {shortened(contribution.owner_name, 14)}, unstable"
    return f"of {shortened(contribution.owner_name, 24)}"


def _patch(axes: Axes, example: ExampleView, shade: str, evidence: EvidenceKind) -> None:
    pixels = np.asarray(opened(example.jpeg))
    grid = None if example.map is None else evidence.drawn(example.map)
    _picture(axes, pixels if grid is None else heat(pixels, grid, strength=0.45, full=example.full), "")
    if example.map is not None:
        _box(axes, example.box, shade)


def _scale(picture: Axes, low: float, high: float, unit: str) -> None:
    """A colour bar below a map: on both sides of zero where it is signed, else from where its colours begin."""
    colour_bar(bar_below(picture), low, high, unit)


def _strongest(grid: NDArray[Any], pixels: Pixels, full: float | None) -> float:
    """Value that `heat` draws at full strength."""
    return float(np.abs(enlarge(grid, pixels.shape[:2])).max()) if full is None else full


def _words(axes: Axes, text: str) -> None:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=9, color=GREY, transform=axes.transAxes)


def _picture(axes: Axes, pixels: Pixels, title: str) -> None:
    axes.imshow(pixels)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if title:
        axes.set_title(title, fontsize=9, loc="left", color=GREY)


def _box(axes: Axes, box: tuple[int, int, int, int] | None, shade: str) -> None:
    if box is not None:
        left, top, right, bottom = box
        for width, ink in ((4.0, "white"), (2.2, shade)):
            axes.add_patch(
                Rectangle(
                    (left - 0.5, top - 0.5), right - left, bottom - top, fill=False, edgecolor=ink, linewidth=width
                )
            )


def _frame(axes: Axes, shade: str) -> None:
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color(shade)
        spine.set_linewidth(3)
