"""What a user asks for as a network, and what a library gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from protonmf_cli.models.readouts.readout import Network


@dataclass(frozen=True, kw_only=True, eq=False)
class GivenModule:
    """A network that Python holds, and what it does not say of itself."""

    module: nn.Module
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """As timm's `pretrained_cfg`: input_size, mean, std, ..., beyond or instead of the module's own."""
    classes: Sequence[str] | None = None
    """Their names."""
    classes_of_data: Sequence[str] | None = None
    """What the training images' classes are called, where neither the user nor the network says it."""


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """What the user asks for."""

    name: str
    """A timm name (or one without its image size), or LIBRARY:NAME."""
    weights: Path | None = None
    """Checkpoint to load instead of the pretrained weights."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    rows: str = "auto"
    img_size: int | None = None
    labels: Path | None = None
    """File with the name of one class on each line."""
    features: str | None = None
    """Module that the features come out of, for networks that are not timm's."""
    multi_label: bool | None = None
    """Whether an image may be of several classes; as the network says if None."""
    exif_transpose: bool = False
    offline: bool = False
    pretrained: bool = True
    """False: weights drawn with the seed, for training from scratch."""
    seed: int = 0
    given: GivenModule | None = None
    """The network itself, which then has no other name."""

    @property
    def side(self) -> int | Sequence[int] | None:
        """Image side in pixels, or height and width, where one is asked for."""
        return self.img_size or self.model_args.get("img_size")


@dataclass(frozen=True, kw_only=True)
class LoadedNetwork:
    """A network as its library gives it."""

    network: Network
    """In evaluation mode, on the CPU; with timm's `pretrained_cfg` where the library is timm."""
    name: str
    """As the user gave it, completed."""
    architecture: str
    """What the library builds it from, together with the arguments."""
    arguments: Mapping[str, Any]
    """Values that JSON can hold."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """As timm's `pretrained_cfg`: input_size, mean, std, label_names, ...; and multi_label, see `Source`."""
    left_out: str = ""
    """See `Source`."""
    notes: tuple[str, ...] = ()
