"""Which rows a classifier's head reads: found by probing, checked by numbers, never taken from a name.

    logit_c(x) = sum_n r_n(x) . V_c + b_c

A row that has a place is a patch and can be drawn; rows without a place (class token, MLP writes, a whole
image) are shown as a number. Placed rows always come first, in the order of the grid.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.hooks import hooked

Network = Any
"""A timm classifier: an nn.Module with `forward_features` and `forward_head`, whose other attributes vary."""

FORMULA_LIMIT = 1e-9
"""Largest relative difference in float64: above it the formula itself is wrong."""
FORMULA_NOISE = 1e-12
"""Relative difference in float64 below which its size depends on where the numbers happen to lie in memory."""
SMALLEST_SPREAD = 0.01
"""Of logits, as a part of their root mean square."""
ROUNDING_WARNING = 3e-5
"""Relative difference in float32 that is normal."""
ROUNDING_LIMIT = 1e-4
"""Relative difference in float32 above which a conversion stops."""
HALF_LIMIT = 0.25
"""The same in bfloat16, which rounds at the third digit."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one pass of the network gives for B images."""

    rows: Tensor
    """(B, T, D)"""
    logits: Tensor
    """(B, C) of the network itself; (B, 0) where it has no head of its own."""


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Images by which a head is probed."""

    pixels: Tensor
    """(B, channels, H, W)"""
    features: object
    """What `forward_features` makes of them; a head may overwrite it."""


@dataclass(frozen=True, kw_only=True)
class Readout(ABC):
    """A head written as a sum over T rows of width D."""

    kind: str
    vectors: Tensor
    """(C, D) V; (0, D) where the network has no head of its own."""
    bias: Tensor
    """(C,) b."""
    grid: tuple[int, int] | None
    """Height and width of the grid of placed rows; None when no row has a place."""
    unplaced: tuple[str, ...]
    """Names of the rows without a place, which follow the placed ones."""

    @property
    def width(self) -> int:
        """D, the width of a row."""
        return self.vectors.shape[1]

    @property
    def has_head(self) -> bool:
        """Whether the network answers by itself, so that a model can be compared with it."""
        return len(self.vectors) > 0

    @property
    def places(self) -> int:
        """Number of placed rows."""
        return self.grid[0] * self.grid[1] if self.grid else 0

    @property
    def count(self) -> int:
        """T, the number of rows of an image."""
        return self.places + len(self.unplaced)

    @property
    def spatial(self) -> bool:
        """Whether contributions can be drawn as maps."""
        return self.grid is not None

    def layers(self) -> dict[str, Tensor]:
        """Trained layers between the network's features and the rows; none for a head of the network's own."""
        return {}

    def pictures(self, crop: Tensor) -> tuple[Tensor, ...]:
        """What each network sees of one crop (channels, height, width)."""
        return (crop,)

    @abstractmethod
    def read(self, network: Network, pixels: Tensor) -> Reading:
        """Rows and the network's own logits from one pass over normalised pixels (B, 3, H, W)."""

    def logits(self, rows: Tensor) -> Tensor:
        """(B, C) logits of rows (B, T, D): rows are added first, as the network does."""
        return rows.sum(dim=1) @ self.vectors.mT + self.bias

    def to(self, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Self:
        """The same readout with every tensor moved."""
        found: Self = moved(self, dtype, device)
        return found


def moved(value: Any, dtype: torch.dtype | None, device: torch.device | None) -> Any:
    """A value with every tensor inside it moved; tensors of whole numbers keep their type, modules move in place."""
    if isinstance(value, Tensor):
        return value.to(device=device, dtype=dtype if value.is_floating_point() else None)
    if isinstance(value, nn.Module):
        return value.to(device=device, dtype=dtype)
    if isinstance(value, tuple):
        return tuple(moved(part, dtype, device) for part in value)
    if isinstance(value, dict):
        return {key: moved(part, dtype, device) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{name: moved(part, dtype, device) for name, part in vars(value).items()})
    return value


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """max |found - expected| / spread(expected), or infinity; the measure of every exactness check."""
    difference = float((found - expected).abs().max()) / spread(expected)
    return difference if math.isfinite(difference) else math.inf


def spread(logits: Tensor) -> float:
    """Standard deviation of logits, but at least a hundredth of their root mean square.

    A few logits (one class, or one image of two classes) may lie as near to each other as chance has it, but are
    rounded as numbers of their size.
    """
    return float(spread_of(logits))


def spread_of(logits: Tensor) -> Tensor:
    """`spread`, left on the logits' device."""
    whole = logits.double() if logits.device.type != "mps" else logits
    least = SMALLEST_SPREAD * whole.square().mean().sqrt()
    return torch.maximum(whole.std(correction=0), least).clamp_min(torch.finfo(logits.dtype).tiny)


@contextmanager
def in_float64(network: Network) -> Iterator[None]:
    """Run the network in float64 for a while; float32 weights come back bit for bit."""
    dtype = next(network.parameters()).dtype
    network.double()
    try:
        yield
    finally:
        network.to(dtype)


@dataclass(frozen=True, kw_only=True)
class HeadCall:
    """One module that ran inside `forward_head`: its first input and its output, copied before anyone wrote to them."""

    name: str
    module: nn.Module
    inputs: Tensor
    outputs: Tensor


def record_head(network: Network, features: object) -> tuple[Tensor, list[HeadCall]]:
    """Run the head and note every innermost module that turned one tensor into another, in order."""
    calls: list[HeadCall] = []
    waiting: dict[nn.Module, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor):
            waiting[module] = args[0].detach().clone()

    def after(name: str, module: nn.Module, output: object) -> None:
        if isinstance(output, Tensor) and module in waiting:
            copied = output.detach().clone()
            calls.append(HeadCall(name=name, module=module, inputs=waiting.pop(module), outputs=copied))

    def watch() -> Iterator[RemovableHandle]:
        for name, module in network.named_modules():
            if not any(module.children()):
                yield module.register_forward_pre_hook(before)
                yield module.register_forward_hook(lambda m, _, out, name=name: after(name, m, out))

    with hooked(watch()):
        return network.forward_head(features), calls


def find_classifier(calls: list[HeadCall], logits: Tensor) -> HeadCall | None:
    """The last linear layer or 1x1 convolution whose output is the logits."""
    for call in reversed(calls):
        weight = getattr(call.module, "weight", None)
        if (
            isinstance(weight, Tensor)
            and weight.ndim in (2, 4)
            and weight.flatten(1).shape[1] == call.inputs.flatten(1).shape[1]
            and call.outputs.numel() == logits.numel()
            and torch.equal(call.outputs.reshape(logits.shape), logits)
        ):
            return call
    return None


def weight_and_bias(module: Network) -> tuple[Tensor, Tensor]:
    """Copies of the weight (C, D) and bias (C,) of a linear layer or 1x1 convolution; zeros where it has no bias."""
    weight = module.weight.detach().flatten(1).clone()
    bias = getattr(module, "bias", None)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach().clone()
