"""Heads that read a weighted sum of positions: affine ones, and pool -> norm -> linear."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.norms import FoldedNorm
from protonmf_cli.models.readout import (
    FORMULA_LIMIT,
    Network,
    Probe,
    Reading,
    Readout,
    find_classifier,
    record_head,
    relative_difference,
    weight_and_bias,
)

MOST_TOKENS_IN_ONE_ROW = 8
BLOCK_NUMBERS = 2**23
"""Numbers in one probing batch of the head: 64 MiB in float64."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a feature tensor (without its batch axis) holds positions and channels."""

    shape: tuple[int, ...]
    channel_axis: int
    """1-based within the batch: 1 for NCHW and channels-first tokens, -1 for NHWC and tokens."""

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the axes that are positions."""
        axis = self.channel_axis - 1 if self.channel_axis > 0 else len(self.shape) - 1
        return self.shape[:axis] + self.shape[axis + 1 :]

    def rows(self, features: Tensor) -> Tensor:
        """(B, ...) features as (B, N, D) rows."""
        moved = features.movedim(self.channel_axis, -1)
        return moved.reshape(len(features), -1, moved.shape[-1])

    def features(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows.reshape(len(rows), *self.positions, rows.shape[-1]).movedim(-1, self.channel_axis)


@dataclass(frozen=True, kw_only=True)
class PositionWeights:
    """Layout of the features and how much of each position the head reads."""

    layout: Layout
    values: Tensor
    """(N,) adding up to 1; zero where the head does not look."""


@dataclass(frozen=True, kw_only=True)
class AveragedReadout(Readout):
    """r_n = a_n h_n, for every head that is affine in the features (HEADS kinds A1, A2)."""

    layout: Layout
    order: Tensor
    """(T,) positions that are rows, placed ones first."""
    weights: Tensor
    """(T,) a_n."""
    norm: FoldedNorm | None = None
    """The norm between pool and classifier, if there is one (kind B1)."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        features = network.forward_features(pixels)
        logits = network.forward_head(features)
        rows = self.layout.rows(features)[:, self.order] * self.weights[:, None]
        if self.norm is not None:
            rows = self.norm.rows(rows, rows.sum(dim=1))
        return Reading(rows=rows, logits=logits)


@dataclass(frozen=True, kw_only=True)
class JoinedReadout(Readout):
    """One row per image: the few tokens that an affine head reads with different weights, side by side."""

    layout: Layout
    order: Tensor

    def read(self, network: Network, pixels: Tensor) -> Reading:
        features = network.forward_features(pixels)
        logits = network.forward_head(features)
        return Reading(rows=self.layout.rows(features)[:, self.order].flatten(1)[:, None], logits=logits)


def affine_head(network: Network, probe: Probe) -> Readout | None:
    """Readout of a head that is affine in one feature tensor; None for any other head.

    Runs on float64 features (B, ...). Whatever lies between pool and logits (batch norms, two averaged
    classifiers, convolutions) is folded into V by feeding unit features.
    """
    features = probe.features
    if not isinstance(features, Tensor) or not is_affine(network.forward_head, features):
        return None
    found = position_weights(network.forward_head, features)
    if found is None:
        return joined_tokens(network.forward_head, features)

    bias, vectors = probe_vectors(network.forward_head, found, features)
    order, grid, unplaced = _places(network, found)
    return AveragedReadout(
        kind="average" if grid else "single-row",
        vectors=vectors,
        bias=bias,
        grid=grid,
        unplaced=unplaced,
        layout=found.layout,
        order=order,
        weights=found.values[order],
    )


def normalised_head(network: Network, probe: Probe) -> Readout | None:
    """Readout of pool -> norm -> linear; None for any other head."""
    features = probe.features
    if not isinstance(features, Tensor):
        return None
    logits, calls = record_head(network, features)
    classifier = find_classifier(calls, logits)
    found = position_weights(network.forward_head, features)
    if classifier is None or found is None:
        return None
    order, grid, unplaced = _places(network, found)
    pooled = (found.layout.rows(features)[:, order] * found.values[order][:, None]).sum(dim=1)
    for call in reversed(calls):
        seen, gone = call.inputs.flatten(1), call.outputs.flatten(1)
        if seen.shape != pooled.shape or gone.shape != classifier.inputs.flatten(1).shape:
            continue
        if relative_difference(seen, pooled) > FORMULA_LIMIT or not torch.equal(gone, classifier.inputs.flatten(1)):
            continue
        norm = FoldedNorm.identify(call.module, seen, gone)
        if norm is not None:
            vectors, bias = weight_and_bias(classifier.module)
            return AveragedReadout(
                kind="scaled" if grid else "single-row",
                vectors=vectors,
                bias=bias + vectors @ norm.shift,
                grid=grid,
                unplaced=unplaced,
                layout=found.layout,
                order=order,
                weights=found.values[order],
                norm=norm,
            )
    return None


def position_weights(head: Callable[[Tensor], Tensor], features: Tensor) -> PositionWeights | None:
    """Find the axis of positions and their weights: along it the gradient of every logit keeps its direction."""
    sample = _random_like(features[:1], seed=3)
    for axis in {2: (1,), 3: (-1, 1), 4: (1, -1)}.get(features.ndim, ()):
        layout = Layout(shape=tuple(features.shape[1:]), channel_axis=axis)
        first, second = (_relative_weights(layout.rows(_gradient(head, sample, seed))[0]) for seed in (4, 5))
        if first is not None and second is not None and torch.allclose(first, second, atol=1e-9):
            return PositionWeights(layout=layout, values=first)
    return None


def _gradient(head: Callable[[Tensor], Tensor], features: Tensor, seed: int) -> Tensor:
    """Gradient of a random mix of logits with respect to the features."""
    with torch.enable_grad():
        leaf = features.detach().clone().requires_grad_()
        logits = head(leaf)
        (gradient,) = torch.autograd.grad(logits, leaf, _random_like(logits, seed))
    return gradient


def _relative_weights(gradient: Tensor) -> Tensor | None:
    """(N, D) gradient -> (N,) weights adding up to 1 when all positions are proportional, else None."""
    strongest = gradient[gradient.norm(dim=1).argmax()]
    power = strongest @ strongest
    if power == 0:
        return None
    weights = gradient @ strongest / power
    if (gradient - weights[:, None] * strongest).norm(dim=1).max() > FORMULA_LIMIT * power.sqrt():
        return None
    weights = torch.where(weights.abs() < FORMULA_LIMIT, 0.0, weights)
    total = weights.sum()
    return weights / total if total > FORMULA_LIMIT else None


def joined_tokens(head: Callable[[Tensor], Tensor], features: Tensor) -> JoinedReadout | None:
    """One row of the few tokens that an affine head reads (class and distillation tokens); None for any other."""
    if features.ndim != 3 or not is_affine(head, features):
        return None
    layout = Layout(shape=tuple(features.shape[1:]), channel_axis=-1)
    active = _gradient(head, _random_like(features[:1], seed=3), 4)[0].norm(dim=1) > 0
    order = active.nonzero()[:, 0]
    if not 1 <= len(order) <= MOST_TOKENS_IN_ONE_ROW:
        return None
    count, width = features.shape[1:]

    def place(rows: Tensor) -> Tensor:
        filled = rows.new_zeros(len(rows), count, width)
        filled[:, order] = rows.reshape(len(rows), len(order), width)
        return filled

    bias, vectors = _probe(head, place, len(order) * width, features)
    names = ("tokens " + ", ".join(str(int(n)) for n in order),)
    return JoinedReadout(
        kind="single-row", vectors=vectors, bias=bias, grid=None, unplaced=names, layout=layout, order=order
    )


def probe_vectors(head: Callable[[Tensor], Tensor], found: PositionWeights, features: Tensor) -> tuple[Tensor, Tensor]:
    """Bias (C,) and V (C, D) of an affine head that reads positions with these weights."""

    def spread(rows: Tensor) -> Tensor:
        # a_n sums to 1, so a row put at every active position comes out of the pool as itself
        return found.layout.features(rows[:, None] * (found.values != 0)[:, None])

    return _probe(head, spread, found.layout.rows(features).shape[-1], features)


def _probe(
    head: Callable[[Tensor], Tensor], place: Callable[[Tensor], Tensor], width: int, features: Tensor
) -> tuple[Tensor, Tensor]:
    """Bias (C,) and V (C, D) of an affine head: its answers to zero and to every unit row."""
    bias = head(torch.zeros_like(features[:1]))[0]
    step = max(1, BLOCK_NUMBERS // features[0].numel())
    units = torch.eye(width, dtype=features.dtype, device=features.device)
    return bias, torch.cat([head(place(block)) - bias for block in units.split(step)]).mT.contiguous()


def is_affine(head: Callable[[Tensor], Tensor], features: Tensor) -> bool:
    """Whether a head is affine in its features, on two random mixtures."""
    first, second = _random_like(features, 1), _random_like(features, 2)
    mixed = head(0.3 * first + 0.7 * second)
    return relative_difference(0.3 * head(first) + 0.7 * head(second), mixed) <= FORMULA_LIMIT


def _places(network: Network, found: PositionWeights) -> tuple[Tensor, tuple[int, int] | None, tuple[str, ...]]:
    """Rows in order (placed first), their grid, and the names of the others."""
    positions = found.layout.positions
    active = found.values != 0
    count = active.numel()
    prefix = int(getattr(network, "num_prefix_tokens", 0)) if len(positions) == 1 else 0
    grid = grid_of(network, found.layout, prefix)
    if count == 1 or grid is None or not active[prefix:].all():
        order = active.nonzero()[:, 0]
        names = token_names(prefix) if prefix else ("pooled features",)
        labels = tuple(names[n] if n < len(names) else f"position {n + 1}" for n in order.tolist())
        return order, None, labels
    before = active[:prefix].nonzero()[:, 0]
    order = torch.cat([torch.arange(prefix, count, device=before.device), before])
    return order, grid, tuple(token_names(prefix)[n] for n in before.tolist())


def layouts_of(network: Network, features: Tensor) -> Iterator[tuple[Layout, int]]:
    """Ways to read a feature tensor: its layout, and how many tokens before the patches are left out."""
    shape, prefix = tuple(features.shape[1:]), int(getattr(network, "num_prefix_tokens", 0))
    for axis in {3: (-1, 1), 4: (1, -1)}.get(features.ndim, ()):
        layout = Layout(shape=shape, channel_axis=axis)
        for left_out in dict.fromkeys((prefix if len(layout.positions) == 1 else 0, 0)):
            yield layout, left_out


def token_names(prefix: int) -> tuple[str, ...]:
    """Names of the tokens before the patches."""
    return ("class token", *(f"register {n}" for n in range(1, prefix)))


def grid_of(network: Network, layout: Layout, prefix: int) -> tuple[int, int] | None:
    """Height and width of the grid that the positions after `prefix` tokens lie on; None where it is unknown."""
    positions = layout.positions
    return (positions[0], positions[1]) if len(positions) == 2 else patch_grid(network, math.prod(positions) - prefix)


def patch_grid(network: Network, patches: int) -> tuple[int, int] | None:
    """Height and width of the patch grid: what the network says, else a square, else None."""
    said = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if said is not None and len(said) == 2 and said[0] * said[1] == patches:
        return int(said[0]), int(said[1])
    side = round(patches**0.5)
    return (side, side) if patches > 1 and side * side == patches else None


def _random_like(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
