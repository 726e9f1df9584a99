"""Classifiers of torchvision, with the transform and the class names that stand in the record of their weights."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.networks.failures import loading_error
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.files.networks.weights import check_checkpoint, load_weights
from protonmf_cli.models.readouts.readout import Network

PREFIX = "torchvision:"
AUXILIARY = ("googlenet", "inception_v3")
"""Networks with further classifiers, which only training uses."""
OF_ONE_SIZE = "vit_"
"""How the names of networks begin that are built for images of one size."""


def load(request: BackboneRequest) -> LoadedNetwork:
    """A network named `torchvision:NAME[:WEIGHTS]`.

    Raises:
        UsageError: torchvision has no such network or weights, or does not take the arguments.
        InputError: there are no weights, or they cannot be read or do not fit.
    """
    models = _models()
    name, _, tag = request.name.removeprefix(PREFIX).partition(":")
    _check_name(models, name)
    trained = _record(models, name, tag)
    wants = request.pretrained and request.weights is None
    names = tuple(trained.meta["categories"])
    arguments = _arguments(request, name, trained, wants=wants)
    count = int(arguments["num_classes"])
    if wants and count != len(names):
        raise InputError(
            f"the pretrained weights of {name} have {len(names)} classes. "
            "Give the trained checkpoint with --weights FILE."
        )
    notes: list[str] = []
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            if wants:
                _check_offline(trained, request)
                network = models.get_model(name, weights=trained, progress=False, **arguments).eval()
            else:
                network = rebuild(name, arguments)
            if request.weights is not None:
                check_checkpoint(request.weights)
                notes = load_weights(network, request.weights)
    except (TypeError, AssertionError) as failure:
        raise UsageError(f"{name} cannot be built with {arguments}: {failure}.") from failure
    except (InputError, UsageError):
        raise
    except Exception as failure:  # torch, safetensors and the download each raise their own kinds here
        raise loading_error(request.name, request.weights, failure) from failure
    told = {"label_names": list(names)} if count == len(names) else {}
    return LoadedNetwork(
        network=network,
        name=f"{PREFIX}{name}{f':{tag}' if tag else ''}",
        architecture=name,
        arguments=arguments,
        config={"num_classes": count, **_seen(trained.transforms()), **told},
        notes=tuple(notes),
    )


def rebuild(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """A network without trained weights, and without the classifiers that only training uses."""
    more = {"aux_logits": False, "init_weights": False} if architecture in AUXILIARY else {}
    models = _models()
    if architecture not in models.list_models(module=models):
        raise ModelFileError(f"its network is {architecture[:80]!r}, and torchvision has no classifier called so")
    return models.get_model(architecture, weights=None, **(more | dict(arguments))).eval()


def _models() -> Any:
    import_timm()  # which makes torchvision importable
    import torchvision

    return torchvision.models


def _check_name(models: Any, name: str) -> None:
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"Did you mean {', '.join(close)}?" if close else f"It has {', '.join(known[:6])}, ..."
        raise UsageError(f"torchvision has no classifier called {name!r}. {hint}")


def _record(models: Any, name: str, tag: str) -> Any:
    """The weights of a tag, else the usual ones."""
    every = models.get_model_weights(name)
    if not tag:
        return every.DEFAULT
    if tag not in every.__members__:
        raise UsageError(f"torchvision has no weights {tag!r} for {name}. It has: {', '.join(every.__members__)}.")
    return every[tag]


def _arguments(request: BackboneRequest, name: str, trained: Any, *, wants: bool) -> dict[str, Any]:
    """What is asked for, and what torchvision itself sets for these weights."""
    arguments = {"num_classes": len(trained.meta["categories"])} | dict(request.model_args)
    if wants and name in AUXILIARY:
        arguments.setdefault("transform_input", True)
    if name.startswith(OF_ONE_SIZE):
        own = trained.meta["min_size"][0]
        arguments.setdefault("image_size", own if wants else request.img_size or own)
    return arguments


def _check_offline(trained: Any, request: BackboneRequest) -> None:
    """Refuse to download where that is not wanted."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / trained.url.rpartition("/")[2]
    if request.offline and not kept.is_file():
        raise InputError(
            f"the weights of {request.name} are not on this machine ({kept}) and --offline forbids to download them. "
            "Give --weights FILE."
        )


def _seen(transform: Any) -> dict[str, Any]:
    """A transform of torchvision as timm's `pretrained_cfg` has it."""
    shown, scaled = transform.crop_size[0], transform.resize_size[0]
    return {
        "input_size": (3, shown, shown),
        "crop_pct": shown / scaled,
        "crop_mode": "center",
        "interpolation": transform.interpolation.value,
        "mean": tuple(transform.mean),
        "std": tuple(transform.std),
    }
