"""A network that Python holds, as a module."""

import copy
from dataclasses import replace

from torch import nn

from protonmf_cli.errors import InputError
from protonmf_cli.files.networks import own_networks, timm_networks
from protonmf_cli.files.networks.request import BackboneRequest, GivenModule, LoadedNetwork
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.backbone import Source
from protonmf_cli.models.networks.last_squash import leave_out
from protonmf_cli.models.networks.split_network import SplitNetwork
from protonmf_cli.models.readouts.readout import Network


def name_of(module: nn.Module) -> str:
    """python:PACKAGE.MODULE:CLASS, by which a network is called that has no other name."""
    kind = type(module)
    return f"{own_networks.PREFIX}{kind.__module__}:{kind.__qualname__}"


def load(request: BackboneRequest, given: GivenModule) -> tuple[LoadedNetwork, bool]:
    """A copy of the module with what it, or the user, says of its images and classes; and whether it is timm's.

    Raises:
        InputError: it reads no images, or gives no logits.
    """
    network = copied(given.module)
    found = _of_timm(network, request, given)
    if found is not None:
        return _with_classes(found, given), True
    config = own_networks.config_of(network) | dict(given.preprocessing)
    if config:
        network.pretrained_cfg = config
    words = name_of(given.module).removeprefix(own_networks.PREFIX)
    return _with_classes(own_networks.described(network, words, {}, request, []), given), False


def copied(module: nn.Module) -> Network:
    """A copy in evaluation mode, on the CPU, in float32, so that the module stays as it is."""
    return copy.deepcopy(module).cpu().float().eval()


def rebuilt(source: Source, classes: int, module: nn.Module) -> Network:
    """A copy of the module, in the two halves of a model file's network."""
    network = copied(module)
    if not source.features:
        return network
    if source.features not in dict(network.named_modules()):
        raise InputError(
            f"the network of the model file is read at its module {source.features!r}, which {type(module).__name__} "
            "does not have."
        )
    return in_halves(network, source, classes)


def in_halves(network: nn.Module, source: Source, classes: int) -> SplitNetwork:
    """A network that is not timm's, split where the one of a model file was."""
    if source.left_out:
        leave_out(network, source.left_out)
    return SplitNetwork(
        network, source.features, {"num_classes": classes}, library=source.library, prefix=source.prefix
    ).eval()


def _of_timm(network: Network, request: BackboneRequest, given: GivenModule) -> LoadedNetwork | None:
    """A network of timm as such; None of others, and of those that were rebuilt beyond what timm makes."""
    config = own_networks.config_of(network)
    architecture, halves = config.get("architecture"), ("forward_features", "forward_head", "num_classes")
    if request.features or not architecture or not all(hasattr(network, name) for name in halves):
        return None
    if not import_timm().is_model(architecture):
        return None
    try:
        arguments = timm_networks.arguments_of(architecture, network, request)
    except InputError:
        return None
    return LoadedNetwork(
        network=network,
        name=name_of(given.module),
        architecture=architecture,
        arguments=arguments,
        config={**config, **given.preprocessing, "num_classes": int(network.num_classes or 0)},
    )


def _with_classes(found: LoadedNetwork, given: GivenModule) -> LoadedNetwork:
    """The classes that the user names; else those of the data, where they are as many and the network has no names."""
    names = given.classes
    if names is None and not found.config.get("label_names") and not _is_of_imagenet(found):
        names = given.classes_of_data if len(given.classes_of_data or ()) == found.config["num_classes"] else None
    if names is None:
        return found
    config = {**found.config, "label_names": list(names), "label_descriptions": None}
    return replace(found, config=config)


def _is_of_imagenet(found: LoadedNetwork) -> bool:
    return hasattr(found.network, "pretrained_cfg") and bool(import_timm().data.infer_imagenet_subset(found.network))
