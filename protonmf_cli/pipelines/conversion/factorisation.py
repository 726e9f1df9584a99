"""Prototypes of one class: how many, and how stable they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.matching import match_prototypes, split_stability
from protonmf_cli.maths.nmf import Factors, factorise_group
from protonmf_cli.maths.qp import fit_heads
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
    """The same number of prototypes for each of several classes, in one batch."""
    if not readings:
        return []
    found = _factorise([reading.rows for reading in readings], rank, readings, options)
    return [
        ClassFactors(
            factors=factors,
            stability=_stability(
                factors.basis, halves_of(reading, rank, options, options.seed) if options.stability else None
            ),
        )
        for reading, factors in zip(readings, found, strict=True)
    ]


def _factorise(
    rows: Sequence[Tensor], rank: int, readings: Sequence[ClassReading], options: ConversionOptions
) -> list[Factors]:
    return _factorise_group(rows, rank, options, [options.seed + reading.class_index for reading in readings])


def factorise_rows(rows: Tensor, rank: int, options: ConversionOptions, seed: int) -> Factors:
    """Prototypes of the rows (n, T, D) of some images, as a conversion finds them."""
    return _factorise_group([rows], rank, options, [seed])[0]


def _factorise_group(
    rows: Sequence[Tensor], rank: int, options: ConversionOptions, seeds: Sequence[int]
) -> list[Factors]:
    flat = [part.flatten(0, 1) for part in rows]
    if options.reconstruction == "paper":  # which clips what lies below zero
        return factorise_group([part.clamp_min(0) for part in flat], rank, options=options.nmf, seeds=seeds)
    if not any(bool((part < 0).any()) for part in flat):
        return factorise_group(flat, rank, options=options.nmf, seeds=seeds)
    found = factorise_group([split_by_sign(part) for part in flat], rank, options=options.nmf, seeds=seeds)
    return [joined(factors) for factors in found]


def split_by_sign(rows: Tensor) -> Tensor:
    """(N, 2 D) rows >= 0 that hold the positive parts of rows (N, D), then the negative ones.

    >>> split_by_sign(torch.tensor([[2.0, -3.0]])).tolist()
    [[2.0, 0.0, 0.0, 3.0]]
    """
    return torch.cat([rows.clamp_min(0), (-rows).clamp_min(0)], dim=1)


def joined(factors: Factors) -> Factors:
    """Factors of rows that were split by sign as signed directions in the rows' own space, s_k = b_k+ - b_k-.

    What E B was to the split rows, codes times s_k are to the rows themselves. Directions have unit norm again, and
    codes take up their length.
    """
    width = factors.basis.shape[1] // 2
    signed = factors.basis[:, :width] - factors.basis[:, width:]
    length = signed.norm(dim=1)
    scale = torch.where(length > 0, 1 / length, 0.0)
    return replace(factors, basis=signed * scale[:, None], codes=factors.codes * length)


def half_split(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two random halves of the numbers below `images`."""
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed))
    return order[: images // 2], order[images // 2 :]


def halves_of(reading: ClassReading, rank: int, options: ConversionOptions, seed: int) -> tuple[Tensor, Tensor] | None:
    """Prototypes of two halves of a class's images; None where a half has too few rows."""
    one, two = half_split(len(reading.images), seed)
    if len(one) * reading.rows.shape[1] < rank:
        return None
    first, second = (_factorise([reading.rows[half]], rank, [reading], options)[0].basis for half in (one, two))
    return first, second


def _stability(basis: Tensor, halves: tuple[Tensor, Tensor] | None) -> Tensor:
    """(p,) cosines between the halves; NaN where there are none."""
    return torch.full((len(basis),), torch.nan) if halves is None else split_stability(basis, *halves)


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
    most = min(options.max_prototypes, *reading.rows.flatten(0, 1).shape)
    best: ClassFactors | None = None
    curve: list[dict[str, Any]] = []
    for rank in range(1, most + 1):
        factors = _factorise([reading.rows], rank, [reading], options)[0]
        halves = halves_of(reading, rank, options, options.seed)
        median = None if halves is None else float(match_prototypes(*halves)[1].median())
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
            best = ClassFactors(factors=factors, stability=_stability(factors.basis, halves))
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
