"""What the script of a page works on. js/data.js says what each value is, under the same names."""

import base64
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import matplotlib
import numpy as np

from protonmf_cli.models.card import member_names
from protonmf_cli.models.class_names import words_for
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.page import Case, GalleryPrototype, PageWords, Report
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, Contribution, ExampleView, Explanation, Plane
from protonmf_cli.models.stability import UNSTABLE
from protonmf_cli.output.figures.overlay import DIVERGING, PALETTE, RAMP
from protonmf_cli.output.page.audit import audit_data
from protonmf_cli.output.page.pictures import Pictures

SHADES = 32
"""Steps of a colour map in the page."""


def page_data(report: Report, words: PageWords, pictures: Pictures) -> dict[str, Any]:
    """All that is shown but the summary."""
    model, gallery, classes = report.model, report.gallery, report.model.card.classes
    kind, listed = model.evidence.kind, report.listed
    place = {prototype.prototype_id: n for n, prototype in enumerate(gallery.prototypes)}
    own: dict[int, list[int]] = {}
    for n, prototype in enumerate(gallery.prototypes):
        if prototype.number:  # not the class as a whole, which its own explanations do not have
            own.setdefault(prototype.owner_index, []).append(n)
    return {
        "schema": "protonmf.page/1",
        "file": report.file,
        "option": f"--form {report.form}" if report.form != ("augmented" if model.is_augmented else "plain") else "",
        "nameless": words.nameless,
        "multiLabel": model.multi_label,
        "measured": gallery.measured_on,
        "floor": kind.composite_floor,
        "pooling": kind.pooling,
        "evidence": words.evidence,
        "palette": PALETTE,
        "ramp": _shades(RAMP),
        "diverging": _shades(DIVERGING),
        "unstable": UNSTABLE,
        "classes": [[c.label, c.shown] for c in classes],
        "words": {c: w for c, (w, name) in enumerate(zip(words_for(classes), classes, strict=True)) if w != name.label},
        "bias": _floats(report.bias),
        "links": _links(model, report.form, listed, place),
        "listed": listed,
        "facts": [
            {
                "c": fact.class_index,
                "images": fact.images,
                "residual": fact.residual_share,
                "accuracy": fact.accuracy,
                "stability": fact.stability,
            }
            for fact in gallery.classes
        ],
        "own": own,
        "prototypes": [_prototype(report, prototype, place, pictures) for prototype in gallery.prototypes],
        "cases": [_case(model, case, listed, place, pictures) for case in report.cases],
        "audit": audit_data(report.audit, place, pictures),
        "plane": None if report.plane is None else _plane(report.plane),
        "pictures": pictures.listed,
    }


def _shades(name: str) -> list[list[int]]:
    colours = matplotlib.colormaps[name](np.linspace(0, 1, SHADES + 1))[:, :3]
    shades: list[list[int]] = (colours * 255).round().astype(int).tolist()
    return shades


def _floats(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()


def _doubles(values: np.ndarray) -> str:
    """Of what differences of nearly equal prototypes are made."""
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode()


def _integers(values: Sequence[int]) -> str:
    return base64.b64encode(np.asarray(values, dtype="<i4").tobytes()).decode()


Place = Mapping[int, int]
"""Number of a prototype on the page."""


def _links(model: PrototypeModel, form: str, listed: Sequence[int], place: Place) -> dict[str, Any]:
    """The connections of the listed classes, class by class, in the order of the ledger."""
    entries = {c: model.entries(c) for c in listed}
    counts = np.bincount(list(entries), [len(e) for e in entries.values()], minlength=len(model.bias))
    order = [e for each in entries.values() for e in each]
    return {
        "start": _integers([0, *np.cumsum(counts).astype(int).tolist()]),
        "prototype": _integers([place[j] for j in model.weights.prototype[order].tolist()]),
        "weight": _floats(model.weights.value[order].numpy()),
        "share": _floats(model.carried_share[order].numpy()) if form == "augmented" else None,
        "cosines": _cosines(model, [each for each in entries.values() if each], place),
    }


def _cosines(model: PrototypeModel, entries: Iterable[Sequence[int]], place: Place) -> dict[str, Any] | None:
    """Of models that read amounts: what the page makes amounts of projections with, see `maths.amounts.dual`.

    Cosines only of prototypes that some class has connections to at once, since all pairs of thousands would not fit;
    in the order in which the classes first need them.
    """
    if model.amounts is None:
        return None
    prototypes = model.prototypes[list(place)].double().numpy()
    length = np.maximum(np.linalg.norm(prototypes, axis=1), np.finfo(np.float32).tiny)
    unit = prototypes / length[:, None]
    found: dict[tuple[int, int], float] = {}
    for each in entries:
        chosen = sorted(place[j] for j in model.weights.prototype[each].tolist())
        gram = unit[chosen] @ unit[chosen].T
        for n, m in combinations(range(len(chosen)), 2):
            found.setdefault((chosen[n], chosen[m]), gram[n, m])
    return {
        "value": _doubles(np.array(list(found.values()))),
        "length": _doubles(length),
        "ridge": model.amounts.added_ridge,
    }


def _prototype(report: Report, prototype: GalleryPrototype, place: Place, pictures: Pictures) -> dict[str, Any]:
    model = report.model
    network, usual = model.network_of(prototype.prototype_id), model.usual_of(prototype.prototype_id)
    shown, kind = prototype.prototype_id in report.shown, model.evidence.kind
    return {
        "c": prototype.owner_index,
        "n": prototype.number,
        "m": network,
        "network": member_names(model.card)[network] if model.card.members else "",
        "stability": prototype.stability,
        "usual": usual and list(map(_short, usual)),
        "full": model.peak_of(prototype.prototype_id),
        "near": [[place[near.prototype_id], round(near.cosine, 4)] for near in prototype.near],
        "users": [[c, _short(weight)] for c, weight in prototype.users],
        "signs": [[sign.kind, sign.words] for sign in prototype.signs],
        "facts": list(prototype.facts),
        **({"caption": caption} if (caption := model.caption(prototype.prototype_id)) else {}),
        "patches": [_patch(view, kind, pictures) for view in prototype.examples[: pictures.detail.patches]]
        if shown and (pictures.detail.patches or not prototype.examples)
        else None,
    }


def _patch(view: ExampleView, kind: EvidenceKind, pictures: Pictures) -> list[Any]:
    number = pictures.patch(view.jpeg)
    return [
        number,
        _box(view.box, pictures.sizes[view.jpeg]),
        None if view.map is None else _map(kind.drawn(view.map)),
        _short(view.score),
        view.path,
    ]


def _short(value: float) -> float:
    """Seven significant digits, as a float32 has."""
    return float(f"{value:.7g}")


def _box(box: tuple[int, int, int, int], size: tuple[int, int]) -> list[float]:
    """As shares of width and height."""
    width, height = size
    return [round(value / full, 4) for value, full in zip(box, (width, height, width, height), strict=True)]


def _map(grid: np.ndarray) -> dict[str, Any]:
    """A map in one byte per place."""
    low, high = min(0.0, float(grid.min())), max(0.0, float(grid.max()))
    if low:  # zero must stay zero
        low, high = -max(-low, high), max(-low, high)
    steps = np.zeros(grid.shape) if high == low else (grid - low) / (high - low) * 255
    return {
        "h": grid.shape[0],
        "w": grid.shape[1],
        "lo": _short(low),
        "hi": _short(high),
        "q": base64.b64encode(steps.round().astype(np.uint8).tobytes()).decode(),
    }


_Sizes = Callable[[Contribution], tuple[int, int]]
"""Width and height of what a prototype's network saw."""


def _case(model: PrototypeModel, case: Case, listed: Sequence[int], place: Place, pictures: Pictures) -> dict[str, Any]:
    def sizes(contribution: Contribution) -> tuple[int, int]:
        seen = case.crops[model.network_of(contribution.prototype_id)]
        return seen.shape[1], seen.shape[0]

    crops = [pictures.crop(crop) for crop in case.crops]
    first, known = case.explanations[0], list(place)
    return {
        "image": case.image,
        "pictures": crops,
        "evidence": _doubles(case.evidence[known]),
        "beside": None if case.beside is None else _doubles(case.beside[known]),
        "logits": _floats(case.logits),
        "unplaced": None if case.unplaced is None else _floats(case.unplaced[list(listed)]),
        "contrasts": [_contrast(contrast, place) for contrast in case.contrasts],
        "besideReach": None if case.beside_reach is None else _floats(case.beside_reach),
        "reach": _floats(case.reach) if case.reach.any() else None,
        "targets": list(case.targets),
        "top": case.top,
        "probability": _short(case.probability),
        "unlike": None if first.unlike is None else first.unlike.said,
        "first": first.class_index if first.class_index != first.predictions[0].class_index else None,
        "drawn": {e.class_index: _explanation(e, place, sizes) for e in case.explanations},
        "similar": [
            {
                "j": place[c.prototype_id],
                "evidence": _short(c.evidence),
                "weight": _short(c.weight),
                "box": _box(c.box, sizes(c)) if c.box else [0, 0, 1, 1],
                "map": _map(first.kind.drawn(c.maps["presence"])),
            }
            for c in case.similar
        ],
        "near": case.neighbours
        and {
            "place": [_short(value) for value in case.neighbours.place],
            "nearest": [[path, name, _short(away)] for path, name, away in case.neighbours.nearest],
            "typical": case.neighbours.typical,
        },
    }


LISTED = 8
"""Rows of a contrast; the others are added up."""


def _contrast(contrast: Contrast, place: Place) -> dict[str, Any]:
    """Two logits on the same amounts."""

    def pair(values: Iterable[float]) -> list[float]:
        return [_short(value) for value in values]

    rest = contrast.rows[LISTED:]
    return {
        "of": [contrast.first, contrast.second],
        "rows": [[place[row.prototype_id], *pair((row.amount, *row.weights))] for row in contrast.rows[:LISTED]],
        "rest": [len(rest), *pair(sum(row.amount * row.weights[side] for row in rest) for side in (0, 1))],
        "residual": pair(contrast.residual),
        "unplaced": pair(contrast.unplaced),
        "bias": pair(contrast.bias),
    }


def _explanation(explanation: Explanation, place: Place, sizes: _Sizes) -> dict[str, Any]:
    return {
        "share": explanation.residual_share,
        "error": float(f"{explanation.ledger_error:.1e}"),
        "residual": None if explanation.residual_map is None else _map(explanation.residual_map),
        "codes": None if explanation.residual_codes is None else _map(explanation.residual_codes.clip(0)),
        "parts": {
            place[c.prototype_id]: _filled(
                box=_box(c.box, sizes(c)) if c.box else None,
                presence=_map(explanation.kind.drawn(c.maps["presence"])) if c.maps else None,
                # of amounts the page makes it: weight x amount, place by place
                contribution=_map(c.maps["contribution"]) if c.maps and not explanation.reads_amounts else None,
                unplaced=_short(c.unlocalised) or None,
            )
            for c in explanation.contributions
        },
    }


def _filled(**values: Any) -> dict[str, Any]:
    """Without what there is nothing of: a part is written thousands of times."""
    return {name: value for name, value in values.items() if value is not None}


def _plane(plane: Plane) -> dict[str, Any]:
    def points(values: Iterable[Iterable[float]]) -> list[list[float]]:
        return [[_short(x) for x in point] for point in values]

    return {
        "samples": points(plane.samples.tolist()),
        "labels": plane.labels.tolist(),
        "prototypes": points(plane.prototypes.tolist()),
        "means": points(plane.means.tolist()),
        "winners": list(plane.winners),
        "shares": list(plane.shares),
        "flagged": list(plane.flagged),
    }
