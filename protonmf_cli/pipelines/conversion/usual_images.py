"""Which images are usual: what a conversion keeps of its training images for `pipelines.explaining.unlikeness`."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import in_batches
from protonmf_cli.models.amounts import LEVELS, UsualImages
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.conversion.sums import BLOCK, Sums
from protonmf_cli.pipelines.explaining.unlikeness import ClassParts

LEAST_RANGE = 1e-3
"""Of the distances of training images from the middle one to what one in twenty is above, in the latter."""


def usual_images(model: PrototypeModel, sums: Sums) -> UsualImages | None:
    """What training images are like, before it is known how far from this they lie; None where all are the same.

    Args:
        model: as assembled; of one that does not read amounts nothing is said.
        sums: of a visit to its classes.
    """
    if model.amounts is None or not float(sums.within_at_length_one.diagonal().sum()) > 0:
        return None
    along = _along(model, sums)
    parts = (ClassParts.of(model, c) for c in sums.classes)
    size = sums.within_at_length_one.trace()
    covariances, rests = zip(*(_spread(*each, size) for each in zip(parts, along, strict=True)), strict=True)
    return UsualImages(
        mean=sums.mean_at_length_one,
        covariance=torch.cat([each.flatten() for each in covariances]).float(),
        rest=torch.stack(rests).float(),
        distances=torch.zeros(len(sums.classes), LEVELS),
    )


COLUMNS = 256
"""Numbers of a row that are swept at once."""


def _along(model: PrototypeModel, sums: Sums) -> list[Tensor]:
    """B S B' (s, s) float64 of the prototypes B of each class's connections, with S the covariance within classes.

    Every prototype is multiplied with S once, though several classes are connected to it.
    """
    supports = [model.weights.prototype[model.entries(c)].tolist() for c in sums.classes]
    found = [torch.zeros(len(support), len(support), dtype=torch.float64) for support in supports]
    for columns in torch.arange(model.prototypes.shape[1]).split(COLUMNS):
        within, some = sums.within_at_length_one[:, columns], model.prototypes[:, columns].double()
        swept = torch.cat([rows.double() @ within for rows in model.prototypes.split(BLOCK)])
        for classes, chosen in in_batches(supports, COLUMNS):
            for place, part in zip(classes, swept[chosen] @ some[chosen].mT, strict=True):
                found[place] += part
    return found


def _spread(parts: ClassParts, along: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """(s, s) covariance of the amounts of deviations, and the mean squared size of what the parts leave of them.

    Args:
        parts: of a class.
        along: (s, s) covariance of the deviations' projections on the parts.
        size: their mean squared size.
    """
    mixed = parts.mixing @ along
    covariance = mixed @ parts.mixing.mT
    # of v - v R' B: the size, less twice that of v along R' B, plus that of R' B
    made = torch.outer(parts.carried, parts.carried) * (parts.basis @ parts.basis.mT)
    rest = size - 2 * (parts.carried * mixed.diagonal()).sum() + (covariance * made).sum()
    return covariance, rest.clamp_min(0)


def with_usual_images(model: PrototypeModel, images: UsualImages, levels: Mapping[int, Tensor]) -> PrototypeModel:
    """The same model with what its training images are like; as it was where these are all at one distance.

    That is so where no class has two images that differ, or where two images of one class are all there are.

    Args:
        model: that reads amounts.
        images: of `usual_images`.
        levels: class -> (LEVELS,) quantiles of the distances of its images; classes of one image are left out.
    """
    assert model.amounts is not None
    nothing = torch.zeros(LEVELS)
    distances = torch.stack([levels.get(c, nothing).float() for c in model.active_classes.tolist()])
    found = replace(images, distances=distances)
    middle, limit = found.scale
    if limit - middle <= LEAST_RANGE * limit:
        return model
    return replace(model, evidence=replace(model.amounts, images=found))
