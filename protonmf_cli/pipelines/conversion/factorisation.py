"""Prototypes of one class: how many, and how stable they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.nmf import Factors, factorise, factorise_group, match_prototypes, split_stability
from protonmf_cli.maths.qp import fit_heads
from protonmf_cli.maths.row_blocks import Signs
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.options import ConversionOptions

SMALLEST_GAIN = 0.02
"""Share of the squared size of a class's rows that one more prototype must explain."""
STABLE = 0.8
"""Cosine between two halves of the images from which a prototype counts as stable."""


@dataclass(frozen=True, kw_only=True)
class ClassFactors:
    """Factors of one class, and what is known about their number and stability."""

    factors: Factors
    stability: Tensor
    """(p,) cosine between two halves of the images; NaN where not computed."""
    curve: tuple[dict[str, Any], ...] = ()
    """Where the number was chosen, for each number tried: prototypes, feature_relative_error, residual_share,
    stability."""


def factorise_readings(readings: Sequence[ClassReading], rank: int, options: ConversionOptions) -> list[ClassFactors]:
    """The same number of prototypes for each of several classes, in one batch on an accelerator.

    Two halves of a class's images are factorised in the same passes over its rows, where there are enough of them.
    """
    if not readings:
        return []
    found = factorise_group(
        [reading.rows for reading in readings],
        rank,
        options=options.nmf,
        seeds=[options.seed + reading.class_index for reading in readings],
        signs=_signs(options),
        parts=[_halves(reading, rank, options) if options.stability else () for reading in readings],
    )
    return [ClassFactors(factors=factors, stability=_stability(factors)) for factors in found]


def factorise_rows(rows: Tensor, rank: int, options: ConversionOptions, seed: int) -> Factors:
    """Prototypes of the rows (n, T, D) of some images, as a conversion finds them."""
    return factorise(rows, rank, options=options.nmf, seed=seed, signs=_signs(options))


def _signs(options: ConversionOptions) -> Signs:
    """The paper clips what lies below zero."""
    return "clip" if options.reconstruction == "paper" else "split"


def half_split(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of the numbers below `images`."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[: images // 2], order[images // 2 :]


def _halves(reading: ClassReading, rank: int, options: ConversionOptions) -> tuple[Tensor, ...]:
    """Numbers of the images in either half; none where a half has too few rows."""
    halves = half_split(len(reading.images), options.seed)
    return () if len(halves[0]) * reading.rows.shape[1] < rank else halves


def _stability(factors: Factors) -> Tensor:
    """(p,) cosines between the halves; NaN where there are none."""
    if not factors.parts:
        return torch.full((len(factors.basis),), torch.nan)
    return split_stability(factors.basis, *factors.parts)


def choose_number(reading: ClassReading, vector: Tensor, options: ConversionOptions) -> ClassFactors:
    """The number of prototypes of one class, from a curve.

    One more prototype is added while it explains at least `SMALLEST_GAIN` of the squared size of the rows. Of the
    numbers tried the largest is taken whose prototypes are stable: the median cosine between two halves of the
    images is at least `STABLE` (one prototype where none is).

    Args:
        reading: of the class.
        vector: (D,) its row of the head.
        options: limits, factorisation and seed.
    """
    images, rows, width = reading.rows.shape
    most = min(options.max_prototypes, images * rows, width)
    tried = replace(options, stability=True)
    best: ClassFactors | None = None
    curve: list[dict[str, Any]] = []
    for rank in range(1, most + 1):
        found = factorise_readings([reading], rank, tried)[0]
        factors = found.factors
        median = float(match_prototypes(*factors.parts)[1].median()) if factors.parts else None
        curve.append(
            {
                "prototypes": rank,
                "feature_relative_error": factors.error,
                "residual_share": _own_residual_share(reading.pooled, vector, factors.basis),
                "stability": median,
            }
        )
        if rank > 1 and curve[-2]["feature_relative_error"] - factors.error < SMALLEST_GAIN:
            break
        if best is None or (median is not None and median >= STABLE):
            best = found
    if best is None:  # a class has at least one row
        raise RuntimeError("no number of prototypes was tried")
    return ClassFactors(factors=best.factors, stability=best.stability, curve=tuple(curve))


def _own_residual_share(pooled: Tensor, vector: Tensor, basis: Tensor) -> float:
    """Median over the class's images of |x.R| / (|x.R| + |x.aB|) with the coefficients of eq. 4."""
    row, prototypes = vector.double().cpu().numpy(), basis.double().cpu().numpy()
    fitted = fit_heads(row[None], [prototypes]).coefficients[0] @ prototypes
    images = pooled[:, 0].double().numpy()
    explained, left = np.abs(images @ fitted), np.abs(images @ (row - fitted))
    return float(np.median(left / np.maximum(explained + left, np.finfo(np.float64).tiny)))
