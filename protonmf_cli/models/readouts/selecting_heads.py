"""Heads that take the maximum over positions: every channel is read at the position that wins it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.readouts.pooled_heads import Layout, grid_of, layouts_of
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


def winners(rows: Tensor) -> Tensor:
    """(B, N, D) rows with each channel kept at the position of its maximum alone."""
    best = rows.argmax(dim=1, keepdim=True)
    return torch.zeros_like(rows).scatter(1, best, rows.gather(1, best))


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "max": winners,
    "avgmax": lambda rows: (winners(rows) + rows / rows.shape[1]) / 2,
    "catavgmax": lambda rows: torch.cat([rows / rows.shape[1], winners(rows)], dim=2),
}
"""(B, N, D) positions -> (B, N, D') rows that add up to what the pool gives."""


@dataclass(frozen=True, kw_only=True)
class SelectingReadout(Readout):
    """One row per position, with the channels that it wins."""

    layout: Layout
    prefix: int
    """Tokens before the patches, which the pool leaves out."""
    pool: str
    """Key of `POOLS`."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        features = network.forward_features(pixels)
        logits = network.forward_head(features)
        return Reading(rows=POOLS[self.pool](self.layout.rows(features)[:, self.prefix :]), logits=logits)


def selecting_head(network: Network, probe: Probe) -> Readout | None:
    """Readout of a pool with a maximum, then linear; None for any other head."""
    features = probe.features
    if not isinstance(features, Tensor):
        return None
    logits, calls = record_head(network, features)
    classifier = find_classifier(calls, logits)
    if classifier is None:
        return None
    seen = classifier.inputs.flatten(1)
    vectors, bias = weight_and_bias(classifier.module)
    for layout, prefix in layouts_of(network, features):
        rows = layout.rows(features)[:, prefix:]
        grid = grid_of(network, layout, prefix, probe.pixels)
        for name, pool in POOLS.items():
            pooled = pool(rows).sum(dim=1)
            if grid and pooled.shape == seen.shape and relative_difference(pooled, seen) <= FORMULA_LIMIT:
                return SelectingReadout(
                    kind=f"{name} pool", vectors=vectors, bias=bias, grid=grid, unplaced=(),
                    layout=layout, prefix=prefix, pool=name,
                )  # fmt: skip
    return None
