"""The residual stream of the first tokens: which layers wrote into it, and how, found by numbers in one pass.

The layers are followed backwards from the last norm. Of each, the numbers that went in and came out must be those of

    z    = in + s1 * attention write         (the write itself, or a norm of it)
    out  = z + s2 * MLP write                (or norm(z) + s2 * MLP write)

where s1 and s2 are 1 or one of the layer's own vectors. A layer that is anything else ends the chain: what it and
the layers before it did stays inside the token that enters the first layer of the chain.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.attention import attention_of
from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.readout import FORMULA_LIMIT, Network


@dataclass(frozen=True, kw_only=True)
class NamedNorm:
    """A norm of the network that sees one vector per token."""

    module: str
    norm: FoldedNorm


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


@dataclass(frozen=True, kw_only=True)
class Stream:
    """What the first tokens went through."""

    layers: tuple[Layer, ...]
    """In the order in which they run."""
    final: NamedNorm
    """The norm whose output are the features."""
    tokens: int
    """N, all tokens that the layers attend to."""


def find_stream(network: Network, pixels: Tensor, queries: int) -> Stream | None:
    """Follow the first `queries` tokens of the features backwards; None where nothing can be followed.

    Runs on the float64 pixels (1, channels, H, W) of one image.
    """
    trace = _Trace(network, pixels, queries)
    target = trace.features
    final = next(trace.norms_giving(target), None)
    if final is None:
        return None
    target = trace.steps[final.module].ins[0]
    layers: list[Layer] = []
    tokens = 0
    for block in reversed(trace.blocks()):
        if any(_same(out, target) for out in trace.steps[block].outs):
            layer = next(trace.layers(block, target), None)
            attended = 0 if layer is None else trace.attentions[layer.attention].value.shape[2]
            if layer is None or attended != (tokens or attended):
                break
            tokens = attended
            layers.append(layer)
            target = trace.steps[block].ins[layer.stream]
    if not layers:
        return None
    stream = Stream(layers=tuple(reversed(layers)), final=final, tokens=tokens)
    return stream if _values_follow_tokens(network, stream, pixels) else None


def _values_follow_tokens(network: Network, stream: Stream, pixels: Tensor) -> bool:
    """Whether value n of every attention is made of token n alone: three tokens of each are changed, one by one."""
    generator = torch.Generator().manual_seed(5)
    modules = [network.get_submodule(layer.attention) for layer in stream.layers]
    count = min(3, stream.tokens)
    chosen = {module: torch.randperm(stream.tokens, generator=generator)[:count] for module in modules}

    def change(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens = args[0][:1].repeat(1 + count, 1, 1)
        for image, token in enumerate(chosen[module].tolist(), start=1):
            tokens[image, token] += torch.randn(tokens.shape[2], generator=generator, dtype=torch.float64).to(tokens)
        return tuple(tokens if arg is args[0] else arg for arg in args)  # torch's own layer takes them three times

    def follows(module: nn.Module) -> bool:
        value = found[module][0].value
        changed = (value[1:] - value[:1]).abs().amax(dim=(1, 3)) > FORMULA_LIMIT * value.abs().max()
        return torch.equal(changed.nonzero()[:, 1], chosen[module])

    with hooked(module.register_forward_pre_hook(change) for module in modules), attention_of(modules) as found:
        network.forward_features(pixels.repeat(1 + count, 1, 1, 1))
    return all(len(found[module]) == 1 and follows(module) for module in modules)


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

        def before(name: str, args: tuple[Any, ...]) -> None:
            waiting[name] = first_tokens(args, queries)

        def after(name: str, output: object) -> None:
            self.steps.pop(name, None)  # in the order of the last run
            self.steps[name] = _Step(waiting.pop(name), first_tokens(output, queries))

        def watch() -> Iterator[RemovableHandle]:
            for name, module in self.modules.items():
                yield module.register_forward_pre_hook(lambda _, args, name=name: before(name, args))
                yield module.register_forward_hook(lambda _, __, output, name=name: after(name, output))

        attending = [module for module in self.modules.values() if any(module.children())]
        with hooked(watch()), attention_of(attending, queries) as found:
            features = network.forward_features(pixels)
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
            bases = self._with_norms(attended, inside)
            for (stream_norm, base), (mlp, write), scale in product(bases, self._mlp_writes(inside), scales):
                if _same(base + scale * write, target):
                    yield Layer(**layer, stream_norm=stream_norm, mlp=mlp, mlp_scale=scale)

    def _attended(self, block: str, inside: list[str], scales: list[Tensor]) -> Iterator[tuple[dict[str, Any], Tensor]]:
        """Ways to read the first half of a block, and what it gives: in + s1 * attention write."""
        for attention, (stream, entering) in product(inside, enumerate(self.steps[block].ins)):
            ending = self._ending(attention)
            if ending is None:
                continue
            for (write_norm, written), scale in product(self._with_norms(self._out(attention), inside), scales):
                if written.shape == entering.shape:
                    found = {"block": block, "stream": stream, "attention": attention, "inner_norm": ending[0]}
                    how = {"output": ending[1], "write_norm": write_norm and write_norm.norm, "scale": scale}
                    yield found | how, entering + scale * written

    def _ending(self, attention: str) -> tuple[FoldedNorm | None, str] | None:
        """How an attention module goes on from the sum over the tokens: at most a norm, then a linear layer."""
        if attention not in self.attentions:
            return None
        inside, taken = self._inside(attention), self.attentions[attention].writes().sum(dim=2)
        module = self.modules[attention]
        if isinstance(module, nn.MultiheadAttention):  # whose linear layer does not run as a module
            written = nn.functional.linear(taken, module.out_proj.weight, module.out_proj.bias)
            return (None, f"{attention}.out_proj") if _same(written, self._out(attention)) else None
        for norm, read in self._with_norms(taken, inside):
            for name in inside:
                is_linear = isinstance(self.modules[name], nn.Linear)
                if is_linear and _same(self.steps[name].ins[0], read) and _same(self._out(name), self._out(attention)):
                    return None if norm is None else norm.norm, name
        return None

    def _out(self, name: str) -> Tensor:
        return self.steps[name].outs[0]

    def _inside(self, name: str) -> list[str]:
        """The modules right inside a module that ran on tokens, in order."""
        return [s for s, step in self.steps.items() if s.rpartition(".")[0] == name and step.ins and step.outs]

    def _mlp_writes(self, inside: list[str]) -> Iterator[tuple[str, Tensor]]:
        """Modules with linear layers and without attention, or norms behind them, and what they write."""
        for name in inside:
            attends = any(attention == name or attention.startswith(f"{name}.") for attention in self.attentions)
            if not attends and any(isinstance(part, nn.Linear | nn.Conv2d) for part in self.modules[name].modules()):
                for norm, write in self._with_norms(self._out(name), inside):
                    yield (name if norm is None else norm.module), write

    def _with_norms(self, tokens: Tensor, inside: list[str]) -> list[tuple[NamedNorm | None, Tensor]]:
        """Tokens as they are, and as they come out of every norm that took them in."""
        norms = (self._norm(name) for name in inside if _same(self.steps[name].ins[0], tokens))
        return [(None, tokens), *((norm, self._out(norm.module)) for norm in norms if norm)]

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
