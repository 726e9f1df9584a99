"""The exact fallback: one row per image, the input of the last linear layer. Nothing is localised."""

from dataclasses import dataclass

from torch import Tensor

from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.readout import (
    Network,
    Probe,
    Reading,
    Readout,
    find_classifier,
    record_head,
    weight_and_bias,
)


@dataclass(frozen=True, kw_only=True)
class ImageRowReadout(Readout):
    """r = input of the classifier layer, caught by a hook before anything can write to it."""

    classifier: str
    """Name of the layer inside the network."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        caught: list[Tensor] = []
        layer = network.get_submodule(self.classifier)
        with hooked([layer.register_forward_pre_hook(lambda _, args: caught.append(args[0].clone()))]):
            logits = network.forward_head(network.forward_features(pixels))
        return Reading(rows=caught[-1].flatten(1)[:, None], logits=logits)


def image_row(network: Network, probe: Probe) -> Readout | None:
    """Readout through the last layer that computes the logits; None when there is no such layer."""
    features = probe.features
    logits, calls = record_head(network, features)
    call = find_classifier(calls, logits)
    if call is None:
        return None
    vectors, bias = weight_and_bias(call.module)
    return ImageRowReadout(
        kind="image-row",
        vectors=vectors,
        bias=bias,
        grid=None,
        unplaced=("image",),
        classifier=call.name,
    )
