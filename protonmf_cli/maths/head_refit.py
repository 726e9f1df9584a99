"""A step of a linear head on labelled images, off directions that were taken out of it.

    min over V of   mean_i [cross-entropy of V x_i + b against y_i]  +  ridge / 2 * s * ||V - V'||^2
    subject to      V b_k = 0 for every direction b_k that was taken out, in every row of V

The cross-entropy is among the classes that have images, whose rows alone move, so as a whole they gain nothing on the
others. V' is the head before the step, s the mean squared length of the images off those directions. A few quadratic
programs stand for the cross-entropy: each has its value and slope at the head of the moment, and one curvature, twice
the mean of p (1 - p), as diag(p) - p p^T is at most 2 diag(p (1 - p)); a step that raises the objective is halved. By
the representer theorem V - V' lies in the span of the images off the directions and of the directions themselves, so a
program has at most as many free unknowns for each class as there are images.

Reference: Boehning 1992, with the mean curvature in place of its bound 1/2.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from protonmf_cli.maths.qp import constrained_step

PROGRAMS = 3
"""Quadratic programs, each at the head that the one before gave."""
LEAST_CURVATURE = 1e-4
HALVINGS = 12
DEPENDENT = 1e-6
"""Length, in the longest, below which a direction or what is left of an image is rounding."""


@dataclass(frozen=True, kw_only=True)
class HeadProblem:
    """Labelled images, a head, and the directions that it must give nothing for."""

    rows: Tensor
    """(N, D) float64 x_i."""
    labels: Tensor
    """(N,) int64"""
    head: Tensor
    """(C, D) float64 V'."""
    bias: Tensor
    """(C,) float64 b, which stays."""
    removed: Tensor
    """(k, D) float64 b_k, k >= 1; they may be linearly dependent."""

    @cached_property
    def frame(self) -> Tensor:
        """(k', D) an orthonormal basis of what was removed."""
        unit = torch.nn.functional.normalize(self.removed, dim=1)
        _, strength, axes = torch.linalg.svd(unit, full_matrices=False)
        kept: Tensor = axes[strength > DEPENDENT * strength[0]]
        return kept

    def off(self, rows: Tensor) -> Tensor:
        """Rows (n, D) without their part along what was removed."""
        return rows - rows @ self.frame.mT @ self.frame

    @cached_property
    def unit(self) -> float:
        """s"""
        return float(self.off(self.rows).square().sum(dim=1).mean())

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """(N, r) left singular vectors, (r,) values and (r, D) axes of the images off what was removed."""
        left, strength, axes = torch.linalg.svd(self.off(self.rows), full_matrices=False)
        kept = strength > DEPENDENT * strength[0]
        return left[:, kept], strength[kept], axes[kept]

    @cached_property
    def moving(self) -> Tensor:
        """(m,) classes that have images, rising: their rows of the head move."""
        found: Tensor = self.labels.unique()
        return found

    @cached_property
    def start(self) -> Tensor:
        """(N, m) logits of the classes that move under the nearest head that keeps the constraint."""
        return self.logits(self.off(self.head))[:, self.moving]

    @property
    def nothing_left(self) -> bool:
        """Whether the images differ in nothing but what was removed."""
        free = self.off(self.rows)
        return float((free - free.mean(dim=0)).norm()) <= DEPENDENT * float(self.rows.norm())

    def logits(self, head: Tensor) -> Tensor:
        """(N, C) of the images under another head (C, D)."""
        return self.rows @ head.mT + self.bias

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over images (n,) of logits (n, m) of the classes that move."""
        return torch.nn.functional.cross_entropy(logits, torch.searchsorted(self.moving, labels))


def refitted(problem: HeadProblem, ridge: float, *, by_solver: bool = True) -> Tensor:
    """(C, D) the head after the step; rows of classes without images change by what the constraint asks alone.

    Args:
        problem: images that differ off what was removed.
        ridge: > 0, in units of s.
        by_solver: give the quadratic programs to cvxpy with their constraint; else the constraint is eliminated and
            the normal equations are solved, which is the same and faster.

    Raises:
        NotExactError: the solver failed.

    >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).double(), torch.tensor([0, 1])
    >>> removed = torch.tensor([[1.0, 0.0]]).double()
    >>> zero = torch.zeros(2, 2).double()
    >>> refitted(HeadProblem(rows=x, labels=y, head=zero, bias=zero[0], removed=removed), 0.1)[:, 0].tolist()
    [0.0, 0.0]
    """
    left, strength, axes = problem.axes
    coordinates = _Coordinates(
        strength=strength,
        across=left.mT @ problem.rows @ problem.frame.mT,
        held=-problem.frame @ problem.head[problem.moving].mT,
    )
    step = torch.zeros(len(strength), len(problem.moving), dtype=torch.float64)
    for _ in range(PROGRAMS):
        slope, curvature = _slope_and_curvature(problem, step)
        moved = strength[:, None] * step + coordinates.across @ coordinates.held
        target = moved - left.mT @ slope / curvature
        weight = len(problem.rows) * ridge * problem.unit / curvature
        found = coordinates.solved(target, weight) if by_solver else coordinates.eliminated(target, weight)
        step = _shortened(problem, step, found, ridge)
    head = problem.off(problem.head)
    head[problem.moving] += step.mT @ axes
    return problem.off(head)  # rounding


@dataclass(frozen=True, kw_only=True)
class _Coordinates:
    """A step's coordinates: along the images off what was removed (r), then along what was removed (k')."""

    strength: Tensor
    """(r,) singular values of those images."""
    across: Tensor
    """(r, k') the images' part along what was removed, in their own coordinates."""
    held: Tensor
    """(k', m) what the constraint makes of the last coordinates."""

    def solved(self, target: Tensor, ridge: float) -> Tensor:
        """(r, m) the first coordinates by cvxpy, of a target (r, m)."""
        design = torch.cat([self.strength.diag(), self.across], dim=1)
        fixed = torch.eye(design.shape[1], dtype=torch.float64)[len(self.strength) :]
        found = constrained_step(design.numpy(), target.numpy(), ridge, fixed.numpy(), self.held.numpy())
        return torch.from_numpy(found)[: len(self.strength)]

    def eliminated(self, target: Tensor, ridge: float) -> Tensor:
        """The same by the normal equations."""
        along: Tensor = self.strength[:, None] * (target - self.across @ self.held)
        return along / (self.strength.square() + ridge)[:, None]


def _logits(problem: HeadProblem, step: Tensor) -> Tensor:
    """(N, m) of the classes that move after a step (r, m)."""
    left, strength, _ = problem.axes
    return problem.start + left @ (strength[:, None] * step)


def _slope_and_curvature(problem: HeadProblem, step: Tensor) -> tuple[Tensor, float]:
    """(N, m) slope of the loss with respect to the logits of the classes that move, and its mean curvature."""
    share = _logits(problem, step).softmax(dim=1)
    curvature = max(2 * float((share * (1 - share)).mean()), LEAST_CURVATURE)
    slope: Tensor = share - (problem.labels[:, None] == problem.moving).to(share)
    return slope, curvature


def _shortened(problem: HeadProblem, here: Tensor, there: Tensor, ridge: float) -> Tensor:
    """The first of there, half way, a quarter of it, ... that does not raise the objective."""

    def objective(step: Tensor) -> float:
        loss = problem.cross_entropy(_logits(problem, step), problem.labels)
        return float(loss + ridge / 2 * problem.unit * step.square().sum())

    before = objective(here)
    for n in range(HALVINGS):
        tried = here + 0.5**n * (there - here)
        if objective(tried) <= before:
            return tried
    return here


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A step that was tried, judged on images that it had not seen."""

    ridge: float | None
    """None: no step."""
    loss: float
    """Mean cross-entropy in nats, among the classes that have images, of those that are held out once."""
    top: Tensor
    """(N,) int64 class that came out on top; -1 where an image is never held out."""


def cross_validated(problem: HeadProblem, ridges: Sequence[float], folds: Tensor) -> list[Candidate]:
    """No step, then a step of each ridge, on images that were held out.

    Args:
        problem: all images.
        ridges: in units of s.
        folds: (N,) in which fold an image is held out; -1 for never, which leaves it out of the figures.
    """
    counted, heads = folds >= 0, dict[float | None, dict[int, Tensor]]()
    for fold in folds[counted].unique().tolist():
        seen = folds != fold
        part = replace(problem, rows=problem.rows[seen], labels=problem.labels[seen])
        heads.setdefault(None, {})[fold] = problem.head
        for ridge in ridges:
            heads.setdefault(ridge, {})[fold] = refitted(part, ridge, by_solver=False)
    found = []
    for tried, by_fold in heads.items():
        logits = torch.zeros(len(problem.rows), len(problem.head), dtype=torch.float64)
        for fold, head in by_fold.items():
            logits[folds == fold] = problem.logits(head)[folds == fold]
        loss = problem.cross_entropy(logits[counted][:, problem.moving], problem.labels[counted])
        found.append(Candidate(ridge=tried, loss=float(loss), top=torch.where(counted, logits.argmax(dim=1), -1)))
    return found
