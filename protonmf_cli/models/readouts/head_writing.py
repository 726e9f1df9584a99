"""The way back: edited head rows V and bias b in the network's own classifier layer."""

import torch
from torch import Tensor

from protonmf_cli.errors import NotExactError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.readouts.readout import (
    HeadCall,
    Network,
    find_classifier,
    in_float64,
    record_head,
    relative_difference,
)

LIMIT = 1e-6
"""Largest relative difference; V is held in float32, so 1e-8 is usual."""


def write_head(backbone: Backbone, vectors: Tensor, bias: Tensor) -> float:
    """Change the network so that its logits are rows . V' + b' instead of rows . V + b.

    The classifier layer's weight takes the change of V, column by column in the scale in which the readout holds
    it; its bias takes what norms between rows and layer add. Proved in float64 on seeded images.

    Args:
        backbone: its network is changed in place.
        vectors: (C, D) float64 head rows V'.
        bias: (C,) float64 b'.

    Returns:
        Relative difference between the network's and the expected logits.

    Raises:
        NotExactError: the head is not one layer that holds V; the network is unchanged then.
    """
    network, readout = backbone.network, backbone.readout.to(dtype=torch.float64)
    pixels = torch.randn(
        3, *backbone.preprocessing.input_size, generator=torch.Generator().manual_seed(11), dtype=torch.float64
    ).to(backbone.device)
    with in_float64(network), torch.no_grad():
        logits, calls = record_head(network, network.forward_features(pixels))
        call = find_classifier(calls, logits)
        scale = None if call is None else _column_scale(call, readout.vectors)
        if call is None or scale is None:
            raise NotExactError(
                f"the head of {backbone.source.name} (readout {readout.kind}) is not one layer that the edit could be "
                "written into, so it cannot be exported as a timm checkpoint."
            )
        expected = readout.read(network, pixels).rows.sum(dim=1) @ vectors.mT + bias
        layer: Network = call.module
        before = {name: value.clone() for name, value in layer.state_dict().items()}
        change = (vectors - readout.vectors) / torch.where(scale == 0, 1.0, scale)
        layer.weight += change.reshape(layer.weight.shape)
        constant = expected - network(pixels)
        if layer.bias is not None:
            layer.bias += constant.mean(dim=0)
        difference = relative_difference(network(pixels), expected)
        if difference > LIMIT:
            layer.load_state_dict(before)
            raise NotExactError(
                f"the edited head of {backbone.source.name} differs by {difference:.1e} of the spread of its logits "
                "once it is in the classifier layer, so it cannot be exported as a timm checkpoint."
            )
    return difference


def _column_scale(call: HeadCall, vectors: Tensor) -> Tensor | None:
    """(D,) s with V = W diag(s) for the layer's weight W; None when V is not held by it so."""
    layer: Network = call.module
    weight = layer.weight.flatten(1)
    if weight.shape != vectors.shape:
        return None
    power = weight.square().sum(dim=0)
    scale = (weight * vectors).sum(dim=0) / torch.where(power == 0, 1.0, power)
    off = (weight * scale - vectors).abs().max()
    return scale if off <= LIMIT * vectors.abs().max().clamp_min(1e-300) else None
