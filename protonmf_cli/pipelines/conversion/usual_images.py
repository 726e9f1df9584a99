"""Which images are usual: what a conversion keeps of its training images for `pipelines.explaining.unlikeness`."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from protonmf_cli.models.amounts import LEVELS, UsualImages
from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import logit_parts
from protonmf_cli.pipelines.explaining.unlikeness import ClassParts, Unlikeness, at_length_one
from protonmf_cli.pipelines.progress import Progress

COVARIANCE_IMAGES = 64
"""Images of each class that the covariance is taken from."""
LEAST_RANGE = 1e-3
"""Of the distances of training images from the middle one to what one in twenty is above, in the latter."""


def with_usual_images(model: PrototypeModel, finished: Mapping[int, ClassPart], progress: Progress) -> PrototypeModel:
    """The same model with what its training images are like; as it was where these are all at one distance.

    That is so where no class has two images that differ, or where two images of one class are all there are.

    The parts are visited twice, one at a time.

    Args:
        model: as assembled; one that does not read amounts stays as it is.
        finished: class -> part.
        progress: advanced once per visit.
    """
    if model.amounts is None:
        return model
    classes, exact = model.active_classes.tolist(), model.exact
    progress.stage("looking at what images are usual", 2 * len(classes))
    means, within = _means(classes, finished, progress)
    if not float(within.diagonal().sum()) > 0:
        return model
    covariances, rests = zip(*(_spread(ClassParts.of(exact, c), within) for c in classes), strict=True)
    images = UsualImages(
        mean=means.float(),
        covariance=torch.cat([each.flatten() for each in covariances]).float(),
        rest=torch.stack(rests).float(),
        distances=torch.zeros(len(classes), LEVELS),
    )
    images = replace(images, distances=torch.stack(list(_distances(exact, images, finished, progress))).float())
    middle, limit = images.scale
    if limit - middle <= LEAST_RANGE * limit:
        return model
    return replace(model, evidence=replace(model.amounts, images=images))


def _means(classes: list[int], finished: Mapping[int, ClassPart], progress: Progress) -> tuple[Tensor, Tensor]:
    """(A, D) mean of each class's images at length one, and (D, D) how images vary around their class's mean."""
    width = finished[classes[0]].pooled.shape[2]
    means, total, count = [], torch.zeros(width, width, dtype=torch.float64), 0
    for c in classes:
        progress.advance()
        rows = at_length_one(finished[c].pooled[:, 0])
        means.append(rows.mean(dim=0))
        off = (rows - means[-1])[:COVARIANCE_IMAGES]
        total, count = total.addmm_(off.mT, off), count + len(off)
    return torch.stack(means), total / count


def _spread(parts: ClassParts, within: Tensor) -> tuple[Tensor, Tensor]:
    """(s, s) covariance of the amounts of deviations, and the mean squared size of what the parts leave of them."""
    covariance = parts.readers @ within @ parts.readers.mT
    # of v - v R' B: the trace of within, less twice that with B R, plus that of B' cov B
    crossed = ((parts.readers @ within) * parts.parts).sum()
    rest = within.trace() - 2 * crossed + (covariance * (parts.parts @ parts.parts.mT)).sum()
    return covariance, rest.clamp_min(0)


def _distances(
    model: PrototypeModel, images: UsualImages, finished: Mapping[int, ClassPart], progress: Progress
) -> Iterator[Tensor]:
    """(LEVELS,) quantiles of each class's training images; zeros where there is one image."""
    measure, levels = Unlikeness(model, images), torch.linspace(0, 1, LEVELS, dtype=torch.float64)
    for c in model.active_classes.tolist():
        progress.advance()
        part = finished[c]
        count = len(part.pooled)
        if count < 2:
            yield torch.zeros(LEVELS, dtype=torch.float64)
            continue
        left_out = torch.ones(len(model.bias), dtype=torch.float64)
        left_out[c] = count / (count - 1)
        pooled = part.pooled.double()
        found = measure.distances(pooled[:, 0], logit_parts(model, pooled).logits, left_out)
        yield found.quantile(levels)
