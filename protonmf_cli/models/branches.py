"""Networks of several branches, whose features one affine head reads together (HEADS kind A5).

Every branch keeps its own columns of V. Positions of a coarse branch are shared out over those of the finest branch
that they cover, so that all rows lie on one grid.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from protonmf_cli.models.pooled_heads import PositionWeights, grid_of, is_affine, position_weights, probe_vectors
from protonmf_cli.models.readout import Network, Probe, Reading, Readout

Grid = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Branches:
    """How each branch is read."""

    found: tuple[PositionWeights, ...]
    grids: tuple[Grid | None, ...]

    def rows(self, features: Sequence[Tensor], grid: Grid | None) -> Tensor:
        """(B, T, sum of D) rows on one grid; one row where there is none."""
        parts = []
        for branch, own, part in zip(self.found, self.grids, features, strict=True):
            rows = branch.layout.rows(part) * branch.values[:, None]
            parts.append(rows.sum(dim=1, keepdim=True) if grid is None or own is None else _spread(rows, own, grid))
        return torch.cat(parts, dim=2)

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """The same branches moved."""
        return replace(self, found=tuple(replace(b, values=b.values.to(device, dtype)) for b in self.found))


def _spread(rows: Tensor, own: Grid, grid: Grid) -> Tensor:
    """(B, h w, D) rows shared out over the places of a finer grid."""
    down, across = grid[0] // own[0], grid[1] // own[1]
    shared = rows.unflatten(1, own) / (down * across)
    return shared.repeat_interleave(down, dim=1).repeat_interleave(across, dim=2).flatten(1, 2)


@dataclass(frozen=True, kw_only=True)
class BranchesReadout(Readout):
    """The branches' features side by side."""

    branches: Branches

    def read(self, network: Network, pixels: Tensor) -> Reading:
        features = network.forward_features(pixels)
        rows = self.branches.rows(features, self.grid)
        return Reading(rows=rows, logits=network.forward_head(features))


def branches_head(network: Network, probe: Probe) -> Readout | None:
    """Readout of a head that is affine in a list of feature tensors; None for any other head."""
    features = probe.features
    if not isinstance(features, list | tuple) or not all(isinstance(part, Tensor) for part in features):
        return None
    parts = list(features)
    found, vectors = [], []
    for n, part in enumerate(parts):
        head = _head_of(network, parts, n)
        weights = position_weights(head, part) if is_affine(head, part) else None
        if weights is None:
            return None
        found.append(weights)
        vectors.append(probe_vectors(head, weights, part)[1])
    bias = network.forward_head([torch.zeros_like(part[:1]) for part in parts])[0]
    grids = [_grid(network, weights) for weights in found]
    grid = max((each for each in grids if each), default=None)
    if any(own is None or grid is None or grid[0] % own[0] or grid[1] % own[1] for own in grids):
        grid = None
    return BranchesReadout(
        kind="branches",
        vectors=torch.cat(vectors, dim=1),
        bias=bias,
        grid=grid,
        unplaced=() if grid else ("class tokens of the branches",),
        branches=Branches(found=tuple(found), grids=tuple(grids)),
    )


def _head_of(network: Network, parts: Sequence[Tensor], number: int) -> Callable[[Tensor], Tensor]:
    """The head as a function of one branch, the others zero."""

    def head(part: Tensor) -> Tensor:
        others = [torch.zeros_like(each[:1]).expand(len(part), *each.shape[1:]) for each in parts]
        return network.forward_head([part if n == number else other for n, other in enumerate(others)])

    return head


def _grid(network: Network, weights: PositionWeights) -> Grid | None:
    """The grid of a branch that is read at every position."""
    if not (weights.values != 0).all():
        return None
    return grid_of(network, weights.layout, 0)
