"""Soft matching of samples to prototypes, a linear layer from matches to classes, and how both are estimated.

    q_j(x) = softmax_j(-s |x - p_j|^2 / 2)        c_l(x) = softmax_l(w_l . q(x))
    C = -(1/N) sum_i log c_{y_i}(x_i) + R(W) + (anchor / 2) sum_j |p_j - m_j|^2
    R(W) = (alpha / 2) sum W^2  or  alpha sum |W|

The anchor term holds each prototype near m_j, where it started (a class mean, or the centre of a part of a class). With
a handful of samples in a thousand dimensions the other terms alone are lowered without limit by prototypes that leave
the data.

Reference: "Using prototypes to improve convolutional networks interpretability" (2017). Its k-means estimate is
`prototype_step`: samples weighted by proximity and error signal.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import scipy
import torch
from torch import Tensor
from torch.nn import functional

from protonmf_cli.maths.last_layer import solve_last_layer


@dataclass(frozen=True, kw_only=True)
class Penalty:
    """What is added to the cross-entropy."""

    norm: Literal["l1", "l2"] = "l2"
    """Of the class weights."""
    alpha: float = 1e-3
    anchor: float = 1e-3

    def of_weights(self, weights: Tensor) -> Tensor:
        """R(W)"""
        return self.alpha * (weights.abs().sum() if self.norm == "l1" else weights.square().sum() / 2)


@dataclass(frozen=True, kw_only=True)
class SoftPrototypes:
    """J prototypes in R^D and the weights of L classes, float64."""

    prototypes: Tensor
    """(J, D)"""
    weights: Tensor
    """(L, J)"""
    anchors: Tensor
    """(J, D) where the prototypes started"""
    scale: float
    """s > 0, of the squared distances"""

    def logits(self, rows: Tensor) -> Tensor:
        """(N, L) class logits of samples (N, D)."""
        return matches(rows, self.prototypes, self.scale) @ self.weights.mT


def matches(rows: Tensor, prototypes: Tensor, scale: float) -> Tensor:
    """q: how much each sample (N, D) matches each prototype (J, D); rows of (N, J) sum to 1.

    >>> matches(torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0]]), 2.0)[0, 0].item()  # 1 / (1 + 1 / e)
    0.7310...
    """
    # the sample's own norm cancels in the softmax
    return (scale * (rows @ prototypes.mT - prototypes.square().sum(dim=1) / 2)).softmax(dim=1)


def objective(model: SoftPrototypes, rows: Tensor, labels: Tensor, penalty: Penalty) -> float:
    """C of a model on samples (N, D) with labels (N,)."""
    return _value(model, matches(rows, model.prototypes, model.scale), labels, penalty)


def _value(model: SoftPrototypes, matched: Tensor, labels: Tensor, penalty: Penalty) -> float:
    loss = functional.cross_entropy(matched @ model.weights.mT, labels)
    moved = (model.prototypes - model.anchors).square().sum() / 2
    return float(loss + penalty.of_weights(model.weights) + penalty.anchor * moved)


def error_signal(matched: Tensor, weights: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """g_ij = q_ij sum_l (1[l = y_i] - c_il)(w_lj - w_l . q_i), and the errors 1[l = y_i] - c_il.

    Args:
        matched: (N, J) matches.
        weights: (L, J)
        labels: (N,)

    Returns:
        (N, J) and (N, L)
    """
    logits = matched @ weights.mT
    errors = functional.one_hot(labels, len(weights)).to(logits) - logits.softmax(dim=1)
    return matched * (errors @ weights - (errors * logits).sum(dim=1, keepdim=True)), errors


def gradients(
    model: SoftPrototypes, matched: Tensor, rows: Tensor, labels: Tensor, penalty: Penalty
) -> tuple[Tensor, Tensor]:
    """dC/dp (J, D), and dC/dW (L, J) without the penalty of the weights, from the matches (N, J) of the rows."""
    signal, errors = error_signal(matched, model.weights, labels)
    return _slope(model, signal, rows, penalty), -(errors.mT @ matched) / len(rows)


def _slope(model: SoftPrototypes, signal: Tensor, rows: Tensor, penalty: Penalty) -> Tensor:
    """dC/dp (J, D) from the error signal (N, J)."""
    pulled = signal.mT @ rows - signal.sum(dim=0)[:, None] * model.prototypes
    return -model.scale / len(rows) * pulled + penalty.anchor * (model.prototypes - model.anchors)


def fit_weights(
    matched: Tensor, labels: Tensor, classes: int, penalty: Penalty, tolerance: float = 1e-8
) -> tuple[Tensor, float]:
    """The convex fit of the class weights to matches (N, J).

    Returns:
        Weights (L, J), and the largest entry of the (sub)gradient there.
    """
    if penalty.norm == "l1":
        none = torch.full((matched.shape[1],), -1)
        found = solve_last_layer(matched, labels, none, classes, l1=penalty.alpha, tolerance=max(tolerance, 1e-7))
        return found.weights.double(), found.kkt
    weights = matched.new_zeros(classes, matched.shape[1])
    truth = functional.one_hot(labels, classes).to(matched)

    def value(tried: Tensor) -> float:
        return float(functional.cross_entropy(matched @ tried.mT, labels) + penalty.alpha / 2 * tried.square().sum())

    now = value(weights)
    for _ in range(100):
        shares = (matched @ weights.mT).softmax(dim=1)
        slope = (shares - truth).mT @ matched / len(matched) + penalty.alpha * weights
        if float(slope.abs().max()) <= tolerance:
            break
        step = _newton_step(matched, shares, slope, penalty.alpha)
        length, fall = 1.0, float((slope * step).sum())
        while (tried := value(weights + length * step)) > now + 1e-4 * length * fall and length > 1e-8:
            length /= 2
        if not tried < now:
            break
        weights, now = weights + length * step, tried
    return weights, float(slope.abs().max())


def _newton_step(matched: Tensor, shares: Tensor, slope: Tensor, ridge: float) -> Tensor:
    """-(Hessian + ridge)^-1 slope by conjugate gradients; the Hessian is never formed."""

    def times(direction: Tensor) -> Tensor:
        change = matched @ direction.mT
        change = shares * (change - (shares * change).sum(dim=1, keepdim=True))
        return change.mT @ matched / len(matched) + ridge * direction

    step, left = torch.zeros_like(slope), -slope
    direction, size = left, float(left.square().sum())
    goal = 1e-4 * size
    for _ in range(4 * slope.numel()):
        if size <= goal:
            break
        product = times(direction)
        length = size / float((direction * product).sum())
        step, left = step + length * direction, left - length * product
        before, size = size, float(left.square().sum())
        direction = left + size / before * direction
    return step


def prototype_step(model: SoftPrototypes, rows: Tensor, labels: Tensor, penalty: Penalty) -> SoftPrototypes:
    """One step of the weighted k-means: as far towards the weighted means as the objective falls.

    The weights s g_ij / N are signed; each prototype moves along its gradient divided by the sum of their absolute
    values. Where nothing falls the model comes back as it is.
    """
    matched = matches(rows, model.prototypes, model.scale)
    signal, _ = error_signal(matched, model.weights, labels)
    slope = _slope(model, signal, rows, penalty)
    mass = model.scale / len(rows) * signal.abs().sum(dim=0) + penalty.anchor
    step = -slope / mass.clamp_min(torch.finfo(slope.dtype).tiny)[:, None]
    now, fall = _value(model, matched, labels, penalty), float((slope * step).sum())
    length = 1.0
    while length > 1e-6:
        tried = replace(model, prototypes=model.prototypes + length * step)
        if objective(tried, rows, labels, penalty) < now + 1e-4 * length * fall:
            return tried
        length /= 2
    return model


def estimate(
    model: SoftPrototypes, rows: Tensor, labels: Tensor, penalty: Penalty, *, rounds: int = 50, tolerance: float = 1e-5
) -> tuple[SoftPrototypes, list[float]]:
    """Alternate between the convex fit of the weights and a step of the prototypes.

    Args:
        model: where to start; its weights do not matter.
        rows: (N, D) float64.
        labels: (N,)
        penalty: terms of the objective.
        rounds: at most.
        tolerance: relative fall of the objective in a round at which it ends.

    Returns:
        The model and the objective after each half of a round, which never rises.
    """
    classes, history = len(model.weights), [math.inf]
    for _ in range(rounds):
        begun = history[-1]
        weights, _ = fit_weights(matches(rows, model.prototypes, model.scale), labels, classes, penalty)
        tried = replace(model, weights=weights)
        value = objective(tried, rows, labels, penalty)
        if value <= history[-1]:  # rounding at the minimum
            model = tried
            history.append(value)
        model = prototype_step(model, rows, labels, penalty)
        history.append(objective(model, rows, labels, penalty))
        if math.isfinite(begun) and begun - history[-1] <= tolerance * abs(begun):
            break
    return model, history[1:]


def refine(
    model: SoftPrototypes, rows: Tensor, labels: Tensor, penalty: Penalty, *, steps: int = 100
) -> SoftPrototypes:
    """Lower the objective in prototypes and weights together (L-BFGS); with L1 in the prototypes, then the weights.

    The result is never worse than the start.
    """
    shape, count = model.prototypes.shape, model.prototypes.numel()
    joint = penalty.norm == "l2"

    def unpack(values: Tensor) -> SoftPrototypes:
        weights = values[count:].reshape(model.weights.shape) if joint else model.weights
        return replace(model, prototypes=values[:count].reshape(shape), weights=weights)

    def cost(values: "object") -> tuple[float, "object"]:
        tried = unpack(torch.as_tensor(values))
        matched = matches(rows, tried.prototypes, tried.scale)
        of_prototypes, of_weights = gradients(tried, matched, rows, labels, penalty)
        parts = [of_prototypes.flatten()]
        if joint:
            parts.append((of_weights + penalty.alpha * tried.weights).flatten())
        return _value(tried, matched, labels, penalty), torch.cat(parts).numpy()

    start = torch.cat([model.prototypes.flatten(), model.weights.flatten()] if joint else [model.prototypes.flatten()])
    found = scipy.optimize.minimize(
        cost, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": steps, "maxcor": 20}
    )
    refined = unpack(torch.as_tensor(found.x))
    weights, _ = fit_weights(matches(rows, refined.prototypes, refined.scale), labels, len(model.weights), penalty)
    tried = (replace(refined, weights=weights), refined, model)
    return min(tried, key=lambda one: objective(one, rows, labels, penalty))
