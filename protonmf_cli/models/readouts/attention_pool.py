"""Attention pools: one query reads every position, so every position writes into the pooled vector (HEADS kind C1)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.models.readouts.attention import attention_of
from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.pooled_heads import patch_grid, prefix_of, token_names
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


@dataclass(frozen=True, kw_only=True)
class LatentPoolReadout(Readout):
    """A latent query: pooled = sum_n W_O (a_n v_n) + output bias + MLP write, then at most a norm (SigLIP's pool).

    The norm is folded over the sum. Tokens before the patches, the bias and the MLP write have no place.
    """

    prefix: int
    """Tokens before the patches that the pool reads."""
    norm: FoldedNorm | None

    def read(self, network: Network, pixels: Tensor) -> Reading:
        pool: Network = network.attn_pool
        with _watched(pool) as seen, attention_of([pool]) as found:
            logits = network.forward_head(network.forward_features(pixels))
        writes = found[pool][0].writes()[:, 0] @ pool.proj.weight.mT
        start = torch.zeros_like(writes[:, :1]) if pool.proj.bias is None else pool.proj.bias.expand_as(writes[:, :1])
        attended = writes.sum(dim=1, keepdim=True) + start
        mlp = torch.zeros_like(attended) if pool.mlp is None else pool.mlp(pool.norm(attended))
        rows = torch.cat([writes[:, self.prefix :], writes[:, : self.prefix], start, mlp], dim=1)
        return Reading(rows=rows if self.norm is None else self.norm.rows(rows, seen.pooled), logits=logits)


@dataclass(frozen=True, kw_only=True)
class MeanQueryReadout(Readout):
    """A query made of the mean of all positions, itself a token: r_n = a_n v_n, V = projection (CLIP's ResNets)."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        with attention_of([network.head]) as found:
            logits = network.forward_head(network.forward_features(pixels))
        writes = found[network.head][0].writes()[:, 0]
        return Reading(rows=torch.cat([writes[:, 1:], writes[:, :1]], dim=1), logits=logits)


def attention_pool(network: Network, probe: Probe) -> Readout | None:
    """Readout of an attention pool in front of the classifier; None for any other head."""
    features = probe.features
    if not isinstance(features, Tensor):
        return None
    if hasattr(getattr(network, "attn_pool", None), "latent"):
        return _latent_pool(network, probe, features)
    head: Network = getattr(network, "head", None)
    if features.ndim == 4 and isinstance(getattr(head, "proj", None), nn.Linear) and hasattr(head, "pool_type"):
        vectors, bias = weight_and_bias(head.proj)
        grid = (features.shape[2], features.shape[3])
        return MeanQueryReadout(kind="attention-pool", vectors=vectors, bias=bias, grid=grid, unplaced=("mean query",))
    return None


def _latent_pool(network: Network, probe: Probe, features: Tensor) -> Readout | None:
    pool: Network = network.attn_pool
    with _watched(pool) as seen:
        logits, calls = record_head(network, features)
    classifier = find_classifier(calls, logits)
    if classifier is None or not hasattr(seen, "pooled") or pool.latent_len != 1:
        return None
    norm, read = None, classifier.inputs.flatten(1)
    if read.shape != seen.pooled.shape:
        return None
    if relative_difference(read, seen.pooled) > FORMULA_LIMIT:
        found = (FoldedNorm.identify(call.module, seen.pooled, read) for call in calls)
        norm = next((each for each in found if each is not None), None)
        if norm is None:
            return None
    prefix = prefix_of(network)
    left_out = next((n for n in (0, prefix) if torch.equal(seen.tokens, features[:, n:])), None)
    grid = patch_grid(network, features.shape[1] - prefix, probe.pixels)
    if left_out is None or grid is None:
        return None
    vectors, bias = weight_and_bias(classifier.module)
    return LatentPoolReadout(
        kind="attention-pool",
        vectors=vectors,
        bias=bias if norm is None else bias + vectors @ norm.shift,
        grid=grid,
        unplaced=(*token_names(network, prefix)[left_out:], "output bias", "MLP write"),
        prefix=prefix - left_out,
        norm=norm,
    )


@dataclass
class _Seen:
    """What went into a module and came out during one pass."""

    tokens: Tensor = field(init=False)
    """(B, N, D)"""
    pooled: Tensor = field(init=False)
    """(B, D)"""


@contextmanager
def _watched(module: nn.Module) -> Iterator[_Seen]:
    seen = _Seen()

    def note(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        seen.tokens, seen.pooled = args[0].clone(), output.clone().flatten(1)

    with hooked([module.register_forward_hook(note)]):
        yield seen
