"""How a few-shot model matches an image to its prototypes, and the training images it was fitted to."""

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from protonmf_cli.maths.normalisation import KINDS, Normaliser
from protonmf_cli.maths.principal_axes import Spread, spread_of
from protonmf_cli.maths.soft_prototypes import matches
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.image_batches import ImageSource


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Training images as the model sees them, N of them."""

    features: Tensor
    """(N, D) float32, the mean over the places, not normalised."""
    labels: Tensor
    """(N,) int64"""
    sources: tuple[ImageSource, ...]
    """One per image."""

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, kw_only=True)
class SoftMatch:
    """q(x) = softmax_j(-s |x - p_j|^2 / 2) with x the normalised feature of an image."""

    kind: ClassVar[Literal[EvidenceKind.MATCHES]] = EvidenceKind.MATCHES
    scale: float
    """s > 0"""
    normaliser: Normaliser
    samples: Samples

    @classmethod
    def restored(cls, *, scale: float, kind: str, mean: Tensor, blocks: tuple[int, ...], samples: Samples) -> Self:
        """The matching of a model file.

        Raises:
            ValueError: the parts do not fit each other.
        """
        if kind not in KINDS or sum(blocks) != len(mean) or min(blocks, default=0) < 1:
            raise ValueError(f"normalisation {kind!r} of blocks {blocks} does not fit width {len(mean)}")
        if not scale > 0:
            raise ValueError(f"scale is {scale}, expected a number above 0")
        if len(samples.sources) != len(samples):
            raise ValueError("the numbers of training images and of their features do not match")
        return cls(scale=scale, normaliser=Normaliser(kind=kind, mean=mean, blocks=blocks), samples=samples)

    @cached_property
    def known(self) -> Tensor:
        """(N, D) float64 normalised features of the training images."""
        return self.normaliser(self.samples.features.double())

    @cached_property
    def apart(self) -> Tensor:
        """(N,) distance of each training image to the nearest other one."""
        return torch.cdist(self.known, self.known).fill_diagonal_(torch.inf).amin(dim=1)

    @cached_property
    def spread(self) -> Spread:
        """How the training images lie around their mean."""
        return spread_of(self.known)

    def of_features(self, features: Tensor, prototypes: Tensor) -> Tensor:
        """(N, P) matches of features (N, D) that are not normalised yet; rows add up to 1."""
        return matches(self.normaliser(features), prototypes, self.scale)

    def of_rows(self, rows: Tensor, prototypes: Tensor) -> tuple[Tensor, Tensor]:
        """Matches (B, P) of the rows (B, T, D) of images, and what each place adds to them (B, T, P).

        A place adds s r . (p_j - mean p) to the logarithm of the match, against the average prototype; r is its part
        of the normalised feature.
        """
        parts = self.normaliser.parts(rows)
        maps = self.scale * parts @ (prototypes - prototypes.mean(dim=0)).mT
        return matches(parts.sum(dim=1), prototypes, self.scale), maps
