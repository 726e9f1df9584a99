"""The exact fallback: one row per image, the input of the last linear layer. Nothing is localised."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from protonmf_cli.models.readout import Reading, Readout, find_classifier, record_head


@dataclass(frozen=True, kw_only=True)
class ImageRowReadout(Readout):
    """r = input of the classifier layer, caught by a hook before anything can write to it."""

    classifier: str
    """Name of the layer inside the network."""

    def read(self, network: nn.Module, pixels: Tensor) -> Reading:
        caught: list[Tensor] = []
        layer = network.get_submodule(self.classifier)
        handle = layer.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone()))
        try:
            logits = network.forward_head(network.forward_features(pixels))
        finally:
            handle.remove()
        return Reading(rows=caught[-1].flatten(1)[:, None], logits=logits)


def image_row(network: nn.Module, features: object) -> Readout | None:
    """Readout through the last layer that computes the logits; None when there is no such layer."""
    logits, calls = record_head(network, features)
    call = find_classifier(calls, logits)
    if call is None:
        return None
    weight = call.module.weight.detach().flatten(1).clone()
    bias = getattr(call.module, "bias", None)
    return ImageRowReadout(
        kind="image-row",
        vectors=weight,
        bias=torch.zeros_like(weight[:, 0]) if bias is None else bias.detach().clone(),
        grid=None,
        unplaced=("image",),
        classifier=call.name,
    )
