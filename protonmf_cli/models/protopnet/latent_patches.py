"""ProtoPNet: a timm network's last feature map, add-on layers, prototypes, one linear layer without bias.

Reference: Chen, Li, Tao, Barnett, Su and Rudin 2019, "This looks like that: deep learning for interpretable image
recognition", NeurIPS.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError
from protonmf_cli.maths.similarity import SIMILARITIES, distances, patches
from protonmf_cli.models.readouts.hooks import hooked
from protonmf_cli.models.readouts.readout import Network, Reading, Readout

LATENT_PATCHES = "latent-patches"
"""Kind of the readout of a ProtoPNet."""


@dataclass(frozen=True, kw_only=True)
class LatentPatches(Readout):
    """Rows are the patches of the latent map behind the add-on layers; there is no head of the network's own."""

    addon: nn.Module
    patch: tuple[int, int]
    """Height and width of a prototype in places of the latent map."""
    features: int
    """Channels of the network's last feature map."""

    def layers(self) -> dict[str, Tensor]:
        return dict(self.addon.state_dict())

    def read(self, network: Network, pixels: Tensor) -> Reading:
        rows = patches(self.addon(feature_map(network, pixels)), self.patch)
        return Reading(rows=rows, logits=rows.new_empty(rows.shape[0], 0))


def latent_readout(
    network: Network, addon: nn.Module, patch: tuple[int, int], size: tuple[int, int, int]
) -> LatentPatches:
    """Readout of a network cut at its last feature map, for images of `size` (channels, height, width)."""
    with torch.no_grad():
        features = feature_map(network, example_pixels(network, size))
        latent = addon(features)
    height, width = latent.shape[2] - patch[0] + 1, latent.shape[3] - patch[1] + 1
    if height < 1 or width < 1:
        raise InputError(
            f"a prototype of {patch[0]} x {patch[1]} places does not fit the latent map of "
            f"{latent.shape[2]} x {latent.shape[3]}. Give a smaller --patch."
        )
    row_width = latent.shape[1] * math.prod(patch)
    return LatentPatches(
        kind=LATENT_PATCHES,
        vectors=torch.empty(0, row_width),
        bias=torch.empty(0),
        grid=(height, width),
        unplaced=(),
        addon=addon,
        patch=patch,
        features=features.shape[1],
    )


def example_pixels(network: Network, size: tuple[int, int, int]) -> Tensor:
    """One grey image where and as the network computes."""
    weight = next(network.parameters())
    return torch.zeros(1, *size, device=weight.device, dtype=weight.dtype)


def feature_map(network: Network, pixels: Tensor) -> Tensor:
    """The last feature map (B, D, h, w) of any timm network: convolutional, channels-last or tokens on a grid.

    Raises:
        InputError: the features have no grid.
    """
    return map_of(network, network.forward_features(pixels))


def map_of(network: Network, found: object) -> Tensor:
    """The output of `forward_features` as a map (B, D, h, w).

    Raises:
        InputError: the features have no grid.
    """
    if isinstance(found, Tensor) and found.ndim == 4:
        return found if found.shape[1] == network.num_features else found.permute(0, 3, 1, 2)
    if isinstance(found, Tensor) and found.ndim == 3:
        tokens = found[:, _prefix_tokens(network, found.shape[1]) :]
        height, width = _grid(network, tokens.shape[1])
        if height * width == tokens.shape[1]:
            return tokens.mT.reshape(tokens.shape[0], -1, height, width)
    shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    raise InputError(
        f"the last features of this network are {shape}: no grid of places for prototypes. Choose another network."
    )


def _prefix_tokens(network: Network, tokens: int) -> int:
    """Tokens before the grid: as the network says, else one where only the others fill a square."""
    said = getattr(network, "num_prefix_tokens", 0)
    square = math.isqrt(tokens) ** 2 == tokens
    return said or int(not square and math.isqrt(tokens - 1) ** 2 == tokens - 1)


def _grid(network: Network, tokens: int) -> tuple[int, int]:
    """Height and width of a token grid: the patch embedding's, when it fits, else a square."""
    known = getattr(getattr(network, "patch_embed", None), "grid_size", None)
    if known is not None and math.prod(known) == tokens:
        return int(known[0]), int(known[1])
    side = math.isqrt(tokens)
    return side, side


def drop_unused(network: Network, size: tuple[int, int, int]) -> None:
    """Replace the children that `forward_features` never runs (pool, classifier) by nothing.

    The features are compared before and after; a network that needs them after all is left as it was.
    """
    used: set[str] = set()
    pixels = example_pixels(network, size)
    watch = (
        module.register_forward_hook(lambda *_, name=name: used.add(name.split(".")[0]))
        for name, module in network.named_modules()
        if name
    )
    with torch.no_grad():
        with hooked(watch):
            before = feature_map(network, pixels)
        unused = {name: child for name, child in network.named_children() if name not in used}
        for name in unused:
            setattr(network, name, nn.Identity())
        try:
            same = torch.equal(feature_map(network, pixels), before)
        except (AttributeError, TypeError, RuntimeError):
            same = False
        if not same:
            for name, child in unused.items():
                setattr(network, name, child)


def add_on_layers(kind: str, features: int, width: int, *, bounded: bool, gain: float = 1.0) -> nn.Sequential:
    """1x1 convolutions between features and latent map, with the original's Kaiming start.

    Args:
        kind: "regular": two convolutions; "bottleneck": pairs that halve the channels down to `width`.
        features: channels of the feature map.
        width: channels of the latent map.
        bounded: whether a sigmoid ends them, which keeps distances within `width`; cosine similarity needs none.
        gain: scale of the convolutions' start; 1 is the original's.
    """
    layers: list[nn.Module] = []
    if kind == "regular":
        layers += [nn.Conv2d(features, width, 1), nn.ReLU(), nn.Conv2d(width, width, 1)]
    else:
        channels = features
        while not layers or channels > width:
            narrow = max(width, channels // 2)
            layers += [nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, narrow, 1), nn.ReLU()]
            channels = narrow
        layers.pop()
    if bounded:
        layers.append(nn.Sigmoid())
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            layer.weight.data *= gain
            nn.init.zeros_(cast(Tensor, layer.bias))
    return nn.Sequential(*layers)


class Answer(NamedTuple):
    """What ProtoPNet answers to B images."""

    logits: Tensor
    """(B, C)"""
    distances: Tensor
    """(B, P) smallest distance to each prototype."""


class ProtoPNet(nn.Module):
    """logits = W s, s_j = max_n similarity(z_n, p_j), over the patches z_n of the latent map."""

    owner: Tensor
    """(P,) int64, class of each prototype."""

    def __init__(
        self,
        network: nn.Module,
        readout: LatentPatches,
        prototypes: Tensor,
        owner: Tensor,
        classes: int,
        similarity: str,
    ) -> None:
        """Start with the head's weights at +1 to the own class and -0.5 to the others.

        Args:
            network: timm network; only its features are used.
            readout: add-on layers and patch shape.
            prototypes: (P, R) as they start, R = D h1 w1.
            owner: (P,) class of each prototype.
            classes: number of classes C.
            similarity: a key of `SIMILARITIES`.
        """
        super().__init__()
        self.network = network
        self.addon = readout.addon
        self.readout = readout
        self.similarity = similarity
        self.prototypes = nn.Parameter(prototypes.clone())
        self.register_buffer("owner", owner.clone())
        self.head = nn.Parameter(start_of_head(owner, classes), requires_grad=False)

    def rows(self, pixels: Tensor) -> Tensor:
        """Latent patches (B, T, R) of normalised pixels, in float32 whatever the precision of the network."""
        return self.readout.read(self.network, pixels).rows.float()

    def distances(self, rows: Tensor) -> Tensor:
        """(B, T, P) distances of latent patches to all prototypes."""
        return self.distances_to(rows, self.prototypes)

    def distances_to(self, rows: Tensor, prototypes: Tensor) -> Tensor:
        """(B, T, p) distances to some prototypes (p, R), never in half precision."""
        with torch.autocast(rows.device.type, enabled=False):
            return distances(rows, prototypes, self.similarity)

    def similarities(self, found: Tensor) -> Tensor:
        """Similarities of distances of any shape."""
        return SIMILARITIES[self.similarity](found)

    def forward(self, pixels: Tensor) -> Answer:
        """Logits and smallest distances."""
        nearest = self.distances(self.rows(pixels)).amin(dim=1)
        with torch.autocast(nearest.device.type, enabled=False):
            return Answer(logits=self.similarities(nearest) @ self.head.mT, distances=nearest)


def start_of_head(owner: Tensor, classes: int) -> Tensor:
    """(C, P) +1 from each prototype to its class and -0.5 to the others."""
    own = owner == torch.arange(classes, device=owner.device)[:, None]
    return torch.where(own, 1.0, -0.5)
