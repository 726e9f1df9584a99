"""Modules at the end of a network that make probabilities of its logits."""

from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.models.networks.split_network import logits_of
from protonmf_cli.models.readouts.hooks import hooked

SQUASHES = (nn.Sigmoid, nn.Softmax, nn.LogSoftmax)


def last_squash(network: nn.Module, pixels: Tensor) -> str:
    """Name of the module whose output, probabilities, is what the network gives; empty where there is none, or where it
    does something else, too.

    Args:
        network: in evaluation mode.
        pixels: (B, channels, H, W)
    """
    given: dict[str, list[Tensor]] = {}

    def note(name: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            given.setdefault(name, []).append(output)

        return keep

    found = [(name, module) for name, module in network.named_modules() if name and isinstance(module, SQUASHES)]
    if not found:
        return ""
    with hooked([module.register_forward_hook(note(name)) for name, module in found]), torch.no_grad():
        last = logits_of(network(pixels))
    return next((name for name, outputs in given.items() if len(outputs) == 1 and outputs[0] is last), "")


def leave_out(network: nn.Module, name: str) -> None:
    """Give what goes into such a module instead of what comes out."""
    if isinstance(dict(network.named_modules()).get(name), SQUASHES):
        network.set_submodule(name, nn.Identity())


def gives_probabilities(network: nn.Module, pixels: Tensor) -> bool:
    """Whether what a network gives for images (B, channels, H, W) looks like probabilities rather than logits."""
    with torch.no_grad():
        found = logits_of(network(pixels))
    return bool((found >= 0).all()) and bool((found <= 1).all())
