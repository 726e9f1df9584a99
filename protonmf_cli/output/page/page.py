"""The report as one HTML page: data in, bytes out. What it is made of lies beside: page.html, page.css, js."""

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.models.page import PageWords, Report
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.output.figures.overlay import as_rgb
from protonmf_cli.output.page.data import page_data
from protonmf_cli.output.page.pictures import DETAILS, FULL, WITHOUT_AUDIT, Detail, Pictures, as_jpeg, opened

NUMBER = 16 / 3
"""Bytes of a float32 in base64."""
SAMPLED = 48
"""Pictures encoded to guess the size of all."""
WITHOUT_SCRIPT = "nav { display: none !important; }"
"""Style of a page whose script does not run."""
SCRIPT = (
    "data", "numbers", "evidence", "elements", "help", "pictures", "state", "images", "headline", "explain",
    "cards", "contrast", "beside", "intervene", "plane", "audit", "overview", "gallery", "main",
)  # fmt: skip
"""Parts of the page's script, in js, in their order: values are made of those before them, functions use any."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """A finished report."""

    html: bytes
    pictures: Mapping[str, bytes]
    """Files that the page shows, by name relative to it; empty where they are inside."""
    left_out: tuple[str, ...]
    """What did not fit."""

    @property
    def size(self) -> int:
        """Bytes of the page and its pictures."""
        return len(self.html) + sum(map(len, self.pictures.values()))


def report_page(report: Report, words: PageWords, most_bytes: int) -> Page:
    """One file with everything in it, as detailed as the size allows.

    Args:
        report: what is shown.
        words: the texts of the summary.
        most_bytes: of the file.

    Raises:
        InputError: even the least detailed page is larger.
    """
    if _size_without_pictures(report, words) <= most_bytes:
        audited = report.audit is not None
        for detail in DETAILS if audited else WITHOUT_AUDIT:
            if detail is not DETAILS[-1] and _guess(report, detail) > 1.1 * most_bytes:
                continue
            left_out = report.left_out
            if detail is not DETAILS[0]:
                left_out = (*left_out, f"To stay below {_megabytes(most_bytes)}, {detail.words(audited=audited)}.")
            html = _render(report, words, Pictures(detail=detail), left_out)
            if len(html) <= most_bytes:
                return Page(html=html, pictures={}, left_out=left_out)
    raise too_large(most_bytes)


def check_size(model: PrototypeModel, images: int, most_bytes: int) -> None:
    """Refuse, before any work, more images than can fit: each needs the evidence of all prototypes and classes.

    Raises:
        InputError: with what to do about it.
    """
    if images * (len(model.prototypes) + len(model.bias)) * NUMBER > most_bytes:
        raise too_large(most_bytes)


def too_large(most_bytes: int) -> InputError:
    """Even the least detailed page is too large."""
    return InputError(
        f"the report does not fit into {_megabytes(most_bytes)}, even with small pictures. Give fewer images, or use "
        "`protonmf report` with a larger --max-size, or with --folder for a folder with the pictures beside the page."
    )


def report_folder(report: Report, words: PageWords) -> Page:
    """A page with its pictures beside it, in full size: training patches are those of the model file."""
    pictures = Pictures(detail=FULL, folder="pictures")
    html = _render(report, words, pictures, report.left_out)
    return Page(html=html, pictures=pictures.files, left_out=report.left_out)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:g} MB"


def _guess(report: Report, detail: Detail) -> float:
    """Bytes of the pictures, from a sample of them."""
    shown = [p for p in report.gallery.prototypes if p.prototype_id in report.shown]
    patches = list({view.jpeg: None for p in shown for view in p.examples[: detail.patches]})
    crops = [crop for case in report.cases for crop in case.crops]
    pairs = list(_pasted(report, detail.pairs))

    def mean(items: Sequence[Any], encode: Any) -> float:
        chosen = items[:: max(1, len(items) // SAMPLED)]
        return sum(len(encode(item)) for item in chosen) / len(chosen) if chosen else 0.0

    of_patch = mean(patches, lambda jpeg: as_jpeg(opened(jpeg), detail.patch, detail.quality))
    of_crop = mean(crops, lambda pixels: as_jpeg(Image.fromarray(as_rgb(pixels)), detail.crop, detail.quality))
    of_pair = mean(pairs, lambda pixels: as_jpeg(Image.fromarray(as_rgb(pixels)), detail.pair, detail.quality))
    return (of_patch * len(patches) + of_crop * len(crops) + of_pair * len(pairs)) * 4 / 3


def _pasted(report: Report, most: int) -> Iterator[np.ndarray]:
    """Images before and after something was pasted into them, of the prototypes that are shown with pictures."""
    part = report.audit
    for candidate in part.audit.candidates if part else ():
        if part and candidate.prototype_id in part.regions:
            for one in candidate.pasted[:most]:
                yield from (one.host, one.changed)


def _size_without_pictures(report: Report, words: PageWords) -> int:
    bare = Pictures(detail=Detail(patch=1, crop=1, patches=0, quality=1, pair=1, pairs=0))
    return len(_render(report, words, bare, ()))


def _render(report: Report, words: PageWords, pictures: Pictures, left_out: tuple[str, ...]) -> bytes:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    data, style, own = page_data(report, words, pictures), _text("page.css"), script()
    text = environment.from_string(_text("page.html")).render(
        title=words.title, subtitle=words.subtitle, about=words.about, badge=words.badge, lines=words.lines,
        tables=words.tables, skipped=words.skipped, provenance=words.provenance, glossary=words.glossary,
        version=words.version, cases=len(report.cases), shortcuts=_shortcuts(report),
        classes=len(report.gallery.classes), prototypes=_owned(report), left_out=left_out,
        style=Markup(style), script=Markup(own), without_script=Markup(WITHOUT_SCRIPT),
        policy=Markup(_policy(own, (style, WITHOUT_SCRIPT))),
        data=jinja2.utils.htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
    )  # fmt: skip
    return text.encode()


def _policy(script: str, styles: Sequence[str]) -> str:
    """The page's Content-Security-Policy: its own script and styles, known by their hashes, and pictures alone."""
    return (
        f"default-src 'none'; img-src data: 'self' file:; style-src {' '.join(map(_hash, styles))}; "
        f"script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _shortcuts(report: Report) -> int | None:
    """Prototypes that look like shortcuts; None without an audit."""
    return None if report.audit is None else len(report.audit.audit.shortcuts)


def _owned(report: Report) -> int:
    """Prototypes of the classes that the gallery shows."""
    shown = {fact.class_index for fact in report.gallery.classes}
    return sum(each.number > 0 and each.owner_index in shown for each in report.gallery.prototypes)


def script() -> str:
    """The parts of the page's script in one closure: they share their names, and nothing else sees them."""
    parts = (_text(f"js/{name}.js") for name in SCRIPT)
    return "\n".join(['"use strict";', "(() => {", *parts, "})();"])


def _text(name: str) -> str:
    return resources.files("protonmf_cli.output.page").joinpath(name).read_text(encoding="utf-8")
