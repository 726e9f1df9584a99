"""Amounts of parts: how much of each prototype a row holds when the others have explained their share away."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LEAST_RIDGE = 1e-6
"""Keeps equal prototypes apart: each takes half of what both hold."""


@dataclass(frozen=True, kw_only=True)
class Dual:
    """What reads the amounts of s prototypes from a row."""

    readers: Tensor
    """(..., s, D) float64 d_k with d_k . b_k = 1: amount h_k = x . d_k."""
    mixing: Tensor
    """(..., s, s) float64: readers = mixing x prototypes, so that amounts follow from the projections x . b_j alone."""
    carried: Tensor
    """(..., s) float64 in (0, 1], share of a row b_k that the least squares give to k itself; 1 without a ridge."""


def dual(prototypes: Tensor, ridge: float) -> Dual:
    """Readers of the amounts: rows of (B B^T + ridge I)^-1 B for B of unit rows, scaled so that d_k . b_k = 1.

    x ~ sum_k h_k b_k in least squares, so h is linear in x: amounts of places add up to the amount of the image.
    Without a ridge d_j . b_k = 0 for j != k: a row that is one prototype holds nothing of the others. A ridge gives
    up some of that where prototypes are so alike, or so many, that their amounts would cancel.

    Args:
        prototypes: (s, D), or (n, s, D) of several classes; they may be linearly dependent or more than D. A prototype
            that is zero has no amount.
        ridge: at least `LEAST_RIDGE` is taken.

    Reference: dual frames; ridge of Hoerl and Kennard 1970.

    >>> found = dual(torch.tensor([[2.0, 0.0], [1.0, 1.0]]), 0.0)
    >>> (found.readers @ torch.tensor([[3.0], [1.0]], dtype=torch.float64)).round(decimals=3).flatten().tolist()
    [1.0, 1.0]
    """
    whole = prototypes.double()
    mixing, carried = mixing_of(whole @ whole.mT, ridge)
    return Dual(readers=mixing @ whole, mixing=mixing, carried=carried)


def mixing_of(gram: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """`Dual.mixing` and `Dual.carried` from the products B B^T (..., s, s) of prototypes alone, in float64."""
    size = gram.diagonal(dim1=-2, dim2=-1).clamp_min(torch.finfo(torch.float32).tiny ** 2)
    length = size.sqrt()
    cosines = gram / length[..., None] / length[..., None, :]
    ridged = cosines + max(ridge, LEAST_RIDGE) * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(ridged))
    carried = (inverse * cosines).sum(dim=-1)
    scale = torch.where(carried > 0, 1 / (carried * length), 0.0)
    return scale[..., None] * inverse / length[..., None, :], carried


BATCH = 2**20
"""Numbers of prototypes that are gathered for one batch of classes."""


def in_batches(supports: Sequence[Sequence[int]], width: int) -> Iterator[tuple[list[int], Tensor]]:
    """Classes of as many prototypes each, so that their small problems are solved at once.

    Args:
        supports: prototypes of each class.
        width: D, numbers of a prototype.

    Yields:
        Numbers of n classes, and (n, s) their prototypes; classes without any are left out.

    >>> [(classes, chosen.tolist()) for classes, chosen in in_batches([[4], [], [2]], 1)]
    [([0, 2], [[4], [2]])]
    """
    by_size: dict[int, list[int]] = {}
    for c, support in enumerate(supports):
        by_size.setdefault(len(support), []).append(c)
    by_size.pop(0, None)
    for size, classes in sorted(by_size.items()):
        count = max(1, BATCH // (size * width))
        for start in range(0, len(classes), count):
            part = classes[start : start + count]
            yield part, torch.tensor([list(supports[c]) for c in part])


def weights_of(vector: Tensor, prototypes: Tensor, carried: Tensor) -> Tensor:
    """(..., s) what one unit of each amount adds to a logit: the head's own row on the prototype, V_c . b_k.

    With a ridge a part of b_k is left to others, and the weight is less by that: the sum of weight x reader is then
    the ridge's own fit of V_c.

    Args:
        vector: (..., D) V_c.
        prototypes: (..., s, D)
        carried: of `dual`.
    """
    return (prototypes.double() @ vector.double()[..., None])[..., 0] * carried


def cancellation(contributions: Tensor) -> Tensor:
    """(n,) sum of sizes over the size of the sum of contributions (n, s); 1 where all have one sign.

    >>> cancellation(torch.tensor([[3.0, -1.0], [1.0, 1.0]])).tolist()
    [2.0, 1.0]
    """
    whole = contributions.sum(dim=1).abs()
    return contributions.abs().sum(dim=1) / whole.clamp_min(torch.finfo(whole.dtype).tiny)


def nearest_rows(vectors: Tensor, among: Tensor, count: int, *, chunk: int = 1024) -> list[list[int]]:
    """For each row the `count` most similar other rows by cosine, most similar first; ties go to the earlier row.

    Args:
        vectors: (C, D)
        among: rows that may be chosen, rising.
        count: wanted; fewer where there are fewer.

    >>> nearest_rows(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0, 1, 2]), 1)
    [[1], [0], [1]]
    """
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    others = unit if len(among) == len(unit) else unit[among]
    chosen: list[list[int]] = []
    for start in range(0, len(unit), chunk):
        cosine = unit[start : start + chunk] @ others.mT
        own = torch.arange(start, start + len(cosine))[:, None] == among
        cosine.masked_fill_(own, -torch.inf)
        least = cosine.topk(min(count, len(among)), dim=1).values[:, -1:]
        row, place = (cosine >= least).nonzero(as_tuple=True)  # more than are wanted where several are equal
        order = cosine[row, place].argsort(descending=True, stable=True)
        order = order[row[order].argsort(stable=True)]
        found = among[place[order]].split(torch.bincount(row, minlength=len(cosine)).tolist())
        wanted = (len(among) - own.sum(dim=1)).clamp_max(count).tolist()
        chosen += [each[:number].tolist() for each, number in zip(found, wanted, strict=True)]
    return chosen


def near_duplicates(
    prototypes: Tensor, least: float, most: int, *, chunk: int = 256
) -> tuple[int, list[tuple[int, int, float]]]:
    """How many pairs of prototypes (P, D) have a cosine of at least `least`, and the `most` most alike of them.

    >>> near_duplicates(torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]), 0.95, 1)
    (1, [(0, 2, 1.0)])
    """
    unit = torch.nn.functional.normalize(prototypes.float(), dim=1)
    count, found = 0, list[tuple[int, int, float]]()
    for start in range(0, len(unit), chunk):
        cosine = (unit[start : start + chunk] @ unit[start:].mT).triu_(diagonal=1)
        pairs = (cosine >= least - ROUNDED).nonzero()
        value = cosine[pairs[:, 0], pairs[:, 1]]
        near = value < least + ROUNDED
        alike = ~near
        alike[near] = _cosines(prototypes, start + pairs[near]) >= least
        pairs, value = start + pairs[alike], value[alike]
        count += len(pairs)
        best = pairs[value.argsort(descending=True, stable=True)[:most]]
        found += [(i, j, c) for (i, j), c in zip(best.tolist(), _cosines(prototypes, best).tolist(), strict=True)]
        found = sorted(found, key=lambda pair: -pair[2])[:most]
    return count, found


ROUNDED = 1e-5
"""By how much a cosine in float32 may be off."""
PAIRS = 1024
"""Pairs of vectors whose cosines are taken at once."""


def _cosines(vectors: Tensor, pairs: Tensor) -> Tensor:
    """(n,) float64 cosines of pairs (n, 2) of vectors (P, D)."""
    found = []
    for some in pairs.split(PAIRS):
        first, second = vectors[some].double().unbind(dim=1)
        found.append(torch.nn.functional.cosine_similarity(first, second, dim=1, eps=1e-300))
    return torch.cat(found)


def quantiles_of(values: Tensor, shares: Sequence[float]) -> Tensor:
    """(s, q) quantiles of each column of (n, s) values."""
    return torch.quantile(values.double(), torch.tensor(shares, dtype=torch.float64), dim=0).mT
