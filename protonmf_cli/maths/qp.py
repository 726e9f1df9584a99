"""The two quadratic programs of ProtoNMF, solved with cvxpy: head reconstruction and residual codes."""

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
class HeadFit:
    """V = a B + R, class by class."""

    coefficients: tuple[Array, ...]
    """One (p_c,) vector per class."""
    residual: Array
    """(C, D) what the prototypes leave: V_c - a_c B_c."""
    condition: Array
    """(C,) condition number of each class's prototypes."""
    accurate: bool
    """False when the solver itself reported a solution of reduced accuracy."""


def fit_heads(vectors: Array, bases: Sequence[Array]) -> HeadFit:
    """Reconstruct each head row from its class's prototypes: min_a ||V_c - a B_c||^2.

    All classes are one block-diagonal problem in reduced form: with B_c^T = Q_c T_c (QR) the
    objective is ||Q_c^T V_c - T_c a_c||^2 plus a constant, p unknowns and p rows per class.

    Args:
        vectors: (C, D) head rows V.
        bases: C matrices (p_c, D), p_c >= 1, linearly independent rows.

    Returns:
        Coefficients and residual in float64.

    Raises:
        NotExactError: the solver failed.

    Reference: ProtoNMF, eq. 4 and 5.

    >>> fit = fit_heads(np.array([[2.0, 3.0, 5.0]]), [np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])])
    >>> np.round(fit.coefficients[0], 9).tolist(), np.round(fit.residual[0], 9).tolist()
    ([2.0, 3.0], [0.0, 0.0, 5.0])
    """
    vectors = np.asarray(vectors, dtype=np.float64)
    reduced = [np.linalg.qr(np.asarray(basis, dtype=np.float64).T) for basis in bases]
    design = scipy.sparse.block_diag([triangle for _, triangle in reduced], format="csc")
    target = np.concatenate([frame.T @ vector for (frame, _), vector in zip(reduced, vectors, strict=True)])
    solution, accurate = _least_squares(design, target, "head reconstruction")
    ends = np.cumsum([len(basis) for basis in bases])[:-1]
    coefficients = tuple(np.split(solution, ends))
    fitted = np.stack([a @ np.asarray(basis, dtype=np.float64) for a, basis in zip(coefficients, bases, strict=True)])
    condition = np.array([np.linalg.cond(triangle) for _, triangle in reduced])
    return HeadFit(coefficients=coefficients, residual=vectors - fitted, condition=condition, accurate=accurate)


def fit_residual_codes(leftover: Array, residual: Array) -> Array:
    """Where the residual shows: min_h ||F - h R||^2 with one coefficient per row.

    The problem separates over the rows; it is posed with a unit Hessian,
    min_u ||u - F R^T / ||R|| ||^2 with u = h ||R||, which has the same minimiser.

    Args:
        leftover: (N, D) F = A - E B, the part of the rows that the prototypes leave.
        residual: (D,) one class's R.

    Returns:
        (N,) residual codes h; zeros where R is zero.

    Reference: ProtoNMF, eq. 6.

    >>> fit_residual_codes(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array([2.0, 0.0])).round(9).tolist()
    [1.0, 0.0]
    """
    residual = np.asarray(residual, dtype=np.float64)
    length = float(np.linalg.norm(residual))
    if length == 0 or not len(leftover):
        return np.zeros(len(leftover))
    target = np.asarray(leftover, dtype=np.float64) @ residual / length
    solution, _ = _least_squares(scipy.sparse.identity(len(target), format="csc"), target, "residual codes")
    return solution / length


def _least_squares(design: scipy.sparse.spmatrix, target: Array, what: str) -> tuple[Array, bool]:
    """min_x ||design x - target||^2 and whether the solver vouches for full accuracy."""
    scale = float(np.abs(target).max(initial=0.0)) or 1.0
    unknown = cvxpy.Variable(design.shape[1])
    problem = cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(design @ unknown - target / scale)))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # cvxpy's "inaccurate" note: returned instead
            problem.solve(solver=cvxpy.CLARABEL)
    except cvxpy.SolverError as failure:
        raise NotExactError(f"the solver failed at the {what}: {failure}") from failure
    if unknown.value is None:
        raise NotExactError(f"the solver found no solution of the {what} (status {problem.status})")
    return np.asarray(unknown.value) * scale, problem.status == cvxpy.OPTIMAL
