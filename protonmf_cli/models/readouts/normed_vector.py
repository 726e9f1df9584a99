"""Heads with a norm between an image's one vector and the classifier, where that vector is read like logits (CLIP).

    logits = V norm(u) + b,   u = sum_n r_n U^T + c

for rows r_n of any kind. A norm is affine with one scalar per image, so that it is folded into the rows r_n U^T; what
c gives has no place.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.readout import (
    Network,
    Probe,
    Reading,
    Readout,
    find_classifier,
    record_head,
    weight_and_bias,
)

CONSTANT = "constant"
"""Name of the row that is the same for every image but for its scalar."""


class VectorOf:
    """A network whose logits are the vector that goes into one of its norms."""

    def __init__(self, network: Network, norm: str) -> None:
        self._network, self._norm = network, norm

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, D) what goes into the norm, from features (B, ...)."""
        found: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...]) -> None:
            found.append(args[0])
            raise _Reached

        module = self._network.get_submodule(self._norm)
        with hooked([module.register_forward_pre_hook(stop)]), suppress(_Reached):
            self._network.forward_head(features)
        return found[0]


class _Reached(Exception):  # noqa: N818
    """The vector is there."""


@dataclass(frozen=True, kw_only=True)
class NormedVectorReadout(Readout):
    """Rows of a vector behind a norm, and a last one without a place for the vector's constant part."""

    inner: Readout
    """How the vector is read."""
    norm: FoldedNorm
    name: str
    """Of the norm inside the network."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        kept: list[Tensor] = []
        view = _Once(network, self.name, kept)
        found = self.inner.read(view, pixels)
        parts = found.rows @ self.inner.vectors.mT
        constant = self.inner.bias.expand_as(parts[:, :1])
        rows = self.norm.rows(torch.cat([parts, constant], dim=1), found.logits)
        return Reading(rows=rows, logits=network.forward_head(kept[0]))


class _Once(VectorOf):
    """The same, which keeps the features that its head was given first."""

    def __init__(self, network: Network, norm: str, kept: list[Tensor]) -> None:
        super().__init__(network, norm)
        self._kept = kept

    def forward_head(self, features: Tensor) -> Tensor:
        self._kept.append(features)
        return super().forward_head(features)


def normed_vector(
    network: Network, probe: Probe, *, ways: Sequence[Callable[[Network, Probe], Readout | None]]
) -> Readout | None:
    """Readout of a head vector -> norm -> linear, whose vector one of the ways reads; None for any other head.

    Runs on float64 features (B, ...).
    """
    if not isinstance(probe.features, Tensor):
        return None
    logits, calls = record_head(network, probe.features)
    classifier = find_classifier(calls, logits)
    if classifier is None or classifier.inputs.ndim != 2:
        return None
    for call in calls:
        if call.inputs.shape != classifier.inputs.shape or not torch.equal(call.outputs, classifier.inputs):
            continue
        norm = FoldedNorm.identify(call.module, call.inputs, call.outputs)
        if norm is None:
            continue
        view = VectorOf(network, call.name)
        inner = next((found for found in (way(view, probe) for way in ways) if found is not None), None)
        if inner is None:
            return None
        vectors, bias = weight_and_bias(classifier.module)
        return NormedVectorReadout(
            kind=f"{inner.kind}, normed",
            vectors=vectors,
            bias=bias + vectors @ norm.shift,
            grid=inner.grid,
            unplaced=(*inner.unplaced, CONSTANT),
            inner=inner,
            norm=norm,
            name=call.name,
        )
    return None
