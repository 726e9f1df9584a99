"""Pictures that a prototype would like best: activation maximisation through the network.

The picture is a sum of grids at several resolutions (a Laplacian pyramid), so that coarse structure is found as fast as
fine detail, but finer patterns, which please a network without looking like anything, are left out. Its colours vary as
those of the training images do: a model of grey images gets grey pictures. It is
shifted by a few pixels in every step for the same reason (Olah, Mordvintsev, Schubert 2017, "Feature visualization").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from protonmf_cli.maths.soft_prototypes import matches
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.fewshot.interpretation import matching_of
from protonmf_cli.pipelines.progress import SILENT, Progress

BATCH = 8
"""Pictures optimised together."""
JITTER = 8
"""Pixels by which a picture is shifted, at most."""
SMOOTH = 1.5
"""Weight of the total variation."""
RATE = 0.05
GRIDS = (7, 14, 28, 56)
"""Cells along the shorter side of a picture."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """How the colours of images vary: their mean, and the root of their covariance."""

    centre: Tensor
    """(channels,) logit of the mean."""
    mixing: Tensor
    """(channels, channels) of largest column norm 1."""

    @classmethod
    def of(cls, crops: Sequence[Tensor]) -> "Colours":
        """Of uint8 images (channels, height, width)."""
        pixels = torch.cat([crop.flatten(1) for crop in crops], dim=1).double() / 255
        mean = pixels.mean(dim=1)
        variances, axes = torch.linalg.eigh(torch.cov(pixels).reshape(len(pixels), -1))
        mixing = axes * variances.clamp_min(0).sqrt()
        return cls(
            centre=mean.clamp(0.05, 0.95).logit().float(),
            mixing=(mixing / mixing.norm(dim=0).max().clamp_min(1e-9)).float(),
        )

    def picture(self, levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """(B, channels, height, width) in [0, 1] from grids (B, channels, h, w)."""
        grown = [functional.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels]
        mixed = torch.einsum("ij,bjhw->bihw", self.mixing.to(levels[0].device), torch.stack(grown).sum(dim=0))
        return (mixed + self.centre.to(levels[0].device)[:, None, None]).sigmoid()


@dataclass(frozen=True, kw_only=True)
class VirtualExample:
    """The picture that was found for one prototype."""

    prototype: int
    picture: np.ndarray
    """(height, width, 3) uint8"""
    match: float
    """Of the picture with the prototype, in [0, 1]."""
    agreement: float
    """Cosine of the picture's and the prototype's directions from the mean prototype."""
    best_sample: float
    """The highest such cosine among the training images."""


def virtual_examples(
    backbone: Backbone,
    model: PrototypeModel,
    prototypes: Sequence[int],
    crops: Sequence[Tensor],
    *,
    steps: int = 96,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[VirtualExample]:
    """Find a picture for each of some prototypes.

    What is maximised is x . d_j with d_j the direction from the mean prototype to p_j, less the total variation. It
    is the logarithm of the match against the average prototype, but for its scale, and goes on where the match is 1.

    Args:
        backbone: network of the model.
        model: a few-shot model.
        prototypes: rows of the model.
        crops: training images, uint8 (channels, height, width); they decide how colours vary.
        steps: of Adam.
        seed: of the start and the shifts.

    Raises:
        InputError: it is a model of another method.
    """
    found: list[VirtualExample] = []
    colours = Colours.of(crops)
    progress.stage("virtual examples", steps * -(-len(prototypes) // BATCH))
    for start in range(0, len(prototypes), BATCH):
        found += _batch(backbone, model, prototypes[start : start + BATCH], colours, steps, seed, progress)
    return found


def _batch(
    backbone: Backbone,
    model: PrototypeModel,
    prototypes: Sequence[int],
    colours: Colours,
    steps: int,
    seed: int,
    progress: Progress,
) -> list[VirtualExample]:
    matching = matching_of(model)
    basis = model.prototypes.to(backbone.device)
    directions = functional.normalize((basis - basis.mean(dim=0))[list(prototypes)], dim=1)
    generator = torch.Generator().manual_seed(seed)
    size = (backbone.preprocessing.input_size[1], backbone.preprocessing.input_size[2])
    levels = _levels(len(prototypes), backbone.preprocessing.input_size, generator)
    levels = [level.to(backbone.device).requires_grad_() for level in levels]
    optimiser = torch.optim.Adam(levels, lr=RATE)
    for _ in range(steps):
        pixels = colours.picture(levels, size)
        down, right = (int(torch.randint(-JITTER, JITTER + 1, (1,), generator=generator)) for _ in range(2))
        features = _features(backbone, model, torch.roll(pixels, (down, right), dims=(2, 3)))
        gain = (features * directions).sum(dim=1)
        variation = pixels.diff(dim=2).abs().mean(dim=(1, 2, 3)) + pixels.diff(dim=3).abs().mean(dim=(1, 2, 3))
        loss = (SMOOTH * variation - gain).sum()
        for level, slope in zip(levels, torch.autograd.grad(loss, levels), strict=True):
            level.grad = slope
        optimiser.step()
        progress.advance()
    with torch.no_grad():
        crops = (colours.picture(levels, size) * 255).round()
        features = _features(backbone, model, crops / 255)
    matched = _matches(model, features.cpu())
    samples = matching.normaliser(matching.samples.features)
    seen, known = (_agreement(x, basis.cpu(), list(prototypes)) for x in (features.cpu(), samples))
    return [
        VirtualExample(
            prototype=j,
            picture=crops[n].byte().permute(1, 2, 0).cpu().numpy(),
            match=float(matched[n, j]),
            agreement=float(seen[n, n]),
            best_sample=float(known[:, n].max()),
        )
        for n, j in enumerate(prototypes)
    ]


def _levels(count: int, size: tuple[int, int, int], generator: torch.Generator) -> list[Tensor]:
    """Noise on `GRIDS`, for pictures of a size (channels, height, width)."""
    channels, height, width = size
    shorter = min(height, width)
    return [
        0.01 * torch.randn(count, channels, cells * height // shorter, cells * width // shorter, generator=generator)
        for cells in GRIDS
        if cells <= shorter
    ]


def _features(backbone: Backbone, model: PrototypeModel, pixels: Tensor) -> Tensor:
    """(B, D) normalised features of pixels in [0, 1], with a gradient."""
    rows = backbone.readout.read(backbone.network, backbone.normalise(255 * pixels)).rows
    return matching_of(model).normaliser(rows.mean(dim=1))


def _matches(model: PrototypeModel, features: Tensor) -> Tensor:
    return matches(features.double(), model.prototypes.double(), matching_of(model).scale)


def _agreement(features: Tensor, basis: Tensor, prototypes: list[int]) -> Tensor:
    """(N, p) cosines between features and prototypes, both from the mean prototype."""
    mean = basis.mean(dim=0)
    return functional.normalize(features - mean, dim=1) @ functional.normalize(basis[prototypes] - mean, dim=1).mT
