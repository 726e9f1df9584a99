"""Why a class, for models whose evidence is the most similar patch: ProtoPNet and combinations of them."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.scoring import percentile_box
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.prototype import PrototypeModel, Response
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

    The "presence" map is the activation map, the similarity of every patch; the "contribution" map holds weight x
    similarity at the most similar patch, which alone counts. The box is ProtoPNet's: 95th percentile of the
    up-sampled activation map.

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
    number = 0 if model.member is None else int(model.member[prototype])
    space, picture = model.spaces[number], pictures[number]
    activation = response.maps[0, space.start : space.stop, prototype]
    grid = activation.reshape(space.grid or (1, -1))
    evidence = float(response.evidence[0, prototype])
    counted = torch.zeros_like(activation)
    counted[int(activation.argmax())] = weight * evidence
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
        maps={"contribution": _array(counted.reshape(grid.shape)), "presence": _array(grid)},
        box=percentile_box(grid, (picture.shape[1], picture.shape[2])),
        examples=examples,
        network=model.card.members[number].source.name if model.card.members else "",
        crop=_array(picture.permute(1, 2, 0)) if model.card.members else None,
    )


def _array(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()
