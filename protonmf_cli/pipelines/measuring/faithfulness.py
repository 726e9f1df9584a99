"""Are the maps and contributions what the network looks at? Deletion, insertion, and prototypes taken away one by one.

Reference: Petsiuk, Das and Saenko 2018 (deletion and insertion); Selvaraju et al. 2017 (Grad-CAM).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError
from protonmf_cli.maths.curves import area_under, masks_by_rank
from protonmf_cli.maths.metrics import mean_with_interval
from protonmf_cli.maths.scoring import upsample
from protonmf_cli.models.answers import probabilities
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.sheets import Chart, Column, Table
from protonmf_cli.pipelines.progress import SILENT, Progress

STEPS = 14
BLUR = 31
"""Pixels of the box blur that insertion starts from."""
OURS, PLAIN, RANDOM, GRAD_CAM = "augmented prototypes", "prototypes alone", "random order", "Grad-CAM"


@dataclass
class _Curves:
    """Curves and areas of every image, by method."""

    deletion: dict[str, list[np.ndarray]] = field(default_factory=dict)
    insertion: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def areas(self, which: str, method: str) -> np.ndarray:
        """(images,) areas under one method's curves."""
        return np.array([area_under(torch.from_numpy(curve)) for curve in getattr(self, which)[method]])


def faithfulness_tables(
    backbone: Backbone,
    model: PrototypeModel,
    batches: Iterable[ImageBatch],
    *,
    seed: int,
    progress: Progress = SILENT,
) -> tuple[Table, ...]:
    """Deletion and insertion by three orders of pixels, and the deletion of prototypes.

    The explained class is the best one that has prototypes. The random order is a random map on the same grid,
    up-sampled like the others, so that only the order differs and not its grain.

    Raises:
        InputError: rows have no place, or no image could be read.
    """
    if backbone.readout.grid is None:
        raise InputError(
            f"the head of {backbone.source.name} is read through one row per image, so there are no maps whose "
            "faithfulness could be measured."
        )
    exact = model.to(backbone.device, backbone.dtype)
    generator = torch.Generator().manual_seed(seed)
    layer = feature_layer(backbone)
    curves, removal = _Curves(), _Removal()
    for batch in batches:
        for crop in batch.crops:
            progress.advance()
            reading = backbone.read(crop[None])
            active = model.active_classes.to(reading.logits.device)
            chosen = int(active[reading.logits[0, active].argmax()])
            alone = exact.prototype_vectors[chosen]
            placed = reading.rows[0, : backbone.readout.places]
            # however the residual is shared out, augmented contributions add up to the class's whole evidence
            vectors = {OURS: alone + exact.residual[chosen], PLAIN: alone}
            maps = {name: (placed @ vector).reshape(backbone.readout.grid) for name, vector in vectors.items()}
            maps[RANDOM] = torch.rand(maps[OURS].shape, generator=generator).to(maps[OURS])
            if layer is not None:
                maps[GRAD_CAM] = _grad_cam(backbone, layer, crop, chosen)
            _add_curves(curves, backbone, crop, chosen, maps)
            removal.add(exact, reading.rows[0], float(reading.logits[0, chosen]), chosen, generator)
    if not removal.ours:
        raise InputError("no image of the data could be read")
    return _pixel_table(curves, seed), removal.table(seed)


def feature_layer(backbone: Backbone) -> nn.Module | None:
    """The module that puts out the last feature map (B, D, h, w), which Grad-CAM looks at; None where there is none."""
    found: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: tuple[Any, ...], output: object) -> None:
        if isinstance(output, Tensor):
            found.append((module, output))

    pixels = torch.zeros(1, *backbone.preprocessing.input_size).to(backbone.device, backbone.dtype)
    with hooked(module.register_forward_hook(note) for module in backbone.network.modules()), torch.no_grad():
        features = backbone.network.forward_features(pixels)
    if not isinstance(features, Tensor) or features.ndim != 4:
        return None
    matching = [m for m, out in found if out.shape == features.shape and torch.equal(out, features)]
    return matching[-1] if matching else None


def _grad_cam(backbone: Backbone, layer: nn.Module, crop: Tensor, chosen: int) -> Tensor:
    try:
        from captum.attr import LayerGradCam
    except ImportError as failure:
        raise InputError(
            "Grad-CAM comes from captum, which is not installed: pip install 'protonmf[faithfulness]'."
        ) from failure
    pixels = backbone.normalise(crop[None]).requires_grad_()
    method = LayerGradCam(backbone.network, layer)
    found: Tensor = method.attribute(pixels, target=chosen, relu_attributions=True)[0, 0].detach()
    return found


def _add_curves(curves: _Curves, backbone: Backbone, crop: Tensor, chosen: int, maps: dict[str, Tensor]) -> None:
    sharp = backbone.normalise(crop[None])
    blurred = torch.nn.functional.avg_pool2d(sharp, BLUR, stride=1, padding=BLUR // 2, count_include_pad=False)
    empty = torch.zeros_like(sharp)
    for name, grid in maps.items():
        masks = masks_by_rank(upsample(grid, (sharp.shape[-2], sharp.shape[-1])), STEPS)[:, None]
        for kept, (inside, outside) in (("deletion", (empty, sharp)), ("insertion", (sharp, blurred))):
            with torch.inference_mode():
                logits = backbone.network(torch.where(masks, inside, outside))
            every = probabilities(logits.double(), multi_label=backbone.source.multi_label)
            probability = every[:, chosen].cpu().numpy()
            getattr(curves, kept).setdefault(name, []).append(probability)


def _pixel_table(curves: _Curves, seed: int) -> Table:
    rows: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for name in curves.deletion:
        row: dict[str, Any] = {"order": name, "images": len(curves.deletion[name])}
        for which, sign in (("deletion", -1), ("insertion", 1)):
            areas = curves.areas(which, name)
            row |= mean_with_interval(which, areas, seed=seed)
            if name != OURS:
                gain = sign * (curves.areas(which, OURS) - areas)
                row |= mean_with_interval(f"{which}_gain", gain, seed=seed)
            mean = np.mean(getattr(curves, which)[name], axis=0)
            points += [
                {"curve": which, "order": name, "share": k / STEPS, "probability": float(value)}
                for k, value in enumerate(mean)
            ]
        rows.append(row)
    notes: tuple[str, ...] = (
        "deletion: lower is better; insertion: higher is better; a gain is the paired difference in favour of ours",
        "augmented prototypes add up to the class's whole evidence map, prototypes alone leave the residual out",
        "random order: a random map on the same grid, up-sampled alike",
    )
    if GRAD_CAM not in curves.deletion:
        notes += ("no Grad-CAM: the network has no last feature map of channels x height x width",)
    return Table(
        name="faithfulness",
        title="pixels removed and inserted in the order of the map (area under the probability)",
        columns=(
            Column(key="order", heading="order", kind="text"),
            Column(key="images", heading="images", kind="count"),
            Column(key="deletion", heading="deletion"),
            Column(key="deletion_gain", heading="gain of prototypes"),
            Column(key="insertion", heading="insertion"),
            Column(key="insertion_gain", heading="gain of prototypes"),
        ),
        rows=tuple(rows),
        charts=(Chart(x="order", lines=("deletion", "insertion"), y="area under the curve", bars=True),),
        notes=notes,
        facts={"curves": points},
    )


@dataclass
class _Removal:
    """Logit of the explained class as its contributions are taken away, largest first or at random."""

    ours: list[np.ndarray] = field(default_factory=list)
    random: list[np.ndarray] = field(default_factory=list)

    def add(self, model: PrototypeModel, rows: Tensor, logit: float, chosen: int, generator: torch.Generator) -> None:
        evidence = model.stored_readers(chosen) @ rows[: model.placed].sum(dim=0)
        parts = (model.weights.value[model.entries(chosen)] * evidence).double().cpu()
        shuffled = parts[torch.randperm(len(parts), generator=generator)]
        for kept, order in ((self.ours, parts.sort(descending=True).values), (self.random, shuffled)):
            kept.append(np.concatenate([[logit], logit - order.cumsum(dim=0).numpy()]))

    def table(self, seed: int) -> Table:
        """Mean logit after each removal."""
        longest = max(len(curve) for curve in self.ours)
        rows = []
        for removed in range(longest):
            row: dict[str, Any] = {"removed": removed}
            for key, curves in (("largest_first", self.ours), ("random_order", self.random)):
                values = np.array([curve[removed] for curve in curves if len(curve) > removed])
                row |= mean_with_interval(key, values, seed=seed)
            rows.append(row | {"images": len(values)})
        return Table(
            name="prototype_deletion",
            title="logit of the explained class with its largest contributions removed",
            columns=(
                Column(key="removed", heading="removed", kind="count"),
                Column(key="largest_first", heading="largest first"),
                Column(key="random_order", heading="random order"),
            ),
            rows=tuple(rows),
            charts=(Chart(x="removed", lines=("largest_first", "random_order"), y="logit"),),
            notes=("removing every prototype leaves residual and bias",),
        )
