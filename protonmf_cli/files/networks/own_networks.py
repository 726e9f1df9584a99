"""A network that a function of the user's own builds."""

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError, ProtonmfError, UsageError, first_line
from protonmf_cli.files.networks.failures import loading
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.files.networks.weights import check_checkpoint, load_weights
from protonmf_cli.models.networks.last_squash import last_squash, leave_out
from protonmf_cli.models.networks.split_network import logits_of
from protonmf_cli.models.readouts.readout import Network

PREFIX = "python:"
USUAL = {
    "input_size": (3, 224, 224), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225),
    "interpolation": "bilinear", "crop_pct": 0.875, "crop_mode": "center",
}  # fmt: skip
"""How images are read where a network does not say it: as torchvision's examples do."""


def load(request: BackboneRequest) -> LoadedNetwork:
    """The network of `python:PACKAGE.MODULE:FUNCTION`, which is called with the request's arguments.

    Raises:
        UsageError: nothing can be imported under this name, or it cannot be called so.
        InputError: it builds no network, or the checkpoint does not fit.
    """
    words = request.name.removeprefix(PREFIX)
    arguments = {key: value for key, value in request.model_args.items() if key != "num_classes"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        network = rebuild(words, arguments)
    notes: list[str] = []
    if request.weights is not None:
        check_checkpoint(request.weights)
        with loading(words, request.weights):
            notes = load_weights(network, request.weights)
    return described(network, words, arguments, request, notes)


def described(
    network: nn.Module, words: str, arguments: Mapping[str, Any], request: BackboneRequest, notes: list[str]
) -> LoadedNetwork:
    """A network of the user's with its preprocessing and number of classes.

    Raises:
        InputError: it takes no images of its size, or gives no logits.
    """
    said = config_of(network)
    config: dict[str, Any] = {**USUAL, **said}
    if request.side is not None:
        side = request.side
        size = (side, side) if isinstance(side, int) else tuple(side)
        config["input_size"] = (config["input_size"][0], *size)
    if not said:
        height, width = config["input_size"][1:]
        notes = [
            *notes,
            f"{words} does not say how it reads images: they are scaled to {height} x {width} and normalised as usual "
            "for ImageNet. Give the network an attribute pretrained_cfg (input_size, mean, std, crop_pct, ...) "
            "to say otherwise",
        ]
    try:
        pixels = torch.rand(1, *config["input_size"], generator=torch.Generator().manual_seed(7))
        left_out, kind = _ended_before_probabilities(network, words, pixels)
        if kind is not None:
            said_so = f"{words} ends with {left_out} ({kind.__name__}), which is left out: a logit is what goes into it"
            notes, config["multi_label"] = [*notes, said_so], kind is nn.Sigmoid
        with torch.no_grad():
            logits = logits_of(network(pixels))
    except ProtonmfError:
        raise
    except Exception as failure:  # whatever code of the user's raises
        raise InputError(
            f"{words} cannot read images of {tuple(config['input_size'])} (channels, height, width): "
            f"{type(failure).__name__}: {first_line(failure)}. If it takes another size, give that with --img-size."
        ) from failure
    return LoadedNetwork(
        network=network,
        name=PREFIX + words,
        architecture=words,
        arguments=dict(arguments),
        config=config | {"num_classes": logits.shape[1]},
        notes=tuple(notes),
        left_out=left_out,
    )


def _ended_before_probabilities(network: nn.Module, words: str, pixels: Tensor) -> tuple[str, type[nn.Module] | None]:
    """Leave out a last sigmoid or softmax; its name and kind, or nothing where there is none.

    Raises:
        InputError: the network is not the same without it.
    """
    name = last_squash(network, pixels)
    if not name:
        return "", None
    module = network.get_submodule(name)
    with torch.no_grad():
        before = logits_of(network(pixels))
        leave_out(network, name)
        same = torch.equal(module(logits_of(network(pixels))), before)
    if not same:
        raise InputError(
            f"{words} ends with {name} ({type(module).__name__}) and uses it elsewhere, too: give a network that "
            "returns what goes into it at its end."
        )
    return name, type(module)


def config_of(network: nn.Module) -> dict[str, Any]:
    """What a network says of its images and classes, as timm's networks do."""
    found = getattr(network, "pretrained_cfg", None) or getattr(network, "default_cfg", None) or {}
    return {key: value for key, value in dict(found).items() if value is not None}


def rebuild(words: str, arguments: Mapping[str, Any]) -> Network:
    """Call `PACKAGE.MODULE:FUNCTION`; the current folder is looked through, too.

    Raises:
        UsageError: there is no such function, or it does not take the arguments.
        InputError: it builds something else than a network, or fails.
    """
    with _current_folder():
        made = _function(words)
        try:
            network = made(**arguments)
        except TypeError as failure:
            raise UsageError(f"{words} cannot be called with {dict(arguments)}: {first_line(failure)}.") from failure
        except Exception as failure:  # whatever code of the user's raises
            raise InputError(f"{words} failed: {type(failure).__name__}: {first_line(failure)}.") from failure
    if not isinstance(network, nn.Module):
        raise InputError(f"{words} gives {type(network).__name__}, not a torch.nn.Module.")
    return network.cpu().float().eval()


def _function(words: str) -> Callable[..., Any]:
    module, colon, name = words.partition(":")
    if not (module and colon and name):
        raise UsageError(f"--network {words!r} is not of the form package.module:function.")
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as failure:
        raise UsageError(
            f"--network: there is no module {failure.name!r}, neither installed nor in {Path.cwd()}."
        ) from failure
    except Exception as failure:  # whatever code of the user's raises
        raise InputError(f"{module} cannot be imported: {type(failure).__name__}: {first_line(failure)}.") from failure
    made = getattr(found, name, None)
    if not callable(made):
        there = [each for each, value in vars(found).items() if callable(value) and not each.startswith("_")]
        raise UsageError(f"{module} has no function {name!r}. It has: {', '.join(there[:8]) or 'none'}.")
    return made  # type: ignore[no-any-return]


@contextmanager
def _current_folder() -> Iterator[None]:
    """Within it modules of the current folder can be imported, as in `python -m`."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
