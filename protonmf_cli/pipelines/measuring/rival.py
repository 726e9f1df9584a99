"""NMF prototypes against those of ProtoPNets, among each network's own features (ProtoNMF, Table 1 and Figure 2)."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.maths.metrics import mean_with_interval
from protonmf_cli.maths.nmf import factorise
from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import similarity_maps
from protonmf_cli.models.sheets import Chart, Column, Panel, Table
from protonmf_cli.models.wording import shortened
from protonmf_cli.options import NmfOptions
from protonmf_cli.pipelines.progress import SILENT, Progress

MOST = 10
"""Prototypes per class in the paper's Table 1."""
MOST_ROWS = 6
"""Images in the picture of areas, each of another class."""
KINDS = {"nmf": "NMF prototypes", "protopnet": "ProtoPNet prototypes"}


@dataclass(frozen=True, kw_only=True)
class Rival:
    """One ProtoPNet, for example after one training cycle."""

    name: str
    model: PrototypeModel
    backbone: Backbone
    images: int
    """Number of training images."""
    open: Callable[[], Iterable[ImageBatch]]
    """The training images as its own network wants them, class after class."""


def check_rival(model: PrototypeModel, name: str) -> None:
    """Refuse a file that is not a single ProtoPNet.

    Raises:
        ModelFileError: it holds something else.
    """
    if not model.evidence.kind.is_of_patches:
        raise ModelFileError(f"{name} holds a {model.card.method} model, but --protopnet needs a ProtoPNet.")
    if model.card.members:
        raise ModelFileError(f"{name} combines several networks: give the files it was made of.")


def rival_table(
    rivals: Sequence[Rival], nmf: NmfOptions, *, seed: int, progress: Progress = SILENT
) -> tuple[Table, list[list[Panel]]]:
    """Relative error of each class's latent rows rebuilt from prototypes of either kind, and the areas they cover.

    Of each class as many NMF prototypes are found as the ProtoPNet has, at most 10.

    Coefficients are optimal (non-negative) for both kinds. An area is where a prototype has at least half its
    largest map value in the image, similarities counted from their least value.

    Args:
        rivals: ProtoPNets; each is compared among the features of its own network.
        nmf: options of our factorisation.
        seed: of the factorisation and of the intervals.

    Returns:
        The table, and rows of pictures: one image per row, two columns per ProtoPNet.

    Raises:
        InputError: no class has both images and prototypes.
    """
    rows: list[dict[str, Any]] = []
    pictures: dict[str, list[Panel]] = {}
    for rival in rivals:
        progress.stage(f"features of {rival.name}", rival.images)
        figures = _Figures()
        for class_index, rows_of_class, crop in _classes(rival, progress):
            own = rival.model.own(class_index)[:MOST]
            if not own:
                continue
            _add_class(figures, pictures, rival, class_index, rows_of_class, crop, own, nmf, seed)
        if not figures.errors["nmf"]:
            raise InputError(f"{rival.name} has no prototypes for the classes of these images.")
        rows += figures.rows(rival.name, seed)
    return _table(rows), list(pictures.values())[:MOST_ROWS]


class _Figures:
    """Errors and covered areas of one ProtoPNet, class by class."""

    def __init__(self) -> None:
        self.errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
        self.areas: dict[str, list[float]] = {kind: [] for kind in KINDS}

    def rows(self, name: str, seed: int) -> list[dict[str, Any]]:
        return [
            {
                "features": name,
                "prototypes": KINDS[kind],
                "classes": len(self.errors[kind]),
                **mean_with_interval("error", np.array(self.errors[kind]), seed=seed),
                "deviation": float(np.std(self.errors[kind])),
                **mean_with_interval("area", np.array(self.areas[kind]), seed=seed),
            }
            for kind in KINDS
        ]


def _classes(rival: Rival, progress: Progress) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Class, its latent rows (n, T, R) >= 0, and the first crop."""
    for class_index, batches in groupby(rival.open(), key=lambda batch: batch.class_index):
        rows, crop = [], None
        for batch in batches:
            progress.advance(len(batch.sources) + len(batch.skipped))
            if batch.sources:
                rows.append(rival.backbone.read(batch.crops).rows.float().cpu())
                crop = batch.crops[0] if crop is None else crop
        if rows and crop is not None:
            yield class_index, torch.cat(rows), crop


def _add_class(
    figures: _Figures, pictures: dict[str, list[Panel]], rival: Rival, class_index: int, rows: Tensor, crop: Tensor,
    own: list[int], nmf: NmfOptions, seed: int,
) -> None:  # fmt: skip
    placed = rows.clamp_min(0)
    flat = placed.flatten(0, 1)
    ours = factorise(flat, min(len(own), *flat.shape), options=nmf, seed=seed + class_index).basis
    theirs = rival.model.prototypes[own].clamp_min(0).to(flat)
    grid = rival.backbone.readout.grid or (1, 1)
    activation = similarity_maps(rival.model, rows, own)
    maps = {
        "protopnet": activation - activation.amin(dim=1, keepdim=True),
        "nmf": nonnegative_codes(flat, ours).reshape(len(rows), -1, len(ours)),
    }
    for kind, basis in (("nmf", ours), ("protopnet", theirs)):
        figures.errors[kind].append(_error(flat, basis))
        inside = (maps[kind] >= maps[kind].amax(dim=1, keepdim=True).clamp_min(1e-12) / 2).any(dim=2)
        figures.areas[kind].append(float(inside.double().mean()))
    pixels = crop.permute(1, 2, 0).numpy()
    name = rival.model.card.classes[class_index]
    row = pictures.setdefault(name.label, [Panel(crop=pixels, caption=shortened(name.shown, 24))])
    for kind in ("protopnet", "nmf"):
        grids = tuple(column.reshape(grid).numpy() for column in maps[kind][0].T)
        row.append(Panel(crop=pixels, maps=grids, caption=f"{shortened(rival.name, 14)}: {KINDS[kind].split()[0]}"))


def _error(rows: Tensor, basis: Tensor) -> float:
    left = rows - nonnegative_codes(rows, basis) @ basis
    return float(left.square().sum(dtype=torch.float64) / rows.square().sum(dtype=torch.float64))


def _table(rows: list[dict[str, Any]]) -> Table:
    return Table(
        name="rival",
        title="features of a class rebuilt from as many prototypes of either kind (squared relative error)",
        columns=(
            Column(key="features", heading="features of", kind="text"),
            Column(key="prototypes", heading="rebuilt from", kind="text"),
            Column(key="classes", heading="classes", kind="count"),
            Column(key="error", heading="error"),
            Column(key="deviation", heading="deviation over classes"),
            Column(key="area", heading="area covered", kind="percent"),
        ),
        rows=tuple(rows),
        charts=(
            Chart(x="prototypes", by="features", lines=("error",), y="squared relative error", bars=True),
            Chart(x="prototypes", by="features", lines=("area",), y="share of the image", bars=True),
        ),
        notes=("area: where at least one prototype of the class has half its largest map value in the image",),
    )
