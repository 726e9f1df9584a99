"""Heads that read a weighted sum of positions: affine ones, and pool -> norm -> linear."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.readout import (
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
        return moved.reshape(features.shape[0], -1, moved.shape[-1])

    def features(self, rows: Tensor) -> Tensor:
        """The inverse of `rows`."""
        return rows.reshape(rows.shape[0], *self.positions, rows.shape[-1]).movedim(-1, self.channel_axis)


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
        if not self.spatial:
            rows = rows.sum(dim=1, keepdim=True)
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
        return _joined_tokens(network.forward_head, features)

    bias, vectors = probe_vectors(network.forward_head, found, features)
    order, grid, unplaced = _places(network, found, probe)
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
    order, grid, unplaced = _places(network, found, probe)
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


def _joined_tokens(head: Callable[[Tensor], Tensor], features: Tensor) -> Readout | None:
    order = _few_tokens(head, features)
    if order is None:
        return None
    bias, vectors = probe_tokens(head, order, features)
    return JoinedReadout(
        kind="single-row",
        vectors=vectors,
        bias=bias,
        grid=None,
        unplaced=("tokens " + ", ".join(str(int(n)) for n in order),),
        layout=Layout(shape=tuple(features.shape[1:]), channel_axis=-1),
        order=order,
    )


def position_weights(head: Callable[[Tensor], Tensor], features: Tensor) -> PositionWeights | None:
    """Find the axis of positions and their weights: along it the gradient of every logit keeps its direction.

    A head with one logit keeps it along every axis; there the positions are those with equal weights.
    """
    sample = _random_like(features[:1], seed=3)
    gradients = [_gradient(head, sample, seed) for seed in (4, 5)]
    fitting = []
    for axis in {2: (1,), 3: (-1, 1), 4: (1, -1)}.get(features.ndim, ()):
        layout = Layout(shape=tuple(features.shape[1:]), channel_axis=axis)
        first, second = (_relative_weights(layout.rows(gradient)[0]) for gradient in gradients)
        if first is not None and second is not None and torch.allclose(first, second, atol=1e-9):
            fitting.append(PositionWeights(layout=layout, values=first))
    if len(fitting) > 1:
        fitting = [found for found in fitting if _are_equal(found.values)]
    return fitting[0] if len(fitting) == 1 else None


def _are_equal(weights: Tensor) -> bool:
    """Whether all weights that are not zero are the same."""
    active = weights[weights != 0]
    return torch.allclose(active, active[:1].expand_as(active), rtol=1e-9)


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


def tokens_read(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor | None:
    """(Q,) positions of the few tokens (class, distillation) that an affine head reads; None for any other head."""
    order = _few_tokens(head, features) if is_affine(head, features) else None
    if order is not None and len(order) > 1 and position_weights(head, features) is not None:
        return None  # an average of patches
    return order


def _few_tokens(head: Callable[[Tensor], Tensor], features: Tensor) -> Tensor | None:
    """(Q,) positions of tokens whose gradient is not zero, where they are few."""
    if features.ndim != 3:
        return None
    active = _gradient(head, _random_like(features[:1], seed=3), 4)[0].norm(dim=1) > 0
    order = active.nonzero()[:, 0]
    return order if 1 <= len(order) <= MOST_TOKENS_IN_ONE_ROW else None


def probe_tokens(head: Callable[[Tensor], Tensor], order: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
    """Bias (C,) and V (C, Q D) of an affine head that reads the tokens at these positions, side by side."""
    count, width = features.shape[1:]

    def place(rows: Tensor) -> Tensor:
        filled = rows.new_zeros(len(rows), count, width)
        filled[:, order] = rows.reshape(len(rows), len(order), width)
        return filled

    return _probe(head, place, len(order) * width, features)


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


def _places(
    network: Network, found: PositionWeights, probe: Probe
) -> tuple[Tensor, tuple[int, int] | None, tuple[str, ...]]:
    """Positions in order (placed first), their grid, and the names of the rows without a place."""
    active = found.values != 0
    count = active.numel()
    prefix = prefix_of(network) if len(found.layout.positions) == 1 else 0
    grid = grid_of(network, found.layout, prefix, probe.pixels)
    order = active.nonzero()[:, 0]
    if count > 1 and grid is not None and active[prefix:].all():
        before = order[order < prefix]
        names = token_names(network, prefix)
        return torch.cat([order[order >= prefix], before]), grid, tuple(names[n] for n in before.tolist())
    if len(order) == 1 and order[0] < prefix:
        return order, None, (token_names(network, prefix)[int(order[0])],)
    return order, None, ("pooled features",)


def layouts_of(network: Network, features: Tensor) -> Iterator[tuple[Layout, int]]:
    """Ways to read a feature tensor: its layout, and how many tokens before the patches are left out."""
    shape, prefix = tuple(features.shape[1:]), prefix_of(network)
    for axis in {3: (-1, 1), 4: (1, -1)}.get(features.ndim, ()):
        layout = Layout(shape=shape, channel_axis=axis)
        for left_out in dict.fromkeys((prefix if len(layout.positions) == 1 else 0, 0)):
            yield layout, left_out


def prefix_of(network: Network) -> int:
    """How many tokens stand before the patches, as timm's transformers say."""
    return int(getattr(network, "num_prefix_tokens", 0))


def token_names(network: Network, prefix: int, read: int = 0) -> tuple[str, ...]:
    """Names of the tokens before the patches, of which a head reads the first ones as class tokens."""
    own = read or sum(getattr(network, name, None) is not None for name in ("cls_token", "dist_token"))
    names = ("class token", "distillation token")[: min(own, prefix)]
    return (*names, *(f"register {n}" for n in range(1, prefix - len(names) + 1)))


def grid_of(network: Network, layout: Layout, prefix: int, pixels: Tensor) -> tuple[int, int] | None:
    """Height and width of the grid that the positions after `prefix` tokens lie on; None where it is unknown."""
    positions = layout.positions
    if len(positions) == 2:
        return positions[0], positions[1]
    return patch_grid(network, math.prod(positions) - prefix, pixels)


def patch_grid(network: Network, patches: int, pixels: Tensor) -> tuple[int, int] | None:
    """Height and width of a grid of so many patches that covers images (B, channels, H, W) evenly; None without one.

    Patches are square, or have the shape that the network's first layer cuts.
    """
    size = getattr(getattr(network, "patch_embed", None), "patch_size", None)
    down_by, across_by = size if isinstance(size, list | tuple) and len(size) == 2 else (1, 1)
    height, width = pixels.shape[-2] / down_by, pixels.shape[-1] / across_by
    pairs = [(down, patches // down) for down in range(1, patches + 1) if patches % down == 0]
    uneven = {pair: abs(pair[0] * width - pair[1] * height) for pair in pairs}
    best = min(pairs, key=uneven.__getitem__, default=None)
    # a stride that does not divide the image rounds each side by less than one patch
    return best if best is not None and patches > 1 and uneven[best] < max(height, width) else None


def _random_like(tensor: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(tensor)
