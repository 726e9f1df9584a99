"""The residual stream of the first tokens: which layers wrote into it, and how, found by numbers in one pass.

The layers are followed backwards from the last norm. Of each, the numbers that went in and came out must be those of

    z    = in + s1 * attention write         (the write itself, or a norm of it)
    out  = z + s2 * MLP write                (or norm(z) + s2 * MLP write)

where s1 and s2 are 1 or one of the layer's own vectors. A layer that is anything else ends the chain: what it and
the layers before it did stays inside the token that enters the first layer of the chain.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Self

import torch
from torch import Tensor, nn

from protonmf_cli.models.attention import attention_of
from protonmf_cli.models.norms import FoldedNorm
from protonmf_cli.models.readout import FORMULA_LIMIT, Network


@dataclass(frozen=True, kw_only=True)
class NamedNorm:
    """A norm of the network that sees one vector per token."""

    module: str
    norm: FoldedNorm

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """The same norm with its vectors moved."""
        return replace(self, norm=self.norm.to(dtype=dtype, device=device))


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of the stream; modules are named by their path in the network."""

    block: str
    stream: int
    """Which of the block's tensor arguments is the stream."""
    attention: str
    inner_norm: FoldedNorm | None
    """Between the sum over the tokens and the output matrix."""
    output: str
    """The linear layer that ends the attention."""
    write_norm: FoldedNorm | None
    """After the attention."""
    scale: Tensor
    """(D,) s1."""
    stream_norm: NamedNorm | None
    """The norm that the stream itself passes after the attention."""
    mlp: str
    """The module whose output is the MLP write."""
    mlp_scale: Tensor
    """(D,) s2."""

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """The same layer with its vectors moved."""
        moved: dict[str, Any] = {
            name: value.to(dtype=dtype, device=device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor | FoldedNorm | NamedNorm)
        }
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What the first tokens went through."""

    layers: tuple[Layer, ...]
    """In the order in which they run."""
    final: NamedNorm
    """The norm whose output are the features."""
    tokens: int
    """N, all tokens that the layers attend to."""

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """The same stream with its vectors moved."""
        layers = tuple(layer.to(dtype=dtype, device=device) for layer in self.layers)
        return replace(self, layers=layers, final=self.final.to(dtype=dtype, device=device))


def find_stream(network: Network, pixels: Tensor, queries: int) -> Stream | None:
    """Follow the first `queries` tokens of the features backwards; None where nothing can be followed.

    Runs on float64 pixels (B, channels, H, W).
    """
    trace = _Trace(network, pixels, queries)
    target = trace.features
    final = next(trace.norms_giving(target), None)
    if final is None:
        return None
    target = trace.steps[final.module].ins[0]
    layers: list[Layer] = []
    counts: set[int] = set()
    for block in reversed(trace.blocks()):
        if any(_same(out, target) for out in trace.steps[block].outs):
            layer = next(trace.layers(block, target), None)
            if layer is None:
                break
            counts.add(trace.attentions[layer.attention].value.shape[2])
            if len(counts) > 1:
                break
            layers.append(layer)
            target = trace.steps[block].ins[layer.stream]
    return Stream(layers=tuple(reversed(layers)), final=final, tokens=counts.pop()) if len(counts) == 1 else None


@dataclass(frozen=True)
class _Step:
    """The first tokens (B, Q, D) that went into a module and came out, for every tensor (B, N, D)."""

    ins: tuple[Tensor, ...]
    outs: tuple[Tensor, ...]


class _Trace:
    """What every module did to the first tokens in one pass."""

    def __init__(self, network: Network, pixels: Tensor, queries: int) -> None:
        self.modules = {name: module for name, module in network.named_modules() if name}
        self.steps: dict[str, _Step] = {}
        waiting: dict[str, tuple[Tensor, ...]] = {}

        def before(name: str, args: tuple) -> None:
            waiting[name] = first_tokens(args, queries)

        def after(name: str, output: object) -> None:
            self.steps.pop(name, None)  # in the order of the last run
            self.steps[name] = _Step(waiting.pop(name), first_tokens(output, queries))

        handles = []
        for name, module in self.modules.items():
            handles.append(module.register_forward_pre_hook(lambda _, args, name=name: before(name, args)))
            handles.append(module.register_forward_hook(lambda _, __, output, name=name: after(name, output)))
        try:
            with attention_of((m for m in self.modules.values() if any(m.children())), queries) as found:
                features = network.forward_features(pixels)
        finally:
            for handle in handles:
                handle.remove()
        self.features = features[:, :queries]
        self.attentions = {
            name: found[module][0] for name, module in self.modules.items() if len(found.get(module, ())) == 1
        }

    def blocks(self) -> list[str]:
        """Modules with an attention module right inside, in the order in which they end."""
        found = {name.rpartition(".")[0] for name in self.attentions}
        return [name for name in self.steps if name in found]

    def norms_giving(self, tokens: Tensor) -> Iterator[NamedNorm]:
        """Norms whose output are these tokens."""
        return (norm for norm in map(self._norm, self.steps) if norm and _same(self._out(norm.module), tokens))

    def layers(self, block: str, target: Tensor) -> Iterator[Layer]:
        """Ways to read a block whose output is the target."""
        inside = [name for name in self._inside(block) if self._out(name).shape == target.shape]
        scales = self._scales(block, target)
        for layer, attended in self._attended(block, inside, scales):
            bases = [(None, attended), *((n, self._out(n.module)) for n in self._norms_of(attended, inside))]
            for (stream_norm, base), mlp, scale in product(bases, inside, scales):
                if mlp != layer["attention"] and _same(base + scale * self._out(mlp), target):
                    yield Layer(**layer, stream_norm=stream_norm, mlp=mlp, mlp_scale=scale)

    def _attended(self, block: str, inside: list[str], scales: list[Tensor]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Ways to read the first half of a block, and what it gives: in + s1 * attention write."""
        for attention, (stream, entering) in product(inside, enumerate(self.steps[block].ins)):
            ending = self._ending(attention)
            if ending is None:
                continue
            write = self._out(attention)
            writes = [(None, write), *((n, self._out(n.module)) for n in self._norms_of(write, inside))]
            for (write_norm, written), scale in product(writes, scales):
                if written.shape == entering.shape:
                    found = {"block": block, "stream": stream, "attention": attention, "inner_norm": ending[0]}
                    how = {"output": ending[1], "write_norm": write_norm and write_norm.norm, "scale": scale}
                    yield found | how, entering + scale * written

    def _ending(self, attention: str) -> tuple[FoldedNorm | None, str] | None:
        """How an attention module goes on from the sum over the tokens: at most a norm, then a linear layer."""
        if attention not in self.attentions:
            return None
        inside, taken = self._inside(attention), self.attentions[attention].writes().sum(dim=2)
        norms = self._norms_of(taken, inside)
        for norm, read in [(None, taken), *((n.norm, self._out(n.module)) for n in norms)]:
            for name in inside:
                is_linear = isinstance(self.modules[name], nn.Linear)
                if is_linear and _same(self.steps[name].ins[0], read) and _same(self._out(name), self._out(attention)):
                    return norm, name
        return None

    def _out(self, name: str) -> Tensor:
        return self.steps[name].outs[0]

    def _inside(self, name: str) -> list[str]:
        """The modules right inside a module that ran on tokens, in order."""
        return [s for s, step in self.steps.items() if s.rpartition(".")[0] == name and step.ins and step.outs]

    def _norms_of(self, tokens: Tensor, inside: list[str]) -> list[NamedNorm]:
        """Norms that took in these tokens."""
        found = (self._norm(name) for name in inside if _same(self.steps[name].ins[0], tokens))
        return [norm for norm in found if norm is not None]

    def _norm(self, name: str) -> NamedNorm | None:
        step = self.steps[name]
        if not step.ins or not step.outs or step.ins[0].shape != step.outs[0].shape:
            return None
        norm = FoldedNorm.identify(self.modules[name], step.ins[0].flatten(0, 1), step.outs[0].flatten(0, 1))
        return None if norm is None else NamedNorm(module=name, norm=norm)

    def _scales(self, block: str, like: Tensor) -> list[Tensor]:
        """One, and every vector (D,) of a block itself or of a module without modules right inside it."""
        ones = torch.ones_like(like[0, 0])
        module = self.modules[block]
        leaves = [module, *(child for child in module.children() if not any(child.children()))]
        vectors = [v.detach().clone() for leaf in leaves for v in leaf.parameters(recurse=False)]
        return [ones, *(v for v in vectors if v.shape == ones.shape)]


def first_tokens(values: object, queries: int) -> tuple[Tensor, ...]:
    """The first tokens (B, Q, D) of every tensor (B, N, D) among a module's arguments or outputs."""
    found = values if isinstance(values, list | tuple) else (values,)
    return tuple(
        value[:, :queries].detach().clone() for value in found if isinstance(value, Tensor) and value.ndim == 3
    )


def _same(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return float((found - expected).abs().max()) <= FORMULA_LIMIT * float(expected.abs().max())
