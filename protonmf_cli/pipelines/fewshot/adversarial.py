"""How small a change of the pixels changes the class: the fast gradient sign method.

Reference: Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import parts_of_rows
from protonmf_cli.pipelines.progress import SILENT, Progress

CHANGES = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Of every pixel's value, of 255."""


@dataclass(frozen=True, kw_only=True)
class Susceptibility:
    """One image under the fast gradient sign method."""

    class_index: int
    """The model's own answer."""
    margin: float
    """Between the probabilities of the best two classes."""
    other: int | None
    """The class after the smallest change that flips it."""
    change: float | None
    """That change, of 255; None: none of those tried."""


@dataclass(frozen=True, kw_only=True)
class AdversarialCheck:
    """Images, the one with the smallest margin first."""

    images: tuple[tuple[int, Susceptibility], ...]
    """Number of the crop, and what was found."""
    correlation: float | None
    """Spearman's, between margin and change; images that nothing flips count as beyond all changes. None where margins
    or changes are all the same."""

    def flipped(self, change: float) -> float:
        """Share of the images that a change of so much or less flips."""
        return sum(one.change is not None and one.change <= change for _, one in self.images) / len(self.images)


def adversarial_check(
    backbone: Backbone,
    model: PrototypeModel,
    crops: Sequence[Tensor],
    *,
    batch_size: int = 16,
    progress: Progress = SILENT,
) -> AdversarialCheck:
    """Move every pixel a little up or down, against the model's own answer.

    Args:
        backbone, model: whose answers are attacked.
        crops: uint8 (channels, height, width), what the network sees.
        batch_size: images at a time.

    Raises:
        InputError: no images.
    """
    if not crops:
        raise InputError("there are no images to attack")
    moved = model.to(backbone.device, backbone.dtype)
    progress.stage("adversarial check", len(crops))
    found: list[Susceptibility] = []
    for start in range(0, len(crops), batch_size):
        batch = torch.stack(list(crops[start : start + batch_size]))
        found += _attack(backbone, moved, batch)
        progress.advance(len(batch))
    order = sorted(range(len(found)), key=lambda n: found[n].margin)
    margins = [found[n].margin for n in order]
    changes = [found[n].change or 2 * CHANGES[-1] for n in order]
    varied = len(set(margins)) > 1 and len(set(changes)) > 1
    return AdversarialCheck(
        images=tuple((n, found[n]) for n in order),
        correlation=float(spearmanr(margins, changes).statistic) if varied else None,
    )


def _attack(backbone: Backbone, model: PrototypeModel, crops: Tensor) -> list[Susceptibility]:
    pixels = crops.to(backbone.device).float().requires_grad_()
    logits = _logits(backbone, model, pixels)
    best = logits.detach().softmax(dim=1).topk(2, dim=1)
    answer = best.indices[:, 0]
    (slope,) = torch.autograd.grad(functional.cross_entropy(logits, answer, reduction="sum"), pixels)
    change: list[float | None] = [None] * len(crops)
    other: list[int | None] = [None] * len(crops)
    for step in CHANGES:
        with torch.no_grad():
            changed = (pixels + step * slope.sign()).clamp(0, 255)
            tops = _logits(backbone, model, changed).argmax(dim=1)
        for n in (tops != answer).nonzero()[:, 0].tolist():
            if change[n] is None:
                change[n], other[n] = step, int(tops[n])
    margins = (best.values[:, 0] - best.values[:, 1]).tolist()
    return [
        Susceptibility(class_index=int(answer[n]), margin=margins[n], other=other[n], change=change[n])
        for n in range(len(crops))
    ]


def _logits(backbone: Backbone, model: PrototypeModel, pixels: Tensor) -> Tensor:
    """(B, C) of pixels in [0, 255], with a gradient."""
    rows = backbone.readout.read(backbone.network, backbone.normalise(pixels)).rows
    return parts_of_rows(model, rows).logits
