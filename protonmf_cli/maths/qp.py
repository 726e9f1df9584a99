"""Quadratic programs, solved with cvxpy: head reconstruction (ProtoNMF), and a step of the head under constraints."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import cvxpy
import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from protonmf_cli.errors import NotExactError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Solutions of several least-squares problems that were solved as one."""

    coefficients: tuple[Array, ...]
    """One (p_c,) vector per problem."""
    condition: Array
    """(C,) condition number of each problem."""
    accurate: bool
    """False when the solver itself reported a solution of reduced accuracy."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """min_a ||triangle a - target||^2, the reduced form of one class's reconstruction."""

    triangle: Array
    """(p, p) upper triangular."""
    target: Array
    """(p,)"""


def reduce(design: Array, target: Array) -> Problem:
    """The QR form of min_a ||design a - target||^2: p rows instead of many, the same solution.

    Args:
        design: (m, p), m >= p, linearly independent columns.
        target: (m,)

    >>> reduce(np.array([[2.0], [0.0]]), np.array([6.0, 5.0])).target.round(9).tolist() in ([6.0], [-6.0])
    True
    """
    frame, triangle = np.linalg.qr(np.asarray(design, dtype=np.float64))
    return Problem(triangle=triangle, target=frame.T @ np.asarray(target, dtype=np.float64))


def solve(problems: Sequence[Problem]) -> Fit:
    """All problems as one block-diagonal quadratic program.

    Raises:
        NotExactError: the solver failed.

    >>> solve([Problem(triangle=np.array([[2.0]]), target=np.array([6.0]))]).coefficients[0].round(9).tolist()
    [3.0]
    """
    design = scipy.sparse.block_diag([problem.triangle for problem in problems], format="csc")
    solution, accurate = _least_squares(design, np.concatenate([problem.target for problem in problems]))
    ends = np.cumsum([len(problem.target) for problem in problems])[:-1]
    return Fit(
        coefficients=tuple(np.split(solution, ends)),
        condition=np.array([np.linalg.cond(problem.triangle) for problem in problems]),
        accurate=accurate,
    )


def fit_heads(vectors: Array, bases: Sequence[Array]) -> Fit:
    """Reconstruct each head row from its class's prototypes: min_a ||V_c - a B_c||^2.

    Args:
        vectors: (C, D) head rows V.
        bases: C matrices (p_c, D), p_c >= 1, linearly independent rows.

    Returns:
        Coefficients in float64; the residual is V_c - a_c B_c.

    Raises:
        NotExactError: the solver failed.

    Reference: ProtoNMF, eq. 4 and 5.

    >>> fit = fit_heads(np.array([[2.0, 3.0, 5.0]]), [np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])])
    >>> np.round(fit.coefficients[0], 9).tolist()
    [2.0, 3.0]
    """
    return solve([reduce(np.asarray(basis).T, vector) for basis, vector in zip(bases, vectors, strict=True)])


def _least_squares(design: scipy.sparse.spmatrix, target: Array) -> tuple[Array, bool]:
    """min_x ||design x - target||^2 and whether the solver vouches for full accuracy."""
    scale = float(np.abs(target).max(initial=0.0)) or 1.0
    unknown = cvxpy.Variable(design.shape[1])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(design @ unknown - target / scale)))
    _solve(problem, unknown, "the head reconstruction")
    return np.asarray(unknown.value) * scale, problem.status == cvxpy.OPTIMAL


def _solve(problem: cvxpy.Problem, unknown: cvxpy.Variable, what: str) -> None:
    """Solve in place.

    Raises:
        NotExactError: the solver failed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # cvxpy's "inaccurate" note: the status says it
            problem.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError as failure:
        raise NotExactError(f"the solver failed at {what}: {failure}") from failure
    if unknown.value is None:
        raise NotExactError(f"the solver found no solution of {what} (status {problem.status})")


def constrained_step(design: Array, target: Array, ridge: float, fixed: Array, held: Array) -> Array:
    """min_A ||design A - target||^2 + ridge ||A||^2 subject to fixed A = held, column by column of A.

    Args:
        design: (n, p)
        target: (n, m) one column for each class.
        ridge: > 0
        fixed: (k, p) linearly independent rows, k < p.
        held: (k, m)

    Returns:
        (p, m) A.

    Raises:
        NotExactError: the solver failed.

    Reference: ridge of Hoerl and Kennard 1970 with linear equality constraints.

    >>> A = constrained_step(np.eye(2), np.array([[4.0], [2.0]]), 1.0, np.array([[0.0, 1.0]]), np.array([[0.0]]))
    >>> np.abs(A).round(6).tolist()
    [[2.0], [0.0]]
    """
    whole = np.empty((design.shape[1], target.shape[1]))
    sparse = scipy.sparse.csc_array(design)
    for start in range(0, target.shape[1], COLUMNS):
        part = slice(start, start + COLUMNS)
        whole[:, part] = _constrained(sparse, target[:, part], ridge, fixed, held[:, part])
    return whole


COLUMNS = 64
"""Classes that are solved for at once."""


def _constrained(design: scipy.sparse.csc_array, target: Array, ridge: float, fixed: Array, held: Array) -> Array:
    scale = float(max(np.abs(target).max(initial=0.0), np.abs(held).max(initial=0.0))) or 1.0
    unknown = cvxpy.Variable((design.shape[1], target.shape[1]))
    loss = cvxpy.sum_squares(design @ unknown - target / scale) + ridge * cvxpy.sum_squares(unknown)
    problem = cvxpy.Problem(cvxpy.Minimize(loss), [fixed @ unknown == held / scale])
    _solve(problem, unknown, "the refit of the last layer")
    return np.asarray(unknown.value) * scale
