"""Rebuild every class's logit from prototypes: on the head's weights (ProtoNMF, eq. 4) or on the training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.moments import Metric, Moments, class_metric
from protonmf_cli.maths.qp import Fit, Problem, fit_heads, reduce, solve
from protonmf_cli.maths.support import choose_support
from protonmf_cli.models.part import ClassPart
from protonmf_cli.models.prototype import SparseWeights
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.progress import SILENT, Progress

CHOOSING_RANK = 128
"""Directions of a class's own images that borrowing looks at; the final fit uses all of them."""
TIE_BREAK = 1e-8
"""Weight of the match in parameter space, relative to the mean variance: decides what the images leave open."""
NOTHING_LEFT = 1e-6
"""Share of a head row's length below which its residual is rounding."""


@dataclass(frozen=True, kw_only=True)
class Bases:
    """Prototypes of all classes with images, in their final order."""

    classes: Sequence[int]
    """Rising."""
    prototypes: Tensor
    """(P, D) float32"""
    owner: Tensor
    """(P,) int64, rising."""

    def own(self, class_index: int) -> list[int]:
        """Rows of the prototypes found in a class."""
        return (self.owner == class_index).nonzero()[:, 0].tolist()


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """V_c = sum_j a_cj b_j + R_c for every class."""

    weights: SparseWeights
    residual: Tensor
    """(C, D) float64; exactly zero where the prototypes leave nothing but rounding."""
    intercept: Tensor
    """(C,) float64 delta: the mean of x . R, given back by the residual."""
    condition: np.ndarray
    """(classes,) condition number of each class's problem."""
    accurate: bool
    constant_features: bool
    """The images do not vary, so the functional problem had nothing to match."""
    nothing_left: tuple[int, ...]
    """Classes whose prototypes span the whole space of rows."""


def reconstruct_heads(
    vectors: Tensor,
    bases: Bases,
    finished: Mapping[int, ClassPart],
    moments: Moments,
    options: ConversionOptions,
    progress: Progress = SILENT,
) -> Reconstruction:
    """Head coefficients, residual and intercept of every class.

    Args:
        vectors: (C, D) float64 head rows V.
        bases: prototypes of the classes with images.
        finished: class -> part; only the pooled rows are read, one class at a time.
        moments: of the pooled rows of all images.
        options: reconstruction, number of borrowed prototypes, weight of a class's own images.
        progress: advanced once per class.

    Raises:
        NotExactError: the solver failed.

    Reference: ProtoNMF, eq. 4 and 5; the functional form replaces ||V_c - a B||^2 by
    E_x (x . V_c - delta - x . (a B_S))^2 over the training images.
    """
    supports, problems, centres = [], [], []
    functional = options.reconstruction == "functional"
    shared = _Shared.of(bases, moments, options.own_weight) if functional else None
    for class_index in bases.classes:
        progress.advance()
        if shared is None:
            support, centre = bases.own(class_index), torch.zeros_like(moments.mean)
            problem = reduce(bases.prototypes[support].double().mT.numpy(), vectors[class_index].numpy())
        else:
            pooled = finished[class_index].pooled
            support, problem, centre = shared.problem(class_index, vectors[class_index], pooled, options)
        supports.append(support)
        problems.append(problem)
        centres.append(centre)
    fit = solve(problems)
    constant = shared is not None and shared.root.shape[1] == 0
    return _collect(vectors, bases, supports, centres, fit, constant_features=constant)


@dataclass(frozen=True)
class _Shared:
    """What the functional problems of all classes have in common."""

    bases: Bases
    root: Tensor
    """(D, r) float64, weighted root of the covariance over all images."""
    mean: Tensor
    spread: float
    features: Tensor
    """(P, r + room) float32 prototypes in the metric of all images, to choose by, and room for one class's own."""
    sizes: Tensor
    """(P,) squared lengths of the first r columns."""

    @classmethod
    def of(cls, bases: Bases, moments: Moments, own_weight: float) -> "_Shared":
        root = moments.root
        spread = float(root.square().sum()) / len(root) or 1.0
        root = root * (1 - own_weight) ** 0.5
        features = torch.empty(len(bases.prototypes), root.shape[1] + CHOOSING_RANK + 1)
        features[:, : root.shape[1]] = bases.prototypes @ root.float()
        sizes = torch.linalg.vector_norm(features[:, : root.shape[1]], dim=1).square()
        return cls(bases, root, moments.mean, spread, features, sizes)

    def problem(
        self, class_index: int, vector: Tensor, pooled: Tensor, options: ConversionOptions
    ) -> tuple[list[int], Problem, Tensor]:
        """Support, reduced problem and mean row of one class."""
        support = self.bases.own(class_index)
        metric = class_metric(self.root, self.mean, pooled, options.own_weight)
        if options.borrow:
            rough = metric
            if len(pooled) > CHOOSING_RANK:
                rough = class_metric(self.root, self.mean, pooled, options.own_weight, rank=CHOOSING_RANK)
            support += self._borrowed(rough, vector, support, options.borrow)
        chosen = self.bases.prototypes[support].double()
        tie = (TIE_BREAK * self.spread) ** 0.5
        design = torch.cat([metric.project(chosen).mT, tie * chosen.mT])
        target = torch.cat([metric.project(vector[None])[0], tie * vector])
        return support, reduce(design.numpy(), target.numpy()), metric.mean

    def _borrowed(self, metric: Metric, vector: Tensor, own: list[int], count: int) -> list[int]:
        """Rows of the prototypes that lower the error most; those of all images are projected once for all classes."""
        rank, whole = self.root.shape[1], self.root.shape[1] + metric.extra.shape[1]
        extra = self.bases.prototypes @ metric.extra.float()
        self.features[:, rank:whole] = extra
        sizes = self.sizes + extra.square().sum(dim=1)
        target = metric.project(vector[None])[0].float()
        return choose_support(self.features[:, :whole], target, own, count, sizes=sizes)


def _collect(
    vectors: Tensor,
    bases: Bases,
    supports: Sequence[list[int]],
    centres: Sequence[Tensor],
    fit: Fit,
    *,
    constant_features: bool,
) -> Reconstruction:
    """Residual and intercept from the weights as they will be stored, so that float32 loses nothing."""
    residual, intercept = vectors.clone(), torch.zeros(len(vectors), dtype=torch.float64)
    values, empty = [], []
    for class_index, support, centre, found in zip(bases.classes, supports, centres, fit.coefficients, strict=True):
        value = torch.from_numpy(found).float()
        left = vectors[class_index] - value.double() @ bases.prototypes[support].double()
        if float(left.norm()) <= NOTHING_LEFT * float(vectors[class_index].norm()):
            left = torch.zeros_like(left)
            empty.append(class_index)
        values.append(value)
        residual[class_index] = left
        intercept[class_index] = centre @ left
    sizes = torch.tensor([len(support) for support in supports])
    weights = SparseWeights(
        class_index=torch.repeat_interleave(torch.tensor(list(bases.classes)), sizes),
        prototype=torch.tensor([j for support in supports for j in support]),
        value=torch.cat(values),
        residual_share=torch.zeros(int(sizes.sum())),
    )
    return Reconstruction(
        weights=weights,
        residual=residual,
        intercept=intercept,
        condition=fit.condition,
        accurate=fit.accurate,
        constant_features=constant_features,
        nothing_left=tuple(empty),
    )


def order_by_contribution(vectors: np.ndarray, bases: Sequence[Tensor], means: Sequence[Tensor]) -> list[Tensor]:
    """Canonical order of each class's prototypes: a_j (mean row . b_j) with the coefficients of eq. 4, falling."""
    fit = fit_heads(vectors, [basis.double().numpy() for basis in bases])
    return [
        torch.argsort(torch.from_numpy(a) * (basis.double() @ mean), descending=True, stable=True)
        for a, basis, mean in zip(fit.coefficients, bases, means, strict=True)
    ]
