"""One explanation as a small piece of HTML, for notebooks: no script, no style sheet, no other files."""

import base64
from collections.abc import Iterator

import numpy as np
from markupsafe import Markup
from PIL import Image, ImageDraw

from protonmf_cli.models.results import Contribution, ExampleView, Explanation
from protonmf_cli.models.wording import shortened, shortened_path
from protonmf_cli.output.figures.figure import shade_of, title_of
from protonmf_cli.output.figures.overlay import Pixels, as_rgb, heat
from protonmf_cli.output.page.pictures import as_jpeg, opened

DRAWN = 3
"""Prototypes whose maps and training patches are shown."""
LISTED = 6
"""Prototypes in the ledger, the largest contributions first."""
PATCHES = 3
SIDE, QUALITY = 144, 80
"""Longest side of a picture in pixels, and quality of its JPEG file."""
WIDTH, HEIGHT = 220, 14
"""Of the ledger's bars, in pixels."""
NEUTRAL, WHOLE = "#8b929c", "#4a5260"


def explanation_card(explanation: Explanation) -> str:
    """What the image is taken for, its ledger, and the strongest prototypes beside their training patches."""
    parts = Markup("").join(_part(explanation, c) for c in explanation.contributions[:DRAWN])
    return str(
        Markup(
            '<div style="font:13px/1.45 system-ui,sans-serif;border:1px solid {line};border-radius:8px;'
            'padding:10px 14px;max-width:820px"><div style="font-size:15px">{verdict}</div>'
            '<div style="display:flex;flex-wrap:wrap;gap:14px;align-items:flex-start;margin-top:8px">'
            "{picture}{ledger}</div>{parts}{note}</div>"
        ).format(
            line=NEUTRAL,
            verdict=_verdict(explanation),
            picture=_figure(as_rgb(explanation.crop), shortened_path(explanation.image, 24)),
            ledger=_ledger(explanation),
            parts=parts,
            note=Markup("<p><small>{}</small></p>").format(explanation.names_note) if explanation.names_note else "",
        )
    )


def _verdict(explanation: Explanation) -> Markup:
    best, beside = explanation.predictions[0], explanation.beside
    if explanation.is_said:
        others = ", ".join(f"{p.name} {p.probability:.1%}" for p in beside or explanation.predictions[1:3])
        said = Markup("<b>{}</b> {:.1%}").format(explanation.name, explanation.probability)
        return said + Markup(" <small>{} {}</small>").format("also" if beside else "then", others) if others else said
    return Markup("why <b>{}</b>? {:.1%} <small>{}: {} {:.1%}</small>").format(
        explanation.name, explanation.probability, explanation.first_is, best.name, best.probability
    )


def _ledger(explanation: Explanation) -> Markup:
    """Rows that add up to the logit, each with a bar from where the rows above it ended."""
    steps = list(_steps(explanation))
    ends = np.cumsum([0.0] + [value for _, _, value, _ in steps])
    low, high = float(min(ends.min(), 0.0)), float(max(ends.max(), 0.0))
    scale = WIDTH / ((high - low) or 1.0)
    rows = [
        _row(name, sum_, value, _bar((start - low) * scale, (start + value - low) * scale, shade), bold=False)
        for (name, sum_, value, shade), start in zip(steps, ends.tolist(), strict=False)
    ]
    whole = _bar(-low * scale, (explanation.logit - low) * scale, WHOLE)
    rows.append(_row(f"logit of {shortened(explanation.name, 20)}", "", explanation.logit, whole, bold=True))
    head = (
        Markup("")
        if not explanation.reads_amounts
        else Markup(
            '<tr style="background:none"><td></td><td style="padding-right:8px;text-align:right">'
            "<small>amount × weight</small></td><td></td><td></td></tr>"
        )
    )
    style = "border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:0"
    return Markup('<table style="{}">{}{}</table>').format(style, head, Markup("").join(rows))


def _steps(explanation: Explanation) -> Iterator[tuple[str, str, float, str]]:
    """Name, product, value and colour of every row but the last."""
    amounts = explanation.reads_amounts
    for c in explanation.contributions[:LISTED]:
        weight = f"{c.weight:+.2f}" if amounts else f"{c.weight:+.3f}"
        yield (
            title_of(c, explanation.class_index, 24),
            f"{c.evidence:.2f} × {weight}",
            c.contribution,
            shade_of(explanation, c),
        )
    if rest := explanation.contributions[LISTED:]:
        yield f"{len(rest)} more", "", sum(c.contribution for c in rest), NEUTRAL
    if explanation.unplaced is not None:
        yield "no place", "", explanation.unplaced, NEUTRAL
    if explanation.has_residual:
        yield "residual", "", explanation.residual, NEUTRAL
    if explanation.kind.adds_up:
        yield "bias", "", explanation.bias, NEUTRAL


def _row(name: str, product: str, value: float, bar: Markup, *, bold: bool) -> Markup:
    cell = "padding:1px 8px 1px 0;border:0;background:none;text-align:"
    return Markup(
        '<tr style="background:none{weight}"><td style="{cell}left">{name}</td><td style="{cell}right">{product}</td>'
        '<td style="{cell}left">{bar}</td><td style="{cell}right">{value:+.2f}</td></tr>'
    ).format(
        weight=";font-weight:bold" if bold else "", cell=cell, name=name, product=product, bar=bar,
        value=round(value, 2) + 0.0,
    )  # fmt: skip


def _bar(start: float, end: float, shade: str) -> Markup:
    left, width = min(start, end), max(abs(end - start), 0.5)
    return Markup(
        '<svg width="{w}" height="{h}"><rect x="{left:.1f}" y="1" width="{width:.1f}" height="{inner}" fill="{shade}"/>'
        "</svg>"
    ).format(w=WIDTH + 1, h=HEIGHT, left=left, width=width, inner=HEIGHT - 2, shade=shade)


def _part(explanation: Explanation, c: Contribution) -> Markup:
    """One prototype: where it is in the image, and the training patches that it is like."""
    shade = shade_of(explanation, c)
    here = _figure(_map_of(explanation, c), "", shade, c.box if c.maps and not c.is_less_than_none else None)
    there = Markup("").join(_patch(explanation, view, shade) for view in c.examples[:PATCHES])
    like = "looks like that" if explanation.kind.is_of_patches else "looks like these training images"
    if c.is_less_than_none:
        like = "less than none of this"
    return Markup(
        '<div style="border-left:4px solid {shade};padding-left:10px;margin-top:10px"><b>{title}</b> {caption}'
        '{value:+.2f} <small>{like}</small><div style="display:flex;flex-wrap:wrap;gap:8px">{here}{there}</div></div>'
    ).format(
        shade=shade, title=title_of(c, explanation.class_index, 32), value=c.contribution, like=like, here=here,
        there=there, caption=f"{c.caption} " if c.caption else "",
    )  # fmt: skip


def _map_of(explanation: Explanation, c: Contribution) -> Pixels:
    crop, kind = as_rgb(explanation.crop if c.crop is None else c.crop), explanation.map_kind
    if not c.maps:
        return crop
    adds = kind == "contribution"
    shown = c.maps[kind] if adds else explanation.kind.drawn(c.maps[kind])
    return heat(crop, shown, signed=adds or explanation.lacks(c), full=c.scale[kind])


def _patch(explanation: Explanation, view: ExampleView, shade: str) -> Markup:
    pixels = np.asarray(opened(view.jpeg))
    if view.map is None:
        return _figure(pixels, "")
    drawn = heat(pixels, explanation.kind.drawn(view.map), strength=0.45, full=view.full)
    return _figure(drawn, "", shade, view.box)


def _figure(pixels: Pixels, caption: str, shade: str = NEUTRAL, box: tuple[int, int, int, int] | None = None) -> Markup:
    """A picture of pixels (height, width, 3), with a box in its coordinates."""
    picture = Image.fromarray(pixels)
    if box is not None:
        left, top, right, bottom = box
        width = max(2, round(max(picture.size) / SIDE * 2))
        ImageDraw.Draw(picture).rectangle((left, top, right - 1, bottom - 1), outline=shade, width=width)
    content = base64.b64encode(as_jpeg(_enlarged(picture), SIDE, QUALITY)).decode()
    said = Markup('<figcaption style="font-size:11px">{}</figcaption>').format(caption) if caption else ""
    return Markup(
        '<figure style="margin:4px 0"><img src="data:image/jpeg;base64,{content}" alt="{caption}" '
        'style="width:{side}px;border-radius:4px;display:block"/>{said}</figure>'
    ).format(content=content, caption=caption, side=SIDE, said=said)


def _enlarged(picture: Image.Image) -> Image.Image:
    """At least as large as it is shown, so that lines are not blurred."""
    factor = -(-SIDE // max(picture.size))
    return picture if factor < 2 else picture.resize((picture.width * factor, picture.height * factor))
