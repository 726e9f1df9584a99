"""Any classifier with the two halves of timm's: `forward_features` up to one of its modules, `forward_head` from there.

The first half stops the network at the module whose output are the features. The second runs the network again with
given features: of the modules that ran before, the outermost ones give zeros in the shapes that they had, so that
nothing but the head is computed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.pooled_heads import patch_grid
from protonmf_cli.models.readouts.readout import Network

TOKENS = {"cls_token": 1, "class_token": 1, "class_embedding": 1, "distillation_token": 1, "dist_token": 1,
          "register_tokens": 0}  # fmt: skip
"""Parameters of vision transformers that stand before the patches: how many tokens of one axis they are, 0: as many as
their second axis says."""


@dataclass(frozen=True)
class Shape:
    """A tensor that was in an output, of one image or several."""

    sizes: tuple[int, ...]
    images: int

    def zeros(self, like: Tensor) -> Tensor:
        """The same for as many images as a tensor (B, ...) holds; takes no memory."""
        first, *others = self.sizes
        return like.new_zeros(1).expand(first // self.images * like.shape[0], *others)


@dataclass
class Call:
    """One run of a module."""

    name: str
    parent: int
    """Which call it ran in; -1 for the network itself."""
    end: int = -1
    """How many calls had ended before it."""
    output: object = None


def logits_of(output: object) -> Tensor:
    """The logits among what a classifier returns: the only tensor, or what is called so.

    Raises:
        TypeError: there are none.
    """
    found = output
    if isinstance(found, Mapping):
        found = found.get("logits", next(iter(found.values()), None))
    elif hasattr(found, "logits"):
        found = found.logits
    elif isinstance(found, list | tuple):
        found = found[0] if found else None
    if not isinstance(found, Tensor) or found.ndim != 2:
        what = f"{tuple(found.shape)}" if isinstance(found, Tensor) else type(output).__name__
        raise TypeError(f"it returns {what} where logits (images, classes) are expected")
    return found


class SplitNetwork(nn.Module):
    """A classifier, and the module that its features come out of."""

    def __init__(
        self, network: nn.Module, at: str, config: Mapping[str, Any], *, library: str, prefix: int = 0
    ) -> None:
        """Split a network.

        Args:
            network: pixels (B, channels, H, W) -> logits, as `logits_of` finds them; in evaluation mode.
            at: name of a module inside it that runs once, whose output is a tensor or has one in front.
            config: as timm's `pretrained_cfg`: input_size, mean, std, label_names, ...
            library: that built it.
            prefix: tokens before the patches.
        """
        super().__init__()
        self.network = network
        self.at = at
        self.library = library
        self.pretrained_cfg = dict(config)
        self.num_classes = int(config["num_classes"])
        self.num_prefix_tokens = prefix
        names = {name.rpartition(".")[2] for name, _ in network.named_parameters()}
        self.cls_token = True if prefix and names & TOKENS.keys() else None
        self.dist_token = True if prefix > 1 and names & {"distillation_token", "dist_token"} else None
        self.patch_embed = SimpleNamespace(patch_size=_patch_size(network))
        self._plan: dict[str, list[object]] | None = None
        self._size: tuple[int, ...] = ()

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, C) logits."""
        return logits_of(self.network(pixels))

    def forward_features(self, pixels: Tensor) -> Tensor:
        """What comes out of the module at which the network is split, (B, ...)."""
        self._size = tuple(pixels.shape[1:])
        if self._plan is None:
            self._plan = _plan_of(record_calls(self.network, pixels, until=self.at), self.at, len(pixels))
        found: list[Tensor] = []

        def stop(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
            found.append(first_tensor(output))
            raise _Reached

        with hooked([self.network.get_submodule(self.at).register_forward_hook(stop)]), suppress(_Reached):
            self.network(pixels)
        return found[0]

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, C) logits of features (B, ...); after `forward_features` ran at least once."""
        blank = features.new_zeros(1).expand(features.shape[0], *self._size)
        with self._resumed(features):
            return logits_of(self.network(blank))

    @contextmanager
    def _resumed(self, features: Tensor) -> Iterator[None]:
        """Within it what ran before the features gives zeros, and their module gives the features."""
        replaced: list[nn.Module] = []
        try:
            for name, outputs in (self._plan or {}).items():
                module = self.network.get_submodule(name)
                _replace(module, [*_filled(outputs, features, given=name == self.at)])
                replaced.append(module)
            yield
        finally:
            for module in replaced:
                del module.forward


class _Reached(Exception):  # noqa: N818
    """The features are there."""


def _replace(module: Network, outputs: list[object]) -> None:
    """Let the first calls of a module give these; it runs as before afterwards."""
    usual, left = module.forward, iter(outputs)

    def forward(*args: Any, **words: Any) -> object:
        try:
            return next(left)
        except StopIteration:
            return usual(*args, **words)

    module.forward = forward


def _filled(outputs: list[object], features: Tensor, *, given: bool) -> Iterator[object]:
    """Outputs with zeros for their tensors; the features are the first tensor of the last one, where they are given."""
    for number, output in enumerate(outputs, start=1):
        waiting = [features] if given and number == len(outputs) else []

        def fill(shape: Shape, waiting: list[Tensor] = waiting) -> Tensor:
            return waiting.pop() if waiting else shape.zeros(features)

        yield _mapped(output, Shape, fill)


def first_tensor(output: object) -> Tensor:
    """The first tensor of an output.

    Raises:
        TypeError: there is none.
    """
    found: list[Tensor] = []
    _mapped(output, Tensor, found.append)
    if not found:
        raise TypeError(f"{type(output).__name__} holds no tensor")
    return found[0]


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """An output with each part of a kind changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, Mapping):
        found = {key: _mapped(part, kind, change) for key, part in value.items()}
        return found if type(value) is dict else type(value)(**found)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(part, kind, change) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(part, kind, change) for part in value)
    return value


@dataclass
class _Recorder:
    calls: list[Call] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    ended: int = 0

    def begin(self, name: str) -> None:
        self.calls.append(Call(name, self.running[-1] if self.running else -1))
        self.running.append(len(self.calls) - 1)

    def end(self, output: object) -> None:
        call = self.calls[self.running.pop()]
        call.end, call.output = self.ended, output
        self.ended += 1


def record_calls(network: nn.Module, pixels: Tensor, *, until: str | None = None) -> list[Call]:
    """Every call of a module in one pass, in the order in which they begin.

    Args:
        network: in evaluation mode.
        pixels: (B, channels, H, W).
        until: name of a module at whose first end the pass stops.
    """
    recorder = _Recorder()

    def after(name: str, output: object) -> None:
        recorder.end(output)
        if name == until:
            raise _Reached

    def watch() -> Iterator[RemovableHandle]:
        for name, module in network.named_modules():
            yield module.register_forward_pre_hook(lambda _, __, name=name: recorder.begin(name))
            yield module.register_forward_hook(lambda _, __, output, name=name: after(name, output))

    with hooked(watch()), suppress(_Reached), torch.no_grad():
        network(pixels)
    return recorder.calls


def _plan_of(calls: list[Call], at: str, images: int) -> dict[str, list[object]]:
    """What every module that is not run again gives, call by call; the module of the features is the last one.

    Those are the outermost calls that had ended before.
    """
    last = next(n for n, call in enumerate(calls) if call.name == at)
    ancestors, parent = set(), calls[last].parent
    while parent >= 0:
        ancestors.add(parent)
        parent = calls[parent].parent
    plan: dict[str, list[object]] = {}
    shape = partial(_shape_of, images=images)
    for number, call in enumerate(calls[: last + 1]):
        if call.parent in ancestors and number not in ancestors:
            plan.setdefault(call.name, []).append(_mapped(call.output, Tensor, shape))
    return plan


def _shape_of(tensor: Tensor, images: int) -> Shape | Tensor:
    """A tensor whose first axis is that of the images as its shape; others, such as tables, are kept."""
    is_batch = tensor.ndim > 0 and tensor.shape[0] and tensor.shape[0] % images == 0 and tensor.is_floating_point()
    return Shape(tuple(tensor.shape), images) if is_batch else tensor


def _patch_size(network: nn.Module) -> tuple[int, int] | None:
    """Height and width of the patches that the first convolution cuts, where they do not overlap."""
    first = next((module for module in network.modules() if isinstance(module, nn.Conv2d)), None)
    if first is None or first.kernel_size != first.stride:
        return None
    down, across = first.kernel_size
    return down, across


def prefix_tokens(network: nn.Module, features: Tensor, pixels: Tensor) -> int:
    """How many tokens of features (B, N, D) stand before the patches: as many as fill a grid with the others."""
    if features.ndim != 3:
        return 0
    known = 0
    for name, parameter in network.named_parameters():
        kind = TOKENS.get(name.rpartition(".")[2])
        if kind is not None:
            known += kind or parameter.shape[-2]
    cutting = SimpleNamespace(patch_embed=SimpleNamespace(patch_size=_patch_size(network)))
    for count in dict.fromkeys((known, 0, 1, 2)):
        patches = features.shape[1] - count
        if patches > 1 and patch_grid(cutting, patches, pixels) is not None:
            return count
    return 0
