"""Newton steps for cross-entropy with an L1 penalty on some weights of a linear layer.

    F(W) = mean_i CrossEntropy(S_i W^T, y_i) + sum over (k, j) of penalty_kj |W_kj|

Every step is a damped Newton step on few of the weights: those that are not penalised, those that are not zero, and
those whose slope at zero exceeds the penalty. Within the orthant of their signs the penalty is linear, so a step
minimises a quadratic with sign constraints, by exchanging which weights are held at zero. Up to `DIRECT` weights share
one dense Hessian. Above it only the blocks of weights of one class are formed; they find the weights held at zero and
precondition conjugate gradients, whose products with the whole Hessian take two products with S each.

Reference: Andrew and Gao 2007 (OWL-QN); Byrd, Chin, Nocedal and Oztoprak 2012 (second-order methods for L1); Portugal,
Judice and Vicente 1994 (block pivoting).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

DIRECT = 1500
"""Most weights that share one dense Hessian."""
BLOCK = 256
"""Most weights of one class that share a block of the preconditioner."""
PIVOTS = 12
ROUNDS = 5
PRODUCTS = 60
"""Limits within one iteration: exchanges, solutions by conjugate gradients, and steps of one of these."""


@dataclass(frozen=True)
class Point:
    """Weights, and what they give."""

    weights: Tensor
    """(C, P) float64"""
    logits: Tensor
    """(N, C) float64"""
    value: float


@dataclass(frozen=True)
class Task:
    """Activations, labels and penalties of one problem, in the precisions that the steps need."""

    rows: Tensor
    """(N, P) float64"""
    quick: Tensor
    """(N, P) float32, for products with the Hessian"""
    columns: Tensor
    """(P, N) float32, for the Hessian itself"""
    reach: float
    """Largest absolute entry."""
    labels: Tensor
    own: Tensor
    """(C, P) bool: the weights that are not penalised"""
    penalty: Tensor
    """(C, P) float64: zero for own-class weights"""

    @classmethod
    def of(cls, activations: Tensor, labels: Tensor, owner: Tensor, classes: int, l1: float) -> Self:
        _check(activations, labels, owner, classes, l1)
        device = torch.device("cpu") if activations.device.type == "mps" else activations.device
        quick = activations.detach().to(device=device, dtype=torch.float32).contiguous()
        own = torch.arange(classes, device=device)[:, None] == owner.to(device)
        return cls(
            rows=activations.detach().to(device).double().contiguous(),
            quick=quick,
            columns=quick.T.contiguous(),
            reach=float(quick.abs().max()),
            labels=labels.to(device=device, dtype=torch.int64),
            own=own,
            penalty=torch.full(own.shape, l1, dtype=torch.float64, device=device).masked_fill(own, 0.0),
        )

    def checked(self, weights: Tensor) -> Tensor:
        if weights.shape != self.own.shape or not bool(weights.isfinite().all()):
            raise ValueError(f"expected finite weights of shape {tuple(self.own.shape)}, got {tuple(weights.shape)}")
        return weights.detach().to(self.rows.device).double()

    def start(self, weights: Tensor | None) -> Point:
        """The given weights or the usual ones, each column shifted to its least penalty.

        A constant added to a column adds the same to all logits of an image and leaves the cross-entropy alone;
        the penalty is least where the median of the off-class weights is zero. (+1, -0.5) becomes (+1.5, 0).
        """
        own = self.own
        W = torch.where(own, 1.0, -0.5).double() if weights is None else self.checked(weights)
        median = W.masked_fill(own, torch.nan).nanmedian(dim=0).values.nan_to_num()
        W = W - median
        logits = self.rows @ W.T
        return Point(W, logits, self.value(W, logits))

    def value(self, W: Tensor, logits: Tensor) -> float:
        return float(_cross_entropy(logits, self.labels) + (self.penalty * W.abs()).sum())

    def slope(self, point: Point) -> tuple[Tensor, Tensor]:
        """Class probabilities (N, C) and the subgradient of least norm (C, P)."""
        shares = point.logits.softmax(dim=1)
        excess = shares.clone()
        excess[torch.arange(len(shares), device=shares.device), self.labels] -= 1
        G, W = excess.T @ self.rows / len(shares), point.weights
        at_zero = G.sign() * (G.abs() - self.penalty).clamp_min(0)
        return shares, torch.where(W != 0, G + self.penalty * W.sign(), at_zero)

    def measure(self, W: Tensor) -> tuple[float, float, float]:
        """Objective, cross-entropy and residual of weights given in float64."""
        logits = self.rows @ W.T
        point = Point(W, logits, self.value(W, logits))
        return point.value, float(_cross_entropy(logits, self.labels)), float(self.slope(point)[1].abs().max())


@dataclass(frozen=True)
class Quadratic:
    """slope d + d (Hessian + damping) d / 2 over the n chosen weights, none of which may change its sign."""

    task: Task
    shares: Tensor
    """(N, C) class probabilities"""
    k: Tensor
    """(n,) class of each chosen weight, ascending"""
    j: Tensor
    """(n,) its prototype"""
    weights: Tensor
    slope: Tensor
    sign: Tensor
    """(n,) the sign to keep; 0 where it is free"""
    blocks: list[tuple[slice, Tensor]]
    """Diagonal blocks of the Hessian; one block is all of it."""
    damping: Tensor
    slack: float
    """Slopes below this do not free a weight that is held at zero."""

    def times(self, d: Tensor) -> Tensor:
        """Hessian times d."""
        if len(self.blocks) == 1:
            return self.blocks[0][1] @ d
        D = self.task.quick.new_zeros(self.task.own.shape)
        D[self.k, self.j] = d.float()
        change = (self.task.quick @ D.T).double()
        change = self.shares * (change - (self.shares * change).sum(dim=1, keepdim=True))
        return (change.float().T @ self.task.quick)[self.k, self.j].double() / len(change)

    def blocks_times(self, d: Tensor) -> Tensor:
        return torch.cat([H @ d[part] for part, H in self.blocks])

    def factors(self, free: Tensor) -> list[Tensor]:
        """Cholesky factors of the damped blocks, restricted to the free weights."""
        found = []
        for part, H in self.blocks:
            chosen = free[part]
            A = H * (chosen[:, None] & chosen)
            A.diagonal().add_(torch.where(chosen, self.damping[part], 1.0))
            found.append(torch.linalg.cholesky_ex(A).L)
        return found

    def solve(self, factors: list[Tensor], right: Tensor) -> Tensor:
        parts = zip(self.blocks, factors, strict=True)
        return torch.cat([torch.cholesky_solve(right[part, None], L)[:, 0] for (part, _), L in parts])

    def residual(self, d: Tensor, Hd: Tensor) -> Tensor:
        return -(self.slope + Hd + self.damping * d)

    def value(self, d: Tensor, Hd: Tensor) -> float:
        return float(self.slope @ d + 0.5 * d @ (Hd + self.damping * d))

    def crosses(self, d: Tensor) -> Tensor:
        """Which weights the step d takes across zero."""
        return (self.weights + d) * self.sign < 0


def quadratic(task: Task, point: Point, shares: Tensor, slope: Tensor, damping: float, slack: float) -> Quadratic:
    """The damped second-order model of F at a point, over the weights chosen for the next step.

    Args:
        task, point: the problem and where it stands.
        shares, slope: as `Task.slope` gives them.
        damping: relative to the Hessian's diagonal.
        slack: slopes below this do not free a weight that is held at zero.
    """
    W = point.weights
    k, j = _chosen(task, W, slope).nonzero(as_tuple=True)
    ends = [len(k)]
    if len(k) > DIRECT:
        sizes = torch.bincount(k, minlength=len(W)).tolist()
        ends = [min(BLOCK, size - begin) for size in sizes for begin in range(0, size, BLOCK)]
    blocks, begin = [], 0
    by_class = shares.T.contiguous()
    for size in ends:
        part = slice(begin, begin + size)
        blocks.append((part, _curvature(task.columns, by_class, k[part], j[part])))
        begin += size
    scale = torch.cat([H.diagonal() for _, H in blocks])
    sign = torch.where(W != 0, W.sign(), -slope.sign()).masked_fill(task.own, 0.0)
    steep = task.reach * slope[k, j].abs().max()  # images far on the wrong side have a slope but no curvature
    floor = 1e-3 * scale.mean() + 1e-5 * steep
    return Quadratic(
        task=task,
        shares=shares,
        k=k,
        j=j,
        weights=W[k, j],
        slope=slope[k, j],
        sign=sign[k, j],
        blocks=blocks,
        damping=damping * (scale + floor) + 1e-10,
        slack=slack,
    )


def _chosen(task: Task, W: Tensor, slope: Tensor) -> Tensor:
    """(C, P) bool: the weights of the next step.

    Zeros are let in once the others are about as near to their optimum, the steepest first and at most as many
    as there are others: most of those that are steep at the start are not in the solution. With a dense Hessian
    an iteration costs little for the weights that are let in too early, so they need not wait as long.
    """
    kept = task.own | (W != 0)
    inside, outside = slope.abs().masked_fill(~kept, 0.0).max(), slope.abs().masked_fill(kept, 0.0)
    count = int(kept.sum())
    least = torch.maximum(0.3 * outside.max(), (0.6 if 2 * count <= DIRECT else 1.0) * inside)
    room = max(20, count)
    if int((outside > 0).sum()) > room:
        least = torch.maximum(least, outside.flatten().topk(room).values[-1])
    return kept | ((outside > 0) & (outside >= least))


def _curvature(columns: Tensor, shares: Tensor, k: Tensor, j: Tensor) -> Tensor:
    """(n, n) Hessian of the mean cross-entropy over the weights (k_a, j_a), k ascending.

    H_ab = mean_i s_ij_a s_ij_b (p_ik_a [k_a = k_b] - p_ik_a p_ik_b). Within a class p (1 - p) is formed in float64
    before it is rounded: near p = 1 the two terms nearly cancel.
    """
    classes, sizes = (x.tolist() for x in k.unique_consecutive(return_counts=True))
    A = columns[j]
    weighted = A * shares[k].to(A) if len(classes) > 1 else A
    H = -(weighted @ weighted.T) if len(classes) > 1 else A.new_empty(len(j), len(j))
    begin = 0
    for c, size in zip(classes, sizes, strict=True):
        part = slice(begin, begin + size)
        H[part, part] = (A[part] * (shares[c] * (1 - shares[c])).to(A)) @ A[part].T
        begin += size
    return H.double() / A.shape[1]


def advance(task: Task, point: Point, model: Quadratic, damping: float, tolerance: float) -> tuple[Point, float, bool]:
    """One Newton step, the damping of the next one, and whether going on can help."""
    found = _pivot(model)
    if found is None:
        return point, 10 * damping, damping < 1e8
    d, free = found
    d, Hd = (d, model.times(d)) if len(model.blocks) == 1 else _refine(model, d, free, tolerance)
    fall = float(model.slope @ d)
    predicted = -(fall + 0.5 * float(d @ Hd))
    after, step, ratio = _search(task, point, model, d, fall, predicted, tolerance)
    if step == 0:
        return point, 100 * damping, damping < 1e8
    if ratio > 0.75:
        damping = max(damping / 5, 1e-7)
    elif ratio < 0.25:
        damping *= 5 / step**0.5
    return after, damping, True


def _pivot(model: Quadratic) -> tuple[Tensor, Tensor] | None:
    """Minimise the model with the Hessian's blocks alone by exchanging which weights are held at zero.

    Returns:
        The step and the weights it leaves free; None if no step was found that lowers the model.
    """
    free = torch.ones_like(model.slope, dtype=torch.bool)
    best, lowest, fewest, patience = None, 0.0, len(free) + 1, 3
    for _ in range(PIVOTS):
        d = torch.where(free, 0.0, -model.weights)
        right = model.residual(d, model.blocks_times(d))
        d = d + model.solve(model.factors(free), torch.where(free, right, 0.0))
        crossing = free & model.crosses(d)
        inward = ~free & (model.residual(d, model.blocks_times(d)) * model.sign > model.slack)
        feasible = torch.where(crossing | ~free, -model.weights, d)
        value = model.value(feasible, model.blocks_times(feasible))
        if value < lowest:
            best, lowest = (feasible, free & ~crossing), value
        wrong = crossing | inward
        count = int(wrong.sum())
        if count == 0:
            break
        if count < fewest:
            fewest, patience = count, 3
        elif patience > 0:
            patience -= 1
        else:  # exchanging one at a time cannot cycle
            last = torch.zeros_like(wrong)
            last[wrong.nonzero()[-1]] = True
            wrong = wrong & last
        free = free ^ wrong
    return best


def _refine(model: Quadratic, d: Tensor, free: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Minimise the model over the free weights with the whole Hessian, without changing a sign.

    Weights that would cross zero stop there if the model falls by enough of what it could; otherwise the step
    ends at the first of them, which is held from then on.

    Args:
        d: (n,) the step of the blocks, shortened and used only if nothing better is found.
        free: (n,) the weights it does not hold at zero.

    Returns:
        A step that lowers the model, and the Hessian times it.
    """
    x, Hx = torch.zeros_like(d), torch.zeros_like(d)
    for _ in range(ROUNDS):
        e, He = _conjugate_gradients(model, torch.where(free, x, -model.weights), free, tolerance)
        y, Hy, good = _clip(model, x, Hx, e, He)
        if good:
            return y, Hy
        crossing = model.crosses(e)
        if not crossing.any():
            break
        part = torch.where(crossing, (model.weights + x) / (x - e), torch.inf)
        hit = part <= part.min()
        x, Hx = torch.where(hit, -model.weights, x + part.min() * (e - x)), Hx + part.min() * (He - Hx)
        free = free & ~hit
    if model.value(x, Hx) < 0:
        return x, Hx
    Hd = model.times(d)
    length = min(1.0, float(-(model.slope @ d) / (d @ (Hd + model.damping * d))))
    return length * d, length * Hd


def _clip(model: Quadratic, x: Tensor, Hx: Tensor, e: Tensor, He: Tensor) -> tuple[Tensor, Tensor, bool]:
    """A point between x and e with weights that cross zero put there, and whether the model is low enough at it."""
    before, after = model.value(x, Hx), model.value(e, He)
    y, Hy = e, He
    for part in (1.0, 0.5, 0.25, 0.125):
        y, Hy = x + part * (e - x), Hx + part * (He - Hx)
        crossing = model.crosses(y)
        if not crossing.any():
            return y, Hy, after < before
        kept = torch.where(crossing, -model.weights, y)
        y, Hy = kept, Hy + model.times(kept - y)
        if model.value(y, Hy) - before < 0.3 * part * (after - before) < 0:
            return y, Hy, True
    return y, Hy, False


def _conjugate_gradients(model: Quadratic, d: Tensor, free: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """From d, lower the model over the free weights until a tenth of their slope is left."""
    goal = max(0.1 * float(torch.where(free, model.slope, 0.0).abs().max()), 0.1 * tolerance)
    Hd = model.times(d) if d.any() else torch.zeros_like(d)
    right = torch.where(free, model.residual(d, Hd), 0.0)
    factors = model.factors(free)
    direction = z = model.solve(factors, right)
    size = right @ z
    for _ in range(PRODUCTS):
        if float(right.abs().max()) <= goal:
            break
        product = model.times(direction)
        damped = torch.where(free, product + model.damping * direction, 0.0)
        length = size / (direction @ damped)
        d, Hd, right = d + length * direction, Hd + length * product, right - length * damped
        z = model.solve(factors, right)
        size, before = right @ z, size
        direction = z + size / before * direction
    return d, Hd


def _search(
    task: Task, point: Point, model: Quadratic, d: Tensor, fall: float, predicted: float, tolerance: float
) -> tuple[Point, float, float]:
    """Double or halve a step along its line; without another product with S, since the logits are linear in it.

    Returns:
        The point, its step (0 if nothing lowers F) and the decrease of F by the whole step over the predicted one.
    """
    D = torch.zeros_like(point.weights)
    D[model.k, model.j] = d
    change = task.rows @ D.T

    def at(step: float) -> Point:
        W, logits = point.weights + step * D, point.logits + step * change
        return Point(W, logits, task.value(W, logits))

    step, best, noise = 1.0, at(1.0), 1e-13 * (1 + abs(point.value))
    ratio = (point.value - best.value) / predicted if predicted > noise else 1.0
    while ratio > 1.1 and 2 * step <= _room(model, d):  # classes that can be separated: F falls all the way
        further = at(2 * step)
        if not further.value < best.value - tolerance:
            break
        step, best = 2 * step, further
    while not best.value <= point.value + 1e-4 * step * fall + noise:
        step /= 2
        if step < 1e-8:
            return point, 0.0, ratio
        best = at(step)
    return best, step, ratio


def _room(model: Quadratic, d: Tensor) -> float:
    """How often the step fits before a weight reaches zero."""
    towards = d * model.sign < 0
    return float(torch.where(towards, -model.weights / d, 64.0).min())


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.logsumexp(dim=1) - logits.gather(1, labels[:, None])[:, 0]).mean()


def _check(activations: Tensor, labels: Tensor, owner: Tensor, classes: int, l1: float) -> None:
    if activations.ndim != 2 or not activations.numel():
        raise ValueError(f"expected activations of shape (N, P), N and P >= 1, got {tuple(activations.shape)}")
    broken = int((~activations.isfinite()).sum())
    if broken:
        raise ValueError(f"{broken} of {activations.numel()} activations are not finite")
    sizes = (tuple(labels.shape), tuple(owner.shape))
    if sizes != tuple((size,) for size in activations.shape):
        raise ValueError(f"{sizes[0]} labels and {sizes[1]} owners do not fit activations {tuple(activations.shape)}")
    if not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        raise ValueError(f"labels from {int(labels.min())} to {int(labels.max())} are outside 0..{classes - 1}")
    if not (int(owner.min()) >= -1 and int(owner.max()) < classes):
        raise ValueError(f"owners from {int(owner.min())} to {int(owner.max())} are outside -1..{classes - 1}")
    if not 0 <= l1 < float("inf"):
        raise ValueError(f"the weight of the penalty must be finite and >= 0, got {l1}")
