"""An untrained ProtoPNet around a pretrained network."""

from collections.abc import Sequence

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source
from protonmf_cli.models.protopnet.latent_patches import (
    ProtoPNet,
    add_on_layers,
    example_pixels,
    feature_map,
    latent_readout,
)
from protonmf_cli.models.readouts.readout import Network
from protonmf_cli.options import ProtoPNetOptions


def new_protopnet(
    network: Network,
    preprocessing: Preprocessing,
    source: Source,
    classes: tuple[ClassName, ...],
    options: ProtoPNetOptions,
    per_class: Sequence[int],
    device: torch.device,
) -> tuple[ProtoPNet, Backbone]:
    """Add-on layers and prototypes drawn with the seed; the global random state is left as it was.

    Args:
        network: timm network of which only the features are used.
        preprocessing, source, classes: of the network and the data.
        options: architecture and seed; the width is a number.
        per_class: prototypes of each class.
        device: where it trains.

    Returns:
        The network, and the same as a Backbone that reads images.
    """
    width = options.width or options.widths[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        with torch.no_grad():
            features = feature_map(network, example_pixels(network, preprocessing.input_size)).shape[1]
        bounded = options.similarity != "cosine"
        layers = add_on_layers(options.addon, features, width, bounded=bounded, gain=options.addon_gain)
        readout = latent_readout(network, layers.eval(), options.patch, preprocessing.input_size)
        owner = owners(per_class)
        prototypes = torch.rand(len(owner), readout.width)
    net = ProtoPNet(network, readout, prototypes, owner, len(classes), options.similarity).to(device).eval()
    backbone = Backbone(
        network=network,
        readout=readout.to(device=device),
        rows_option="latent",
        preprocessing=preprocessing,
        classes=classes,
        source=source,
    )
    return net, backbone


def owners(per_class: Sequence[int]) -> Tensor:
    """(P,) class of each prototype, class after class.

    >>> owners([2, 1]).tolist()
    [0, 0, 1]
    """
    return torch.arange(len(per_class)).repeat_interleave(torch.tensor(list(per_class)))


def check_patches(
    counts: Sequence[int], per_class: Sequence[int], backbone: Backbone, *, distinct: bool
) -> tuple[str, ...]:
    """Refuse classes that cannot have their prototypes, before any training.

    Args:
        counts: images of each class.
        per_class: prototypes of each class.
        backbone: for the number of patches per image.
        distinct: whether the prototypes of a class must be different patches.

    Returns:
        Warnings for the user.

    Raises:
        InputError: a class without images, or with fewer patches than prototypes.
    """
    single = []
    for name, images, prototypes in zip(backbone.classes, counts, per_class, strict=True):
        if not images:
            raise InputError(f"class {name.shown} has no readable image to train on. Add images or remove the folder.")
        patches = images * backbone.readout.places
        if distinct and prototypes > patches:
            raise InputError(
                f"class {name.shown} has {patches} patches ({images} images), fewer than its {prototypes} prototypes. "
                "Give more images or a smaller -p."
            )
        if images == 1:
            single.append(name.shown)
    warnings = []
    if single:
        warnings.append(
            f"classes with one training image: {', '.join(single[:5])}. All their prototypes are patches of it."
        )
    if backbone.readout.places == 1:
        warnings.append(
            "the latent map has a single place, so that every patch is a whole image. Give a larger --img-size, or "
            "--model-arg output_stride=8 or 16."
        )
    return tuple(warnings)
