"""Rebuild every class's logit from prototypes: by amounts of parts, or by ProtoNMF's fit of the head (its eq. 4)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.amounts import (
    cancellation,
    dual,
    in_batches,
    mixing_of,
    near_duplicates,
    nearest_rows,
    quantiles_of,
    weights_of,
)
from protonmf_cli.maths.metrics import logit_share, median_share
from protonmf_cli.maths.qp import fit_heads
from protonmf_cli.models.amounts import PEAK, QUANTILES, Amounts
from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.models.prototype import SparseWeights
from protonmf_cli.options import LEAST_SHARE, MOST_CANCELLATION, RIDGES, ConversionOptions
from protonmf_cli.pipelines.conversion.sums import BLOCK, Sums
from protonmf_cli.pipelines.progress import SILENT, Progress

NOTHING_LEFT = 1e-6
"""Share of a head row's length below which its residual is rounding."""
ALIKE = 0.95
"""Cosine from which two prototypes are named as nearly the same."""
EDIT_RIDGE = 3.0
"""Of the readers of edits, in mean variances of images within classes."""
MOST_PAIRS = 100
"""Pairs of nearly equal prototypes that a file names."""
AT_ONCE = 2048
"""Prototypes whose readers of edits are made at once."""


@dataclass(frozen=True, kw_only=True)
class Bases:
    """Prototypes of all classes with images, in their final order."""

    classes: Sequence[int]
    """Rising."""
    prototypes: Tensor
    """(P, D) float32, of unit norm: the parts of every class, then the classes as wholes, where these are there."""
    owner: Tensor
    """(P,) int64, rising among the parts, and among the wholes."""

    has_wholes: bool = False
    """Whether the last prototypes are the classes as wholes, one each, in the order of `classes`."""

    @property
    def parts(self) -> int:
        """How many of the prototypes are parts."""
        return len(self.prototypes) - (len(self.classes) if self.has_wholes else 0)

    def own(self, class_index: int) -> list[int]:
        """Rows of the parts found in a class."""
        parts = self.owner[: self.parts]
        start, stop = torch.searchsorted(parts, torch.tensor([class_index, class_index + 1])).tolist()
        return list(range(start, stop))

    @property
    def without_wholes(self) -> "Bases":
        """The parts alone."""
        parts = self.parts
        return Bases(classes=self.classes, prototypes=self.prototypes[:parts], owner=self.owner[:parts])


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """V_c = sum_j w_cj d_j + R_c for every class."""

    prototypes: Tensor
    """(P, D) float32: of unit norm, or as long as their usual amounts."""
    weights: SparseWeights
    residual: Tensor
    """(C, D) float64; exactly zero where the prototypes leave nothing but rounding."""
    amounts: Amounts | None
    """None for the paper's fit."""
    condition: np.ndarray
    """(classes,) condition number of each class's problem."""
    accurate: bool
    nothing_left: tuple[int, ...]
    """Classes whose prototypes span the whole space of rows."""
    alike: tuple[tuple[int, int, float], ...] = ()
    """Pairs of prototypes that are nearly the same, and their cosine: the `MOST_PAIRS` most alike."""
    pairs_alike: int = 0
    """How many such pairs there are."""


def reconstruct_heads(
    vectors: Tensor,
    bias: Tensor,
    bases: Bases,
    sums: Sums,
    finished: Mapping[int, ClassPart],
    options: ConversionOptions,
    progress: Progress = SILENT,
) -> Reconstruction:
    """Weights and residual of every class.

    Args:
        vectors: (C, D) float64 head rows V.
        bias: (C,) float64 b.
        bases: prototypes of the classes with images.
        sums: of a first visit to the classes.
        finished: class -> part; amounts visit each once, one in memory at a time.
        options: reconstruction, near classes, ridge.
        progress: advanced once per class.

    Raises:
        NotExactError: the solver failed (the paper's fit).
    """
    if options.reconstruction == "paper":
        return _paper(vectors, bases, progress)
    return _amounts(vectors, bias, bases, sums, finished, options, progress)


def _paper(vectors: Tensor, bases: Bases, progress: Progress) -> Reconstruction:
    """min_a ||V_c - a B_c||^2 over a class's own prototypes (ProtoNMF, eq. 4 and 5)."""
    progress.advance(len(bases.classes))
    supports = [bases.own(c) for c in bases.classes]
    fit = fit_heads(
        vectors[list(bases.classes)].numpy(), [bases.prototypes[support].double().numpy() for support in supports]
    )
    residual, empty = vectors.clone(), list[int]()
    values = [torch.from_numpy(found).float() for found in fit.coefficients]
    for class_index, support, value in zip(bases.classes, supports, values, strict=True):
        made = value.double() @ bases.prototypes[support].double()
        residual[class_index] = _left(vectors[class_index], made, class_index, empty)
    return Reconstruction(
        prototypes=bases.prototypes,
        weights=_connected(bases.classes, supports, values),
        residual=residual,
        amounts=None,
        condition=fit.condition,
        accurate=fit.accurate,
        nothing_left=tuple(empty),
    )


def _amounts(
    vectors: Tensor,
    bias: Tensor,
    bases: Bases,
    sums: Sums,
    finished: Mapping[int, ClassPart],
    options: ConversionOptions,
    progress: Progress,
) -> Reconstruction:
    """Weights V_c . b_k on amounts by the dual of a class's own prototypes and those of its nearest classes.

    The choice of what is weighed along looks at the head alone: not at images, so it is the same for other images of
    the classes, and not at what would fit best, so prototypes that mean nothing carry next to nothing.
    """
    supports = connections_of(vectors, bases, options.near)
    ridge = options.ridge if options.ridge is not None else chosen_ridge(vectors, bias, bases, sums.judged, supports)
    usual = _usual(bases, finished, supports, ridge, progress)
    prototypes = bases.prototypes * usual[:, 1:2].float()
    edit_readers = _edit_readers(
        prototypes, bases, connections_of(vectors, bases.without_wholes, options.near), sums.within, ridge
    )
    usual = usual / usual[:, 1:2]
    residual, empty = vectors.clone(), list[int]()
    values, condition = [torch.empty(0)] * len(vectors), np.ones(len(vectors))
    for classes, chosen in in_batches(supports, vectors.shape[1]):
        basis = prototypes[chosen].double()
        found = dual(basis, ridge)
        value = weights_of(vectors[classes], basis, found.carried).float()
        made = (value.double()[:, None] @ found.readers)[:, 0]
        condition[classes] = _conditions(basis).numpy()
        for row, class_index in enumerate(classes):
            values[class_index] = value[row]
            residual[class_index] = _left(vectors[class_index], made[row], class_index, empty)
    pairs_alike, alike = near_duplicates(prototypes[: bases.parts], ALIKE, MOST_PAIRS)
    return Reconstruction(
        prototypes=prototypes,
        weights=_connected(range(len(vectors)), supports, values),
        residual=residual,
        amounts=Amounts(
            ridge=ridge, usual=usual.float(), unplaced_mean=sums.unplaced_mean.float(), edit_readers=edit_readers
        ),
        condition=condition[list(bases.classes)],
        accurate=True,
        nothing_left=tuple(sorted(empty)),
        alike=tuple(alike),
        pairs_alike=pairs_alike,
    )


def connections_of(vectors: Tensor, bases: Bases, near: int) -> list[list[int]]:
    """For every class of the head: its own parts, then the classes whose rows of the head are nearest.

    Of those the class as a whole is taken, or each of its parts. A class without images of its own takes one class
    more, so that its explanations have rows too.

    Args:
        vectors: (C, D) head rows.
        bases: prototypes and their classes.
        near: classes.
    """
    own = {c: bases.own(c) for c in bases.classes}
    lent = {c: [bases.parts + n] for n, c in enumerate(bases.classes)} if bases.has_wholes else own
    nearest = nearest_rows(vectors, torch.tensor(list(bases.classes)), near + 1)
    return [
        own.get(c, []) + [j for other in others[: near if c in own else near + 1] for j in lent[other]]
        for c, others in enumerate(nearest)
    ]


def chosen_ridge(
    vectors: Tensor, bias: Tensor, bases: Bases, judged: Mapping[int, Tensor], supports: Sequence[Sequence[int]]
) -> float:
    """The least of `RIDGES` at which rows hardly cancel, as long as the prototypes carry most of the logit.

    Judged on training images, each explained for its own class: the median of sum of sizes over size of the sum is to
    be at most `MOST_CANCELLATION`; the median share of the logit at least `LEAST_SHARE`.

    Args:
        vectors, bias: of the head.
        bases: prototypes.
        judged: class -> (n, S, D) pooled rows of its images.
        supports: connections of each class.
    """
    classes = list(judged)
    pooled = [judged[c].double() for c in classes]
    head, offset, among = vectors[classes], bias[classes], torch.arange(len(classes))
    unplaced = head @ torch.cat([rows[:, 1:].sum(dim=1) for rows in pooled]).mean(dim=0)
    whole = [rows.sum(dim=1) @ head.mT + offset for rows in pooled]
    chosen = RIDGES[0]
    for ridge in RIDGES:
        found = [_weighted_readers(vectors[c], bases.prototypes[list(supports[c])], ridge) for c in classes]
        made = torch.stack([each.sum(dim=0) for each in found])
        cancelled, shares = [], []
        for number, rows in enumerate(pooled):
            cancelled.append(cancellation(rows[:, 0] @ found[number].mT))
            carried = rows[:, 0] @ made.mT + unplaced + offset
            shares.append(logit_share(carried, whole[number], torch.full((len(rows),), number), among))
        share = median_share(torch.cat(shares))
        if ridge != RIDGES[0] and share is not None and share < LEAST_SHARE:
            break
        chosen = ridge
        if float(torch.cat(cancelled).median()) <= MOST_CANCELLATION:
            break
    return chosen


def _weighted_readers(vector: Tensor, prototypes: Tensor, ridge: float) -> Tensor:
    """(s, D) weight x reader."""
    found = dual(prototypes, ridge)
    return weights_of(vector, prototypes, found.carried)[:, None] * found.readers


def _usual(
    bases: Bases,
    finished: Mapping[int, ClassPart],
    supports: Sequence[Sequence[int]],
    ridge: float,
    progress: Progress,
) -> Tensor:
    """(P, 4) float64 usual amounts of unit prototypes as of `Amounts.usual`; a class as a whole is read by itself."""
    usual = torch.zeros(len(bases.prototypes), 4, dtype=torch.float64)
    for number, class_index in enumerate(bases.classes):
        progress.advance()
        part, own = finished[class_index], bases.own(class_index)
        readers = dual(bases.prototypes[list(supports[class_index])], ridge).readers[: len(own)]
        if bases.has_wholes:
            own = [*own, bases.parts + number]
            readers = torch.cat([readers, dual(bases.prototypes[own[-1:]], 0.0).readers])
        amounts = torch.cat([some.double() @ readers.mT for some in part.pooled[:, 0].split(BLOCK)])
        peaks = (part.sample.double() @ readers.mT).amax(dim=1)
        usual[own] = torch.cat([quantiles_of(amounts, QUANTILES), quantiles_of(peaks, (PEAK,))], dim=1)
    # a prototype that most images of its class do not hold keeps its length
    bare = usual[:, 1] <= 1e-6 * usual.abs().amax(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    usual[bare, 1] = 1.0
    return usual


def _edit_readers(
    prototypes: Tensor, bases: Bases, supports: Sequence[Sequence[int]], within: Tensor, ridge: float
) -> Tensor:
    """(P, D) float32 what takes a prototype out of every class: its amount as a ridge regression reads it from images.

    (S + r s I)^-1 S d_k, scaled to e_k . b_k = 1, with d the dual, S the covariance of images within classes and s its
    mean variance. An exact dual leans on directions in which images hardly vary, along which an edit changes what it
    need not; those are left out. (Planted shortcuts in DeiT-tiny: the mark's class keeps 0.96 of its clean images
    instead of 0.73, at as few flips.)

    Args:
        prototypes: (P, D)
        bases: their classes; a class as a whole is read by itself.
        supports: connections of each class, to parts.
        within: (D, D) S; zero where there is one image per class, which leaves the dual.
        ridge: of the amounts.
    """
    variance = float(within.diagonal().mean())
    damped = within + EDIT_RIDGE * variance * torch.eye(len(within), dtype=torch.float64)
    factor = torch.linalg.cholesky(damped) if variance > 0 else None
    found = torch.empty_like(prototypes)
    for own, readers in _duals(prototypes, bases, supports, ridge):
        found[own] = readers.float()
        if factor is not None:
            shrunk = torch.cholesky_solve(within @ readers.mT, factor).mT
            along = (shrunk * prototypes[own].double()).sum(dim=1, keepdim=True)
            found[own] = torch.where(along > 0, shrunk / along, readers).float()
    return found


def _duals(
    prototypes: Tensor, bases: Bases, supports: Sequence[Sequence[int]], ridge: float
) -> Iterator[tuple[list[int], Tensor]]:
    """Rows of `prototypes` and their duals (n, D) in float64: of all parts, or of those of a class's connections."""
    for start in range(bases.parts, len(prototypes), AT_ONCE):
        wholes = list(range(start, min(start + AT_ONCE, len(prototypes))))
        yield wholes, dual(prototypes[wholes, None], 0.0).readers[:, 0]
    if 2 * bases.parts <= prototypes.shape[1]:
        yield list(range(bases.parts)), dual(prototypes[: bases.parts], ridge).readers
        return
    rows, readers = list[int](), list[Tensor]()
    for c in bases.classes:  # more prototypes than the rows tell apart: each beside those of its own explanations
        own = bases.own(c)
        rows += own
        readers.append(dual(prototypes[list(supports[c])], ridge).readers[: len(own)])
        if len(rows) >= AT_ONCE or c == bases.classes[-1]:
            yield rows, torch.cat(readers)
            rows, readers = [], []


def _left(vector: Tensor, made: Tensor, class_index: int, empty: list[int]) -> Tensor:
    """(D,) what is left of a head row; exactly zero, and the class noted, where that is rounding."""
    left = vector - made
    if float(left.norm()) > NOTHING_LEFT * float(vector.norm()):
        return left
    empty.append(class_index)
    return torch.zeros_like(left)


def _conditions(prototypes: Tensor) -> Tensor:
    """(n,) condition numbers of B B^T for B of unit rows, of prototypes (n, s, D)."""
    unit = torch.nn.functional.normalize(prototypes, dim=2)
    values = torch.linalg.eigvalsh(unit @ unit.mT)
    least = torch.maximum(values[:, 0], torch.finfo(values.dtype).eps * values[:, -1])
    return torch.div(values[:, -1], least)


def _connected(classes: Sequence[int], supports: Sequence[Sequence[int]], values: Sequence[Tensor]) -> SparseWeights:
    sizes = torch.tensor([len(support) for support in supports])
    return SparseWeights(
        class_index=torch.repeat_interleave(torch.tensor(list(classes)), sizes),
        prototype=torch.tensor([j for support in supports for j in support], dtype=torch.int64),
        value=torch.cat(list(values)),
        residual_share=torch.zeros(int(sizes.sum())),
    )


def with_wholes(bases: Bases, projected: Sequence[Tensor]) -> Bases:
    """The same with every class as a whole: what its own parts hold of its mean image, none less than none.

    Args:
        bases: of parts alone.
        projected: (p,) float64 of each class, its mean image projected on its parts.
    """
    wholes = []
    for c, along in zip(bases.classes, projected, strict=True):
        parts = bases.prototypes[bases.own(c)].double()
        held = mixing_of(parts @ parts.mT, 0.0)[0] @ along
        wholes.append(held.clamp_min(0) @ parts)
    unit = torch.nn.functional.normalize(torch.stack(wholes), dim=1).float()
    return replace(
        bases,
        prototypes=torch.cat([bases.prototypes, unit]),
        owner=torch.cat([bases.owner, torch.tensor(list(bases.classes))]),
        has_wholes=True,
    )


def order_by_contribution(vectors: np.ndarray, bases: Sequence[Tensor], projected: Sequence[Tensor]) -> list[Tensor]:
    """Canonical order of each class's prototypes: a_j (mean row . b_j) with the coefficients of eq. 4, falling.

    Args:
        vectors: (A, D) head rows of the classes.
        bases: (p, D) of each class.
        projected: (p,) mean row . b_j of each class.
    """
    fit = fit_heads(vectors, [basis.double().numpy() for basis in bases])
    return [
        torch.argsort(torch.from_numpy(a) * along, descending=True, stable=True)
        for a, along in zip(fit.coefficients, projected, strict=True)
    ]
