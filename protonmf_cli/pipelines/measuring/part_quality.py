"""Do prototypes show parts? Consistency and stability with part annotations; distinctiveness and coverage without.

Reference: Huang et al. 2023, Evaluation and Improvement of Interpretability for Self-Explainable Part-Prototype
Networks (box of 36 pixels around the peak, threshold 0.8, noise of 0.2 clipped at 0.25).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, assert_never

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.metrics import mean_with_interval
from protonmf_cli.maths.scoring import upsample
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import similarity_maps
from protonmf_cli.models.sheets import Chart, Column, Table
from protonmf_cli.pipelines.progress import SILENT, Progress

HALF_BOX = 36
"""Pixels at 224 pixels of height."""
CONSISTENT = 0.8
NOISE, MOST_NOISE = 0.2, 0.25

Locate = Callable[[ImageSource], dict[int, tuple[float, float]] | None]
"""Visible parts of an image in pixels of the crop; None where it is not annotated."""


@dataclass
class _Hits:
    """Which parts each prototype meets, image by image: (parts,) of 0, 1 and NaN (not visible)."""

    clean: dict[int, list[np.ndarray]] = field(default_factory=dict)
    same: dict[int, list[bool]] = field(default_factory=dict)


@dataclass
class _Regions:
    """Of every image: how different the prototypes' regions are, and how much of the evidence they cover."""

    distinct: list[float] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)


def part_quality_table(
    backbone: Backbone,
    model: PrototypeModel,
    batches: Iterable[ImageBatch],
    *,
    parts: int,
    locate: Locate | None,
    seed: int,
    progress: Progress = SILENT,
) -> Table:
    """Measure the own prototypes of each class on its labelled images.

    Args:
        backbone, model: network and prototypes.
        batches: labelled images.
        parts: number of annotated parts.
        locate: where the parts are; None measures only what needs no annotations.
        seed: of the noise and of the intervals.

    Raises:
        InputError: rows have no place, or no image is annotated.
    """
    if backbone.readout.grid is None:
        raise InputError(f"the head of {backbone.source.name} is read through one row per image: there are no regions.")
    exact = model.to(backbone.device, backbone.dtype)
    generator = torch.Generator().manual_seed(seed)
    hits, regions, matched, images = _Hits(), _Regions(), 0, 0
    for batch in batches:
        progress.advance(len(batch.sources) + len(batch.skipped))
        own = model.own(batch.class_index)
        if not own or not batch.sources:
            continue
        rows = backbone.read(batch.crops).rows
        noisy = _noisy_rows(backbone, batch.crops, generator) if locate else rows
        for place, source in enumerate(batch.sources):
            images += 1
            _add_regions(regions, backbone, exact, own, rows[place], batch.class_index)
            points = locate(source) if locate else None
            if points is not None:
                matched += 1
                pair = (rows[place], noisy[place])
                _add_hits(hits, backbone, exact, own, pair, points, parts, batch.class_index)
    if locate is not None and not matched:
        raise InputError(
            f"none of the {images} images is in the part annotations: they are matched by class folder and file name "
            "(e.g. 001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg). Give --data of the same images."
        )
    return _table(hits, regions, matched, images, seed)


def _noisy_rows(backbone: Backbone, crops: Tensor, generator: torch.Generator) -> Tensor:
    pixels = backbone.normalise(crops)
    noise = torch.randn(pixels.shape, generator=generator).mul(NOISE).clamp(-MOST_NOISE, MOST_NOISE)
    with torch.inference_mode():
        return backbone.readout.read(backbone.network, pixels + noise.to(pixels)).rows


def _evidence(backbone: Backbone, model: PrototypeModel, own: list[int], rows: Tensor, class_index: int) -> Tensor:
    """(T, p) evidence of a class's own prototypes at every place: amounts, projections, or similarities."""
    if not model.adds_up:
        return similarity_maps(model, rows[None], own)[0]
    return rows[: backbone.readout.places] @ model.readers(class_index)[: len(own)].mT  # own connections come first


def _peaks(backbone: Backbone, model: PrototypeModel, own: list[int], rows: Tensor, class_index: int) -> Tensor:
    """(p, 2) x and y of each prototype's strongest pixel."""
    height, width = backbone.preprocessing.input_size[1:]
    grid = backbone.readout.grid or (1, 1)
    maps = _evidence(backbone, model, own, rows, class_index).mT.reshape(-1, *grid)
    flat = upsample(maps, (height, width)).flatten(1).argmax(dim=1).cpu()
    return torch.stack([flat % width, flat // width], dim=1)


def _add_hits(
    hits: _Hits,
    backbone: Backbone,
    model: PrototypeModel,
    own: list[int],
    rows: tuple[Tensor, Tensor],
    points: dict[int, tuple[float, float]],
    parts: int,
    class_index: int,
) -> None:
    half = HALF_BOX * backbone.preprocessing.input_size[1] / 224
    met = []
    for one in rows:
        found = np.full((len(own), parts), np.nan)
        for k, (x, y) in enumerate(_peaks(backbone, model, own, one, class_index).tolist()):
            for part, (px, py) in points.items():
                found[k, part] = abs(px - x) <= half and abs(py - y) <= half
        met.append(found)
    for k, prototype in enumerate(own):
        hits.clean.setdefault(prototype, []).append(met[0][k])
        hits.same.setdefault(prototype, []).append(bool(np.array_equal(met[0][k], met[1][k], equal_nan=True)))


def _add_regions(
    regions: _Regions, backbone: Backbone, model: PrototypeModel, own: list[int], rows: Tensor, class_index: int
) -> None:
    """Regions are the places where a prototype has at least half its largest presence in the image."""
    placed = rows[: backbone.readout.places]
    codes = _presence(backbone, model, own, rows, class_index)
    masks = codes >= codes.amax(dim=0).clamp_min(1e-12) / 2
    pairs = [(a, b) for a in range(len(own)) for b in range(a)]
    if pairs:
        overlap = [
            float((masks[:, a] & masks[:, b]).sum() / (masks[:, a] | masks[:, b]).sum().clamp_min(1)) for a, b in pairs
        ]
        regions.distinct.append(1 - float(np.mean(overlap)))
    if not model.adds_up:
        return
    evidence = (placed @ model.head_vector(class_index)).clamp_min(0)
    if float(evidence.sum()) > 0:
        regions.covered.append(float(evidence[masks.any(dim=1)].sum() / evidence.sum()))


def _presence(backbone: Backbone, model: PrototypeModel, own: list[int], rows: Tensor, class_index: int) -> Tensor:
    """(T, p) presence of a class's own prototypes, not negative.

    Similarities, which have no zero of their own, count from their least value in the image.
    """
    match model.evidence:
        case Projections() as projections:
            return projections.presence(rows[: backbone.readout.places], model.prototypes[own])
        case NearestPatch():
            found = _evidence(backbone, model, own, rows, class_index)
            return found - found.amin(dim=0)
        case Amounts() | SoftMatch():
            return _evidence(backbone, model, own, rows, class_index).clamp_min(0)
        case other:
            assert_never(other)


def consistency(met: list[np.ndarray]) -> tuple[float, int] | None:
    """Largest share of images in which one visible part is met, and that part; None where no part is visible.

    >>> consistency([np.array([1.0, 0.0]), np.array([1.0, np.nan])])
    (1.0, 0)
    """
    table = np.stack(met)
    seen = np.isfinite(table).sum(axis=0)
    if not seen.any():
        return None
    share = np.nansum(table, axis=0) / np.maximum(seen, 1)
    return float(share.max()), int(share.argmax())


def _table(hits: _Hits, regions: _Regions, matched: int, images: int, seed: int) -> Table:
    rows: list[dict[str, Any]] = []
    found = {j: result for j, met in hits.clean.items() if (result := consistency(met)) is not None}
    measured = {
        "consistency": ([float(share >= CONSISTENT) for share, _ in found.values()], "prototypes"),
        "stability": ([float(np.mean(same)) for same in hits.same.values()], "prototypes"),
        "distinctiveness": (regions.distinct, "images"),
        "comprehensiveness": (regions.covered, "images"),
    }
    for name, (values, unit) in measured.items():
        numbers = np.array(values)
        row: dict[str, Any] = {"measure": name, "over": f"{len(numbers)} {unit}", "value": None}
        if len(numbers):
            row |= mean_with_interval("value", numbers, seed=seed)
        rows.append(row)
    return Table(
        name="part_quality",
        title="quality of the parts that prototypes show",
        columns=(
            Column(key="measure", heading="measure", kind="text"),
            Column(key="value", heading="value", kind="percent"),
            Column(key="over", heading="over", kind="text"),
        ),
        rows=tuple(rows),
        charts=(Chart(x="measure", lines=("value",), y="share", bars=True),),
        notes=(
            f"consistency: share of prototypes that meet one annotated part in {CONSISTENT:.0%} of its class's images",
            "stability: share of images where the parts met stay the same under noise",
            "distinctiveness: 1 - overlap of the regions of a class's prototypes; comprehensiveness: share of the "
            "class's evidence inside them",
        ),
        facts={
            "images": images,
            "images_annotated": matched,
            "parts_met": {str(j): {"part": part, "share": share} for j, (share, part) in found.items()},
        },
    )
