"""Class-token transformers: what every token wrote into the class token, layer by layer.

With t_n the sum over layers of token n's attention write into the class token, e the class token that
enters the first layer plus all attention output biases, and m the sum of the MLP writes,

    final class token = sum_n t_n + e + m

and the last norm, folded over the sum, turns each part into a row that the classifier reads. The patches'
rows have a place; the class token's write to itself, registers, e and m have none. A distillation token is read
like the class token, and its rows stand beside those of the class token.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.attention import Attended, attention_of
from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.pooled_heads import (
    is_affine,
    patch_grid,
    position_weights,
    prefix_of,
    probe_tokens,
    probe_vectors,
    token_names,
    tokens_read,
)
from protonmf_cli.models.readouts.readout import (
    FORMULA_LIMIT,
    HeadCall,
    Network,
    Probe,
    Reading,
    Readout,
    record_head,
    relative_difference,
    weight_and_bias,
)
from protonmf_cli.models.readouts.residual_stream import Layer, Stream, find_stream, first_tokens
from protonmf_cli.models.readouts.selecting_heads import winners


@dataclass(frozen=True, kw_only=True)
class TokenWritesReadout(Readout):
    """Rows of all layers of the stream; layers before them stay inside the start row."""

    stream: Stream
    queries: int
    """Q, the tokens that the classifier reads; a row is Q vectors side by side."""
    prefix: int
    """Tokens before the patches."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        rows, features = self._rows(network, pixels)
        return Reading(rows=rows, logits=network.forward_head(features))

    def _rows(self, network: Network, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, Q D) rows, and the features."""
        with _record(network, self.stream, self.queries) as seen:
            features = network.forward_features(pixels)
        tokens, prefix = seen.writes, self.prefix
        parts = torch.cat([tokens[:, :, prefix:], tokens[:, :, :prefix], seen.start, seen.mlp], dim=2)
        rows = self.stream.final.norm.rows(parts.flatten(0, 1), seen.final.flatten(0, 1))
        return rows.unflatten(0, parts.shape[:2]).transpose(1, 2).flatten(2), features


@dataclass(frozen=True, kw_only=True)
class VotedReadout(TokenWritesReadout):
    """A class-token head, to which every class adds half the logit of the one patch that wins it (VOLO).

    The winners' halves are C more columns of the patches' rows, each read by its own class alone.
    """

    votes: str
    """Name of the layer that gives every patch logits."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        rows, features = self._rows(network, pixels)
        votes = winners(network.get_submodule(self.votes)(features[:, self.prefix :])) / 2
        votes = nn.functional.pad(votes, (0, 0, 0, rows.shape[1] - votes.shape[1]))
        return Reading(rows=torch.cat([rows, votes], dim=2), logits=network.forward_head(features))


@dataclass(frozen=True, kw_only=True)
class MeanBesideReadout(TokenWritesReadout):
    """A head that reads the class token and the mean of the patches side by side (DINOv2).

    A patch's row is what it wrote into the class token, and beside it its own part of the mean.
    """

    def read(self, network: Network, pixels: Tensor) -> Reading:
        rows, features = self._rows(network, pixels)
        own = features[:, self.prefix :] / self.places
        own = nn.functional.pad(own, (0, 0, 0, rows.shape[1] - own.shape[1]))
        return Reading(rows=torch.cat([rows, own], dim=2), logits=network.forward_head(features))


def token_writes(network: Network, probe: Probe, *, first_layer: int = 0) -> Readout | None:
    """Readout through the tokens' writes, for a head that reads class tokens; None for any other.

    Runs on float64 features (B, N, D).
    """
    if not isinstance(probe.features, Tensor) or probe.features.ndim != 3:
        return None
    features = probe.features
    kind, order, more = _tokens_of(network, features)
    if order is None or order.tolist() != list(range(len(order))):
        return None
    queries = len(order)
    stream = find_stream(network, probe.pixels[:1], queries)
    if stream is None or features.shape[1] not in (queries, stream.tokens):
        return None
    prefix = max(prefix_of(network), queries)
    grid = patch_grid(network, stream.tokens - prefix, probe.pixels)
    if grid is None:
        return None
    vectors, bias = more.pop("head", None) or probe_tokens(network.forward_head, order, features)[::-1]
    beside = more.pop("beside", vectors[:, :0])
    return kind(
        vectors=torch.cat([vectors, beside], dim=1),
        bias=bias + vectors @ stream.final.norm.shift.repeat(queries),
        grid=grid,
        unplaced=(*token_names(network, prefix, queries), "start and biases", "MLP writes"),
        stream=replace(stream, layers=stream.layers[first_layer:]),
        queries=queries,
        prefix=prefix,
        **more,
    )


def _tokens_of(network: Network, features: Tensor) -> tuple[type[TokenWritesReadout], Tensor | None, dict[str, Any]]:
    """The kind of a head, which tokens it reads (None: it is of no kind here), and what only this kind has.

    "head" is V (C, D) and b (C,) for these tokens where they are known, "beside" what V has for further columns.
    """
    voted = _voted_head(network, features)
    if voted is not None:
        vectors, bias = weight_and_bias(voted[0].module)
        beside = torch.eye(len(vectors)).to(vectors)
        more = {"kind": "token-writes and votes", "head": (vectors, bias), "beside": beside, "votes": voted[1].name}
        return VotedReadout, torch.tensor([0]), more
    order = tokens_read(network.forward_head, features)
    found = _mean_beside(network, features) if order is None else None
    return (TokenWritesReadout, order, {"kind": "token-writes"}) if found is None else found


def _mean_beside(network: Network, features: Tensor) -> tuple[type[TokenWritesReadout], Tensor, dict[str, Any]] | None:
    """As `_tokens_of`, of an affine head that reads the mean of the patches beside the class token; else None."""
    prefix, head = prefix_of(network), network.forward_head
    if not prefix or not is_affine(head, features):
        return None

    def of_patches(patches: Tensor) -> Tensor:
        logits: Tensor = head(nn.functional.pad(patches, (0, 0, prefix, 0)))
        return logits

    patches, order = features[:, prefix:], torch.tensor([0])
    found = position_weights(of_patches, patches)
    if found is None or not torch.allclose(found.values, torch.full_like(found.values, 1 / len(found.values))):
        return None
    bias, vectors = probe_tokens(head, order, features)
    if not vectors.any():  # the mean alone
        return None
    beside = probe_vectors(of_patches, found, patches)[1]
    more = {"kind": "token-writes and mean", "head": (vectors, bias), "beside": beside}
    return MeanBesideReadout, order, more


def _voted_head(network: Network, features: Tensor) -> tuple[HeadCall, HeadCall] | None:
    """The layers for the class token and for the patches, where logits = one + half the other's maximum."""
    logits, calls = record_head(network, features)
    own = [c for c in calls if isinstance(c.module, nn.Linear) and torch.equal(c.inputs, features[:, 0])]
    votes = [c for c in calls if isinstance(c.module, nn.Linear) and torch.equal(c.inputs, features[:, 1:])]
    if len(own) != 1 or len(votes) != 1 or own[0].outputs.shape != logits.shape:
        return None
    found = own[0].outputs + votes[0].outputs.amax(dim=1) / 2
    return (own[0], votes[0]) if relative_difference(found, logits) <= FORMULA_LIMIT else None


@dataclass
class _Seen:
    """What was written into the first tokens, added up during one forward pass."""

    queries: int
    writes: Tensor = field(init=False)
    """(B, Q, N, D) sum over layers of each token's attention write."""
    start: Tensor = field(init=False)
    """(B, Q, 1, D) tokens entering the first layer, plus output biases."""
    mlp: Tensor = field(init=False)
    """(B, Q, 1, D) sum of the MLP writes."""
    final: Tensor = field(init=False)
    """(B, Q, D) tokens entering the last norm."""

    def begin(self, stream: Stream, entering: Tensor) -> None:
        """The first layer starts from tokens (B, Q, D)."""
        self.start = entering[:, :, None]
        self.writes = entering.new_zeros(*entering.shape[:2], stream.tokens, entering.shape[2])
        self.mlp = torch.zeros_like(self.start)

    def attend(self, layer: Layer, linear: Network, attended: Attended, output: Tensor) -> None:
        """A layer's attention has run."""
        taken = attended.writes()
        if layer.inner_norm is None and layer.write_norm is None:
            added = torch.addmm(self.writes.flatten(0, 2), taken.flatten(0, 2), linear.weight.mT * layer.scale)
            self.writes = added.view_as(self.writes)
            self.start = self.start if linear.bias is None else self.start + linear.bias * layer.scale
            return
        parts = torch.cat([taken, torch.zeros_like(taken[:, :, :1])], dim=2)  # the last one: what is written anyway
        if layer.inner_norm is not None:
            parts = _normed(parts, layer.inner_norm, taken.sum(dim=2))
        parts = parts @ linear.weight.mT
        if linear.bias is not None:
            parts[:, :, -1] += linear.bias
        if layer.write_norm is not None:
            parts = _normed(parts, layer.write_norm, output[:, : self.queries])
        parts *= layer.scale
        self.writes = self.writes + parts[:, :, :-1]
        self.start = self.start + parts[:, :, -1:]

    def add_mlp(self, layer: Layer, output: Tensor) -> None:
        """A layer's MLP has run."""
        self.mlp = self.mlp + (layer.mlp_scale * output[:, : self.queries])[:, :, None]

    def pass_norm(self, norm: FoldedNorm, entering: Tensor) -> None:
        """The stream itself passes a norm."""
        parts = torch.cat([self.writes, self.mlp, self.start], dim=2)
        parts = _normed(parts, norm, entering[:, : self.queries])
        self.writes, self.mlp, self.start = parts[:, :, :-2], parts[:, :, -2:-1], parts[:, :, -1:]

    def end(self, entering: Tensor) -> None:
        """The last norm is reached."""
        self.final = entering[:, : self.queries].clone()


def _normed(parts: Tensor, norm: FoldedNorm, whole: Tensor) -> Tensor:
    """(B, Q, K, D) parts of (B, Q, D) wholes behind a norm, whose shift goes to the last part."""
    passed = norm.rows(parts.flatten(0, 1), whole.flatten(0, 1)).view_as(parts)
    passed[:, :, -1] += norm.shift
    return passed


@contextmanager
def _record(network: Network, stream: Stream, queries: int) -> Iterator[_Seen]:
    """Watch a stream during one forward pass."""
    named, seen, first = network.get_submodule, _Seen(queries), stream.layers[0]

    def before(module: str, note: Callable[[tuple[Any, ...]], None]) -> RemovableHandle:
        found: RemovableHandle = named(module).register_forward_pre_hook(lambda _, args: note(args))
        return found

    def after(module: str, note: Callable[[Tensor], None]) -> RemovableHandle:
        found: RemovableHandle = named(module).register_forward_hook(
            lambda _, __, output: note(
                output if isinstance(output, Tensor) else output[0]
            )  # beside which weights may be
        )
        return found

    def watch_layer(layer: Layer) -> Iterator[RemovableHandle]:
        attention, linear, norm = named(layer.attention), named(layer.output), layer.stream_norm
        yield after(layer.attention, lambda out: seen.attend(layer, linear, found.pop(attention)[0], out))
        if norm is not None:
            yield before(norm.module, lambda args: seen.pass_norm(norm.norm, args[0]))
        yield after(layer.mlp, lambda out: seen.add_mlp(layer, out))

    def watch() -> Iterator[RemovableHandle]:
        yield before(first.block, lambda args: seen.begin(stream, first_tokens(args, queries)[first.stream]))
        for layer in stream.layers:
            yield from watch_layer(layer)
        yield before(stream.final.module, lambda args: seen.end(args[0]))

    with attention_of([named(layer.attention) for layer in stream.layers], queries) as found, hooked(watch()):
        yield seen
