"""Networks of several branches, whose features one affine head reads together (HEADS kind A5).

An image is one row: what is pooled of every branch, side by side, each read by its own columns of V. Nothing is placed:
a branch may hold class tokens or states of a recurrence, which look like positions but are none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.readouts.pooled_heads import PositionWeights, is_affine, position_weights, probe_vectors
from protonmf_cli.models.readouts.readout import Network, Probe, Reading, Readout


@dataclass(frozen=True, kw_only=True)
class BranchesReadout(Readout):
    """The pooled branches side by side."""

    branches: tuple[PositionWeights, ...]
    """How each branch is pooled."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        features = network.forward_features(pixels)
        pooled = [
            (branch.layout.rows(part) * branch.values[:, None]).sum(dim=1)
            for branch, part in zip(self.branches, features, strict=True)
        ]
        return Reading(rows=torch.cat(pooled, dim=1)[:, None], logits=network.forward_head(features))


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
    return BranchesReadout(
        kind="branches",
        vectors=torch.cat(vectors, dim=1),
        bias=network.forward_head([torch.zeros_like(part[:1]) for part in parts])[0],
        grid=None,
        unplaced=("pooled branches",),
        branches=tuple(found),
    )


def _head_of(network: Network, parts: Sequence[Tensor], number: int) -> Callable[[Tensor], Tensor]:
    """The head as a function of one branch, the others zero."""

    def head(part: Tensor) -> Tensor:
        others = [torch.zeros_like(each[:1]).expand(len(part), *each.shape[1:]) for each in parts]
        found: Tensor = network.forward_head([part if n == number else other for n, other in enumerate(others)])
        return found

    return head
