"""Pictures that go with the tables: the paper's Figures 4, 7 and 8 on the user's own images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.prototype import PrototypeModel, augmented_basis
from protonmf_cli.models.response import summed
from protonmf_cli.models.sheets import Column, Panel, Table
from protonmf_cli.models.wording import owned_name, shortened
from protonmf_cli.pipelines.conversion.residual_shares import FALLBACK, class_shares
from protonmf_cli.pipelines.explaining.explanation import explain_image

LOGIT = "logit per place"
SHOWN = 3
"""Prototypes drawn one by one."""
SHEETS = {
    "prototypes_by_count": "all own prototypes in one image, one colour each, for several numbers of them (Figure 4)",
    "augmented_maps": "presence of original and augmented prototypes (Figure 7)",
    "reasoning": "the class's evidence in the black box, and what the prototypes make of it (Figure 8)",
}


@dataclass(frozen=True, kw_only=True)
class RivalCrops:
    """A ProtoPNet, and what it sees of the same images."""

    backbone: Backbone
    model: PrototypeModel
    crops: Sequence[Tensor]


def check_spatial(backbone: Backbone) -> None:
    """Refuse a backbone whose rows have no place, before any work.

    Raises:
        InputError: naming the backbone.
    """
    if backbone.readout.grid is None:
        raise InputError(f"the head of {backbone.source.name} is read through one row per image: there are no maps.")


def gallery_panels(
    backbone: Backbone,
    model: PrototypeModel,
    by_count: Mapping[int, PrototypeModel],
    images: Sequence[tuple[Tensor, int]],
    rival: RivalCrops | None = None,
) -> tuple[Table, dict[str, list[list[Panel]]]]:
    """Sheets of panels, and the table that lists them.

    Args:
        backbone, model: network and prototypes.
        by_count: number of prototypes -> model.
        images: crops and their classes.
        rival: a ProtoPNet whose reasoning is shown beside ours.

    Raises:
        InputError: no image is of a class with prototypes.
    """
    shown = [(crop, c) for crop, c in images if model.own(c)]
    seen = [None] * len(images) if rival is None else list(rival.crops)
    theirs = [crop for crop, (_, c) in zip(seen, images, strict=True) if model.own(c)]
    if not shown:
        raise InputError("none of the images is of a class with prototypes.")
    sheets = {
        "prototypes_by_count": [_counts_row(backbone, by_count, crop, c) for crop, c in shown],
        "augmented_maps": [_augmented_row(backbone, model, crop, c) for crop, c in shown],
        "reasoning": [
            _reasoning_row(backbone, model, crop, c)
            + ([] if rival is None or other is None else _rival_panels(rival, other, model, c))
            for (crop, c), other in zip(shown, theirs, strict=True)
        ],
    }
    table = Table(
        name="pictures",
        title="pictures",
        columns=(Column(key="file", heading="file", kind="text"), Column(key="shows", heading="shows", kind="text")),
        rows=tuple({"file": f"{name}.png", "shows": text} for name, text in SHEETS.items()),
        charts=(),
    )
    return table, sheets


def _pixels(crop: Tensor) -> np.ndarray:
    return crop.permute(1, 2, 0).numpy()


def _placed(backbone: Backbone, crop: Tensor) -> Tensor:
    return backbone.read(crop[None]).rows[0, : backbone.readout.places].cpu().double()


def _maps(backbone: Backbone, model: PrototypeModel, rows: Tensor, readers: Tensor) -> tuple[np.ndarray, ...]:
    """Where prototypes are: amounts, or codes of projections."""
    codes = summed(model).presence(rows, readers.double())
    return tuple(column.reshape(backbone.readout.grid or (1, 1)).numpy() for column in codes.T)


def _counts_row(backbone: Backbone, by_count: Mapping[int, PrototypeModel], crop: Tensor, c: int) -> list[Panel]:
    rows, pixels = _placed(backbone, crop), _pixels(crop)
    panels = [Panel(crop=pixels, caption=shortened(backbone.classes[c].shown, 26))]
    for count, model in by_count.items():
        own = model.own(c)
        if own:
            maps = _maps(backbone, model, rows, model.readers(c)[: len(own)])
            full = tuple(model.peak_of(j) for j in own) if model.amounts else ()
            panels.append(Panel(crop=pixels, maps=maps, caption=f"p = {count}", full=full))
    return panels


def _augmented_row(backbone: Backbone, model: PrototypeModel, crop: Tensor, c: int) -> list[Panel]:
    rows, pixels = _placed(backbone, crop), _pixels(crop)
    shares, _ = class_shares(model, FALLBACK, c)
    basis = model.readers(c)
    augmented = augmented_basis(basis, model.weights.value[model.entries(c)], shares, model.residual[c])
    panels = [Panel(crop=pixels, caption=shortened(backbone.classes[c].shown, 26))]
    unit = "amount per place" if model.amounts else "code per place"
    pairs = zip(_maps(backbone, model, rows, basis), _maps(backbone, model, rows, augmented), strict=True)
    for number, (before, after) in enumerate(list(pairs)[:SHOWN], start=1):
        panels.append(Panel(crop=pixels, maps=(before,), style="heat", unit=unit, caption=f"prototype {number}"))
        panels.append(Panel(crop=pixels, maps=(after,), style="heat", unit=unit, caption="augmented"))
    return panels


def _reasoning_row(backbone: Backbone, model: PrototypeModel, crop: Tensor, c: int) -> list[Panel]:
    found = explain_image(backbone, model, crop, image="", model_name="", class_index=c, form="plain")
    rows, pixels = _placed(backbone, crop), _pixels(crop)
    evidence = (rows @ model.head_vector(c).double()).reshape(backbone.readout.grid or (1, 1)).numpy()
    panels = [
        Panel(crop=pixels, caption=shortened(backbone.classes[c].shown, 26)),
        Panel(crop=pixels, maps=(evidence,), style="signed", unit=LOGIT, caption=f"black box {found.logit:+.1f}"),
    ]
    strongest = sorted(found.contributions, key=lambda part: -abs(part.contribution))[:SHOWN]
    for part in strongest:
        name = (
            owned_name(shortened(part.owner_name, 14), part.prototype)
            if part.owner_index != c
            else f"prototype {part.prototype}"
        )
        caption = f"{name} {part.contribution:+.1f}"
        panels.append(
            Panel(crop=pixels, maps=(part.maps["contribution"],), style="signed", unit=LOGIT, caption=caption)
        )
    rest = found.logit - found.bias - found.residual - sum(part.contribution for part in strongest)
    caption = f"residual {found.residual:+.1f}, rest {rest + found.bias:+.1f}"
    maps = () if found.residual_map is None else (found.residual_map,)
    panels.append(Panel(crop=pixels, maps=maps, style="signed", unit=LOGIT, caption=caption))
    return panels


def _rival_panels(rival: RivalCrops, crop: Tensor, model: PrototypeModel, c: int) -> list[Panel]:
    """The strongest prototypes of a ProtoPNet for the same class of the same image."""
    theirs = rival.model.find_class(model.card.classes[c].label)
    found = explain_image(rival.backbone, rival.model, crop, image="", model_name="", class_index=theirs)
    strongest = sorted(found.contributions, key=lambda part: -part.contribution)[:SHOWN]
    return [
        Panel(
            crop=_pixels(crop),
            maps=(EvidenceKind.SIMILARITIES.drawn(part.maps["presence"]),),
            style="heat",
            unit="similarity above the least",
            caption=f"ProtoPNet {part.prototype} {part.contribution:+.1f} of {found.logit:.1f}",
        )
        for part in strongest
    ]
