"""The readout of a few-shot model: feature maps of one or several layers of a frozen network, place by place."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.models.protopnet.latent_patches import example_pixels, feature_map, map_of
from protonmf_cli.models.readouts.readout import Network, Reading, Readout

POOLED_FEATURES = "pooled-features"
"""Kind of the readout of a few-shot model."""
LAST = -1
"""The layer whose output the network itself pools."""


@dataclass(frozen=True, kw_only=True)
class PooledFeatures(Readout):
    """Rows are the places of the last grid; an image's feature is their mean. There is no head."""

    joined: tuple[int, ...]
    """Layers, counted from the end: -1 is the last; earlier maps are averaged down to the last one's grid."""
    blocks: tuple[int, ...]
    """Channels of each layer."""

    def read(self, network: Network, pixels: Tensor) -> Reading:
        maps = joined_maps(network, pixels, self.joined)
        rows = torch.cat([one.flatten(2).mT for one in maps], dim=2)
        return Reading(rows=rows, logits=rows.new_empty(rows.shape[0], 0))


def joined_maps(network: Network, pixels: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """Feature maps (B, D_l, h, w) of several layers on the grid of the last one, in one pass."""
    if tuple(layers) == (LAST,):
        return [feature_map(network, pixels)]
    earlier = [layer for layer in layers if layer != LAST]
    final, found = network.forward_intermediates(pixels, indices=_indices(network, earlier), output_fmt="NCHW")
    last = map_of(network, final)
    grid = (last.shape[2], last.shape[3])
    maps = dict(zip(sorted(earlier), found, strict=True)) | {LAST: last}
    return [functional.adaptive_avg_pool2d(maps[layer], grid) for layer in layers]


def _indices(network: Network, layers: Sequence[int]) -> list[int]:
    """Layers counted from the end as timm counts them from the start."""
    depth = len(network.feature_info)
    return sorted(depth + layer for layer in layers)


def pooled_features(network: Network, layers: Sequence[int], size: tuple[int, int, int]) -> PooledFeatures:
    """The readout of a network for images of `size` (channels, height, width).

    Raises:
        InputError: the network has no such layer, or its features have no grid.
    """
    depth = len(getattr(network, "feature_info", ())) or 1
    wrong = [layer for layer in layers if not -depth <= layer <= LAST]
    if wrong or len(set(layers)) != len(layers) or not layers:
        raise InputError(
            f"layers {', '.join(map(str, layers))} cannot be joined: this network has {depth}, counted from -1 (the "
            f"last) to {-depth}; name each once."
        )
    if tuple(layers) != (LAST,) and not hasattr(network, "forward_intermediates"):
        raise InputError("this network gives no feature maps of earlier layers. Use its last one: --layers -1.")
    with torch.no_grad():
        maps = joined_maps(network, example_pixels(network, size), layers)
    blocks = tuple(one.shape[1] for one in maps)
    return PooledFeatures(
        kind=POOLED_FEATURES,
        vectors=torch.empty(0, sum(blocks)),
        bias=torch.empty(0),
        grid=(maps[0].shape[2], maps[0].shape[3]),
        unplaced=(),
        joined=tuple(layers),
        blocks=blocks,
    )
