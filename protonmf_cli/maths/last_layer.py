"""The last layer of a prototype classifier: cross-entropy with an L1 penalty on the weights between classes.

    F(W) = mean_i CrossEntropy(S_i W^T, y_i) + l1 * sum over (k, j) with owner_j != k of |W_kj|

is convex and is solved here to a residual of its optimality conditions instead of by epochs of gradient steps.

Reference: Chen et al. 2019 (ProtoPNet, stage 3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.maths.orthant_newton import Task, advance, quadratic


@dataclass(frozen=True, kw_only=True)
class HeadSolution:
    """Weights of the last layer and how far they are from the minimum."""

    weights: Tensor
    """(C, P) float32, with exact zeros; float64 only where rounding to float32 would break a tolerance that the
    float64 weights keep."""
    objective: float
    """F of these weights."""
    cross_entropy: float
    """F without the penalty."""
    kkt: float
    """Largest entry of the subgradient of least norm, of these weights after rounding; zero at the minimum."""
    iterations: int
    converged: bool
    """kkt <= tolerance"""


def solve_last_layer(
    activations: Tensor,
    labels: Tensor,
    owner: Tensor,
    classes: int,
    *,
    l1: float,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> HeadSolution:
    """Minimise the cross-entropy plus `l1` times the L1 norm of the weights from prototypes to other classes.

    Computed in float64 on the device of the activations (on the CPU for mps). Where the classes can be
    separated the own-class weights have no finite optimum; they grow until the tolerance is met. A prototype
    of class -1 is penalised for every class. Columns may be equal; the minimiser is then not unique.

    Args:
        activations: (N, P) finite similarities S.
        labels: (N,) integers in 0..C-1.
        owner: (P,) class of each prototype, -1 for none.
        classes: C.
        l1: weight of the penalty, >= 0.
        start: (C, P) weights to start from; by default +1 for the own class and -0.5 for the others.
        tolerance: on the largest entry of the subgradient of least norm.
        max_iterations: limit on Newton steps; where it comes first the result is not `converged`.

    Returns:
        The solution on the device of the activations.

    Raises:
        ValueError: activations that are not finite, or sizes or classes that do not fit together.

    >>> S, y = torch.tensor([[2.0, 1.0], [1.0, 2.0], [2.0, 0.0], [0.0, 2.0], [1.0, 2.0]]), torch.tensor([0, 1, 0, 1, 0])
    >>> found = solve_last_layer(S, y, torch.tensor([0, 1]), 2, l1=0.01)
    >>> found.converged, found.weights[0, 1].item(), found.weights[1, 0].item()
    (True, 0.0, 0.0)
    """
    task = Task.of(activations, labels, owner, classes, l1)
    point = task.start(start)
    damping, iterations = 0.1, 0
    while iterations < max_iterations:
        shares, slope = task.slope(point)
        if float(slope.abs().max()) <= tolerance / 2:
            break
        model = quadratic(task, point, shares, slope, damping, 0.01 * tolerance)
        point, damping, moved = advance(task, point, model, damping, tolerance)
        iterations += 1
        if not moved:
            break
    return _finish(task, point.weights, iterations, tolerance, activations.device)


def last_layer_objective(
    weights: Tensor, activations: Tensor, labels: Tensor, owner: Tensor, l1: float
) -> tuple[float, float]:
    """Objective of any weights and the largest entry of its subgradient of least norm, in float64.

    Args:
        weights: (C, P)
        activations, labels, owner, l1: as in `solve_last_layer`.

    >>> S, y, owner = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), torch.tensor([0, 1])
    >>> [round(x, 4) for x in last_layer_objective(torch.zeros(2, 2), S, y, owner, 0.1)]
    [0.6931, 0.25]
    """
    task = Task.of(activations, labels, owner, len(weights), l1)
    value, _, kkt = task.measure(task.checked(weights))
    return value, kkt


def l1_path(
    activations: Tensor,
    labels: Tensor,
    owner: Tensor,
    classes: int,
    *,
    l1s: Sequence[float],
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 500,
) -> list[HeadSolution]:
    """Solutions for several penalties, from the strongest to the weakest, each started from the one before.

    Args:
        l1s: penalties in any order.
        start: weights to start the strongest penalty from.
        activations, labels, owner, classes, tolerance, max_iterations: as in `solve_last_layer`.

    Returns:
        One solution per penalty, in the order of `l1s`.
    """
    found: dict[int, HeadSolution] = {}
    for place in sorted(range(len(l1s)), key=lambda n: -l1s[n]):
        found[place] = solve_last_layer(
            activations,
            labels,
            owner,
            classes,
            l1=l1s[place],
            start=start,
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
        start = found[place].weights
    return [found[place] for place in range(len(l1s))]


def _finish(task: Task, W: Tensor, iterations: int, tolerance: float, device: torch.device) -> HeadSolution:
    """Round to float32 unless only the weights in float64 keep the tolerance."""
    rounded = W.float()
    objective, cross_entropy, kkt = task.measure(rounded.double())
    if kkt > tolerance:
        exact = task.measure(W)
        if exact[2] <= tolerance:
            rounded, (objective, cross_entropy, kkt) = W, exact
    if rounded.dtype == torch.float32 or device.type != "mps":
        rounded = rounded.to(device)
    return HeadSolution(
        weights=rounded,
        objective=objective,
        cross_entropy=cross_entropy,
        kkt=kkt,
        iterations=iterations,
        converged=kkt <= tolerance,
    )
