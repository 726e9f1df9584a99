"""Pictures that a prototype would like best: activation maximisation through the network.

The picture is a sum of grids at several resolutions (a Laplacian pyramid), so that coarse structure is found as fast as
fine detail, down to a quarter of the pixels' own: finer patterns please a network without looking like anything. It is
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
from protonmf_cli.pipelines.fewshot_interpretation import matching_of
from protonmf_cli.pipelines.progress import SILENT, Progress

BATCH = 8
"""Pictures optimised together."""
JITTER = 8
"""Pixels by which a picture is shifted, at most."""
SMOOTH = 1.5
"""Weight of the total variation."""
RATE = 0.05
PARTS = (32, 16, 8, 4)
"""Pixels of the picture to one of each grid."""


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
    *,
    steps: int = 96,
    seed: int = 0,
    progress: Progress = SILENT,
) -> list[VirtualExample]:
    """Find a picture for each of some prototypes.

    What is maximised is s x . (p_j - mean p), the logarithm of the match against the average prototype, which has no
    end where the match itself is 1.

    Args:
        backbone: network of the model.
        model: a few-shot model.
        prototypes: rows of the model.
        steps: of Adam.
        seed: of the start and the shifts.

    Raises:
        InputError: it is a model of another method.
    """
    found: list[VirtualExample] = []
    progress.stage("virtual examples", steps * -(-len(prototypes) // BATCH))
    for start in range(0, len(prototypes), BATCH):
        found += _batch(backbone, model, prototypes[start : start + BATCH], steps, seed, progress)
    return found


def _batch(
    backbone: Backbone, model: PrototypeModel, prototypes: Sequence[int], steps: int, seed: int, progress: Progress
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
        pixels = _picture(levels, size)
        down, right = (int(torch.randint(-JITTER, JITTER + 1, (1,), generator=generator)) for _ in range(2))
        features = _features(backbone, model, torch.roll(pixels, (down, right), dims=(2, 3)))
        gain = (features * directions).sum(dim=1)
        variation = pixels.diff(dim=2).abs().mean(dim=(1, 2, 3)) + pixels.diff(dim=3).abs().mean(dim=(1, 2, 3))
        loss = (SMOOTH * variation - gain).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        progress.advance()
    with torch.no_grad():
        crops = (_picture(levels, size) * 255).round()
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
    """Noise at the resolutions `PARTS` of pictures of a size (channels, height, width)."""
    channels, height, width = size
    return [
        0.01 * torch.randn(count, channels, max(1, height // part), max(1, width // part), generator=generator)
        for part in PARTS
    ]


def _picture(levels: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """(B, channels, height, width) in [0, 1]."""
    total = sum(functional.interpolate(level, size=size, mode="bilinear", align_corners=False) for level in levels)
    return torch.as_tensor(total).sigmoid()


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
