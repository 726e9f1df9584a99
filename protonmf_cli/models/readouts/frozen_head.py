"""Heads with norms and activations behind the pool: frozen at each image they are affine (HEADS kinds B1 and C2).

An activation phi that sees one vector z per image is replaced by z' -> g z' + phi(0) with g = (phi(z) - phi(0)) / z,
a norm by its affine map with the scalar of this image. Both give what they gave for the image itself. The head is
affine then, so it commutes with the mean over places: what the classifier reads is the mean of what it would read of
every place alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.norms import FoldedNorm
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


@dataclass(frozen=True, kw_only=True)
class Gate:
    """An activation, entry by entry."""

    at_zero: Tensor
    """(1, ...) phi(0), in the shape of one image."""

    def constant(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """g, in the shape of the inputs; zero where the input is zero."""
        return torch.where(inputs != 0, (outputs - self.at_zero) / torch.where(inputs != 0, inputs, 1.0), 0.0)

    def replay(self, constant: Tensor, inputs: Tensor) -> Tensor:
        """g z + phi(0) for several z per image, image by image."""
        return constant.repeat_interleave(inputs.shape[0] // constant.shape[0], dim=0) * inputs + self.at_zero


@dataclass(frozen=True, kw_only=True)
class FrozenNorm:
    """A norm over all entries of a vector."""

    norm: FoldedNorm

    def constant(self, inputs: Tensor, _: Tensor) -> Tensor:
        """The vector itself: its scalar follows from it."""
        return inputs

    def replay(self, constant: Tensor, inputs: Tensor) -> Tensor:
        """The affine map of each image for several vectors of it."""
        whole = constant.flatten(1)
        parts = inputs.reshape(whole.shape[0], -1, whole.shape[1])
        return (self.norm.rows(parts, whole) + self.norm.shift).reshape(inputs.shape)


Link = Gate | FrozenNorm


@dataclass(frozen=True, kw_only=True)
class FrozenReadout(Readout):
    """r_n = p(h_n) / N with the frozen head p up to the classifier; masked: p(h_n alone) - p(0), and a row p(0)."""

    layout: Layout
    prefix: int
    """Tokens before the patches, which the pool leaves out."""
    masked: bool
    """Places are kept one by one in features of full size, for heads that mix them."""
    classifier: str
    """Name of the layer inside the network."""
    links: dict[str, Link]
    """Modules of the head that are frozen, by name."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        return self.read_features(network, network.forward_features(pixels))

    def read_features(self, network: Network, features: Tensor) -> Reading:
        """Rows and logits from features (B, ...)."""
        with _frozen(network, self.links, self.classifier) as run:
            logits = network.forward_head(features)
            run.replaying = True
            with suppress(_Caught):
                network.forward_head(self._masked(features) if self.masked else self._alone(features))
        found = run.caught.flatten(1).reshape(features.shape[0], -1, run.caught[0].numel())
        if not self.masked:
            return Reading(rows=found / found.shape[1], logits=logits)
        nothing = found[:, -1:]
        return Reading(rows=torch.cat([found[:, :-1] - nothing, nothing], dim=1), logits=logits)

    def _alone(self, features: Tensor) -> Tensor:
        """(B N, ...) every place as an image of one place, behind empty tokens that the pool leaves out."""
        rows = self.layout.rows(features)[:, self.prefix :].flatten(0, 1)[:, None]
        rows = torch.nn.functional.pad(rows, (0, 0, self.prefix, 0))
        ones = (1,) * (len(self.layout.positions) - 1)
        return rows.reshape(rows.shape[0], *ones, *rows.shape[1:]).movedim(-1, self.layout.channel_axis)

    def _masked(self, features: Tensor) -> Tensor:
        """(B (N + 1), ...) features with one place kept each, and with none."""
        rows = self.layout.rows(features)
        count = rows.shape[1]
        masks = torch.cat([torch.eye(count), torch.zeros(1, count)]).to(rows)
        return self.layout.features((rows[:, None] * masks[:, :, None]).flatten(0, 1))


def frozen_head(network: Network, probe: Probe) -> Readout | None:
    """Readout of pool -> norms, linear layers and activations -> linear; None for any other head.

    Runs on float64 features (B, ...); the ways to take the features apart are tried until one is exact.
    """
    features = probe.features
    if not isinstance(features, Tensor):
        return None
    logits, calls = record_head(network, features)
    classifier = find_classifier(calls, logits)
    if classifier is None:
        return None
    links = _find_links(network, features, classifier.name)
    vectors, bias = weight_and_bias(classifier.module)
    for layout, prefix, masked in _ways(network, features):
        count = layout.rows(features[:1]).shape[1] - prefix
        grid = grid_of(network, layout, prefix, probe.pixels)
        if grid is None or count < 2:
            continue
        readout = FrozenReadout(
            kind="gated",
            vectors=vectors,
            bias=bias,
            grid=grid,
            unplaced=("biases",) if masked else (),
            layout=layout,
            prefix=prefix,
            masked=masked,
            classifier=classifier.name,
            links=links,
        )
        try:
            reading = readout.read_features(network, features)
        except (RuntimeError, IndexError, AssertionError):  # the head takes no features of this shape
            continue
        if reading.rows.shape[1] == count + masked and _is_exact(readout, reading):
            return readout
    return None


def _is_exact(readout: Readout, reading: Reading) -> bool:
    found = readout.logits(reading.rows)
    return bool(found.isfinite().all()) and relative_difference(found, reading.logits) <= FORMULA_LIMIT


def _ways(network: Network, features: Tensor) -> Iterator[tuple[Layout, int, bool]]:
    """Layouts, tokens to leave out, and whether to mask."""
    for layout, prefix in layouts_of(network, features):
        yield layout, prefix, False
    if features.ndim == 4:
        yield Layout(shape=tuple(features.shape[1:]), channel_axis=1), 0, True


def _find_links(network: Network, features: Tensor, classifier: str) -> dict[str, Link]:
    """Activations and norms of the head that see one vector per image, outermost modules first."""
    seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}
    waiting: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if args and isinstance(args[0], Tensor):
            waiting[module] = args[0]
            return (args[0].clone(), *args[1:])  # some activations write to their input
        return None

    def after(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: tuple[Any, ...], output: object) -> None:
            if module in waiting and isinstance(output, Tensor):
                seen[name] = (module, waiting.pop(module), output.clone())

        return hook

    def watch() -> Iterator[RemovableHandle]:
        for name, module in network.named_modules():
            if name and name != classifier:
                yield module.register_forward_pre_hook(before)
                yield module.register_forward_hook(after(name))

    with hooked(watch()):
        network.forward_head(features)
    found: dict[str, Link] = {}
    for name, (module, inputs, outputs) in seen.items():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        link = _link(module, inputs, outputs)
        if link is not None:
            found[name] = link
    return found


def _link(module: nn.Module, inputs: Tensor, outputs: Tensor) -> Link | None:
    """How a module is frozen; None for one that is affine already, mixes entries, or sees several places."""
    if inputs.shape != outputs.shape or inputs.ndim not in (2, 4) or torch.equal(inputs, outputs):
        return None
    channels = inputs.flatten(1).shape[1]
    if inputs.ndim == 4 and channels not in (inputs.shape[1], inputs.shape[3]):
        return None
    norm = FoldedNorm.identify(module, inputs.flatten(1), outputs.flatten(1))
    if norm is not None:
        return FrozenNorm(norm=norm)
    return Gate(at_zero=module(torch.zeros_like(inputs[:1]))) if _is_elementwise(module, inputs) else None


def _is_elementwise(module: nn.Module, inputs: Tensor) -> bool:
    """Whether half of the entries of an output depend on the same half of the input alone."""
    flat = inputs.flatten(1)
    half = torch.arange(flat.shape[1], device=flat.device) % 2 == 0
    whole = module(inputs.clone()).flatten(1)
    for kept in (half, ~half):
        changed = torch.where(kept, flat, flat * 0.5 + 1.0).reshape(inputs.shape)
        if not torch.equal(module(changed).flatten(1)[:, kept], whole[:, kept]):
            return False
    return True


class _Caught(Exception):  # noqa: N818
    """The classifier is reached."""


@dataclass
class _Run:
    """What the hooks of a frozen head remember."""

    replaying: bool = False
    constants: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    caught: Tensor = field(default_factory=lambda: torch.empty(0))
    """Input of the classifier."""


@contextmanager
def _frozen(network: Network, links: dict[str, Link], classifier: str) -> Iterator[_Run]:
    """First pass: the head as it is, its constants noted. Once `replaying` is set: the frozen head."""
    run, waiting = _Run(), {}

    def before(name: str) -> Callable[..., tuple[Any, ...]]:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            waiting[name] = args[0]
            return (args[0].clone(), *args[1:])

        return hook

    def after(name: str, link: Link) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if run.replaying:
                return link.replay(run.constants[name].pop(0), waiting[name])
            run.constants[name].append(link.constant(waiting[name], output))
            return None

        return hook

    def catch(_: nn.Module, args: tuple[Any, ...]) -> None:
        if run.replaying:  # nobody needs the logits of single places
            run.caught = args[0].clone()
            raise _Caught

    def watch() -> Iterator[RemovableHandle]:
        yield network.get_submodule(classifier).register_forward_pre_hook(catch)
        for name, link in links.items():
            module = network.get_submodule(name)
            yield module.register_forward_pre_hook(before(name))
            yield module.register_forward_hook(after(name, link))

    with hooked(watch()):
        yield run
