"""Why a class, for models whose evidence is no sum over places.

ProtoPNet and combinations of them: the most similar patch. Few-shot models: the soft match of the whole image.
"""

from collections.abc import Mapping
from functools import partial
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.scoring import peak_box, percentile_box
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import NearestPatch, SoftMatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import Response, compared
from protonmf_cli.models.results import Contribution, ExampleView


def similarity_contributions(
    backbone: Backbone,
    model: PrototypeModel,
    response: Response,
    crop: Tensor,
    weights: Mapping[int, float],
    examples: Mapping[int, tuple[ExampleView, ...]],
) -> tuple[Contribution, ...]:
    """One contribution per prototype.

    ProtoPNet: the "presence" map is the activation map, the similarity of every patch; the "contribution" map holds
    weight x similarity at the most similar patch, which alone counts. The box is around that patch: what
    is at or above the 95th percentile of the up-sampled activation map, as in ProtoPNet, and connected with it.
    Few-shot: the "presence" map is what each place adds to the logarithm of the match, where it adds anything; the
    "contribution" map shares weight x match out in proportion.

    Args:
        backbone, model: the network and its prototypes, float64.
        response: to one image.
        crop: what the network saw.
        weights: prototype -> its weight to the class that is explained, in the order of the result.
        examples: training patches of each prototype among them.
    """
    pictures = backbone.pictures(crop)
    return tuple(
        _contribution(model, response, pictures, prototype, weight, examples[prototype])
        for prototype, weight in weights.items()
    )


def _contribution(
    model: PrototypeModel,
    response: Response,
    pictures: tuple[Tensor, ...],
    prototype: int,
    weight: float,
    examples: tuple[ExampleView, ...],
) -> Contribution:
    owner = int(model.owner[prototype])
    number = model.network_of(prototype)
    space, picture = model.spaces[number], pictures[number]
    activation = response.maps[0, space.start : space.stop, prototype].clone()
    evidence = float(response.evidence[0, prototype])
    size = (picture.shape[1], picture.shape[2])
    match compared(model):
        case NearestPatch():
            grid = activation.reshape(space.grid or (1, -1))
            box = partial(percentile_box, grid, size)
            counted = torch.zeros_like(grid)
            counted.view(-1)[int(activation.argmax())] = weight * evidence
        case SoftMatch():
            grid = presence(activation, space.grid)
            box = partial(peak_box, grid, size)
            counted = weight * evidence * _shares(grid)
        case other:
            assert_never(other)
    name = model.card.classes[owner]
    return Contribution(
        prototype=model.number(prototype),
        prototype_id=prototype,
        owner_index=owner,
        owner_label=name.label,
        owner_name=name.shown,
        stability=None,
        weight=weight,
        evidence=evidence,
        contribution=weight * evidence,
        localised=weight * evidence,
        unlocalised=0.0,
        maps={"contribution": _array(counted), "presence": _array(grid)},
        peak_box=box,
        examples=examples,
        network=model.card.members[number].source.name if model.card.members else "",
        crop=_array(picture.permute(1, 2, 0)) if model.card.members else None,
        caption=model.caption(prototype),
    )


def presence(added: Tensor, grid: tuple[int, int] | None) -> Tensor:
    """(h, w) what places add to a soft match, out of (T,); zero where they speak against it."""
    return added.clamp_min(0).reshape(grid or (1, -1))


def _shares(grid: Tensor) -> Tensor:
    """Each place's share of a map; all the same where it is zero everywhere."""
    total = grid.sum()
    return grid / total if total > 0 else torch.full_like(grid, 1 / grid.numel())


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
