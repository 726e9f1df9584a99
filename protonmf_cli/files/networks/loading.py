"""From a model's name to a network in two halves, whichever library it is of."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.networks import (
    given_modules,
    open_clip_networks,
    own_networks,
    timm_networks,
    torchvision_networks,
    transformers_networks,
)
from protonmf_cli.files.networks.labels import class_names, read_labels
from protonmf_cli.files.networks.preprocessing import preprocessing_of
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.models.backbone import ClassName, Preprocessing, Source
from protonmf_cli.models.networks.split_network import SplitNetwork
from protonmf_cli.models.networks.splitting import split_network
from protonmf_cli.models.readouts.readout import Network

TIMM, OWN = "timm", "python"
LIBRARIES: dict[str, Any] = {
    "transformers": transformers_networks,
    "torchvision": torchvision_networks,
    "open_clip": open_clip_networks,
    OWN: own_networks,
}
"""Beside timm, by their names in a model file; each has a PREFIX, `load` and `rebuild`."""


def library_of(name: str) -> str:
    """The library that a network's name belongs to."""
    for library, module in LIBRARIES.items():
        if name.startswith(module.PREFIX):
            return library
    return "transformers" if transformers_networks.is_folder_of_transformers(Path(name)) else TIMM


def load_network(
    request: BackboneRequest, *, for_features: bool = False
) -> tuple[Network, Preprocessing, tuple[ClassName, ...], Source, list[str]]:
    """Load a classifier on the CPU in float32.

    Args:
        request: what is asked for.
        for_features: its head is not needed, and may be lacking.

    Returns:
        The network in evaluation mode with `forward_features` and `forward_head`, its preprocessing, class names,
        where it came from, and notes for the user (such as a completed name).

    Raises:
        UsageError: unknown name.
        InputError: no weights, weights that do not fit or hold NaN, or labels that are not one for each class.
        NotExactError: no classifier.
    """
    library = library_of(request.name)
    if request.given is not None:
        found, is_timms = given_modules.load(request, request.given)
        library = TIMM if is_timms else OWN
    elif library == TIMM:
        found = timm_networks.load(request, for_features=for_features)
    else:
        found = LIBRARIES[library].load(request)
    if not request.pretrained and not for_features:
        _draw_zero_layers(found.network, request.seed)
    _check_finite(found)
    preprocessing = preprocessing_of(found.config, request, found.network)
    network = found.network
    if library != TIMM:
        network = _in_halves(found, preprocessing, request)
    labels = None if request.labels is None else read_labels(request.labels)
    names = () if for_features and library == TIMM else class_names(found, labels)
    source = Source(
        name=found.name,
        architecture=found.architecture,
        model_args=found.arguments,
        digest=digest_of_tensors(network.state_dict()),
        library=library,
        features=network.at if isinstance(network, SplitNetwork) else "",
        prefix=network.num_prefix_tokens if isinstance(network, SplitNetwork) else 0,
        left_out=found.left_out,
        multi_label=bool(found.config.get("multi_label")) if request.multi_label is None else request.multi_label,
    )
    return network, preprocessing, names, source, list(found.notes)


def _check_finite(found: LoadedNetwork) -> None:
    """Refuse weights that are no numbers."""
    for key, tensor in found.network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"the weights of {found.name} hold NaN or infinite numbers (first in {key}); nothing was converted."
            )


def _draw_zero_layers(network: Network, seed: int) -> None:
    """Give layers of an untrained network that start at zero (some classifiers) weights, so that they do something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)


def _in_halves(found: LoadedNetwork, seen: Preprocessing, request: BackboneRequest) -> SplitNetwork:
    return split_network(
        found.network,
        found.config,
        seen.input_size,
        found.name,
        library=library_of(found.name),
        rows=request.rows,
        at=request.features,
    )


def rebuilt_network(source: Source, classes: int, *, trusted: str | None = None) -> Network:
    """The network of a model file without its trained weights, in evaluation mode.

    Args:
        source: where it came from.
        classes: how many it has.
        trusted: function whose code may run, where the network is of the user's own.

    Raises:
        UsageError: its library is not installed.
        InputError: it is of the user's own and not trusted, or of a library that this version does not know.
    """
    if source.library == TIMM:
        return timm_networks.rebuilt_network(source.architecture, source.model_args)
    if source.library not in LIBRARIES:
        raise ModelFileError(f"its network is of {source.library[:40]!r}, which this version does not know")
    if source.library == OWN and trusted != source.architecture:
        raise untrusted(source.architecture)
    build: Callable[[str, Mapping[str, Any]], Network] = LIBRARIES[source.library].rebuild
    return given_modules.in_halves(build(source.architecture, source.model_args), source, classes)


def untrusted(function: str) -> InputError:
    """The refusal of a function that a model file names and its user does not."""
    return InputError(
        f"the network of this model file is built by {function}, a function that is not in the file. "
        f"If you trust that code, give --network {function}; or open the file in Python with a module "
        "of that kind, `load(path, network=module)`."
    )
