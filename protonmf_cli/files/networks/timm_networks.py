"""From a model's name to a timm network."""

import difflib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from protonmf_cli.errors import InputError, ModelFileError, NotExactError, ProtonmfError, UsageError, first_line
from protonmf_cli.files.images.reader import LFS_POINTER
from protonmf_cli.files.networks.failures import loading_error
from protonmf_cli.files.networks.hub_access import hub_asked
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.files.networks.sizes import of_usual_size
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.files.networks.weights import Rename, check_checkpoint, load_weights
from protonmf_cli.models.readouts.readout import Network

REMOTE = "hf-hub:"
LOCAL = "local-dir:"
OF_THE_LOADER = {
    "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path",
    "cache_dir", "features_only", "scriptable", "exportable", "no_jit", "device", "dtype", "pretrained_filter_fn",
    "pretrained_custom_load", "model_cfg", "feature_cfg", "kwargs_filter",
}  # fmt: skip
"""Arguments of timm's `create_model` that say how to load a network, not what it is."""


def load(request: BackboneRequest, *, for_features: bool = False) -> LoadedNetwork:
    """A network of timm.

    Args:
        request: what is asked for.
        for_features: its head is not needed, and may be lacking.

    Raises:
        UsageError: unknown name, or arguments that timm does not take.
        InputError: no weights, or weights that cannot be read or do not fit.
        NotExactError: no classifier.
    """
    name, notes = complete_name(request.name)
    network, more = _with_weights(name, request)
    if not for_features:
        check_classifier(name, network)
        check_trained(name, network, request)
    architecture = network.pretrained_cfg.get("architecture") or name
    return LoadedNetwork(
        network=network,
        name=name,
        architecture=architecture,
        arguments=arguments_of(architecture, network, request),
        config={**network.pretrained_cfg, "num_classes": int(network.num_classes or 0)},
        notes=(*notes, *more),
    )


def complete_name(name: str) -> tuple[str, list[str]]:
    """A name as timm wants it, with a note when something was added.

    Raises:
        UsageError: nothing is called so; names the closest.
    """
    timm = import_timm()
    if name.startswith((REMOTE, LOCAL)):
        return name, []
    if Path(name).is_dir():
        return LOCAL + name, []
    bare, dot, tag = name.partition(".")
    if timm.is_model(bare):
        if dot and name not in timm.list_pretrained():
            tags = list(timm.list_pretrained(f"{bare}.*"))
            raise UsageError(f"timm has no weights {name!r} for {bare}. It has: {', '.join(tags) or 'none'}.")
        return name, []
    sized = [known for known in timm.list_models(f"{bare}_*") if re.fullmatch(r"\d+", known[len(bare) + 1 :])]
    if sized:
        chosen = min(sized, key=lambda known: (not known.endswith("_224"), int(known.rpartition("_")[2])))
        return chosen + dot + tag, [f"{name} is taken as {chosen + dot + tag}"]
    close = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
    hint = f" Did you mean {', '.join(close)}?" if close else " `timm.list_models()` lists them."
    raise UsageError(f"timm has no model called {name!r}.{hint}")


def create_network(name: str, request: BackboneRequest) -> Network:
    """The network of a completed name, with its weights, in evaluation mode.

    Raises:
        UsageError: timm does not take the arguments.
        InputError: there are no weights, or they cannot be read or do not fit.
        NotExactError: an encoder.
    """
    return _with_weights(name, request)[0]


def _with_weights(name: str, request: BackboneRequest) -> tuple[Network, list[str]]:
    """As `create_network`, and notes for the user."""
    timm, notes = import_timm(), list[str]()
    reserved = sorted(OF_THE_LOADER & request.model_args.keys())
    if reserved:
        raise UsageError(
            f"--model-arg {reserved[0]} says how timm loads a network. Weights are given with --weights FILE."
        )
    config: dict[str, Any] = {}
    if name.startswith(LOCAL):
        config = _config_of(Path(name.removeprefix(LOCAL)))
    from_hub = not config and request.weights is None and request.pretrained
    if request.weights is not None:
        check_checkpoint(request.weights)
    elif config and request.pretrained:
        _check_weights(Path(name.removeprefix(LOCAL)))
    _check_here(name, wanted=from_hub and request.offline)
    arguments = dict(request.model_args)
    try:
        hub, sizes = (
            hub_asked(from_hub and not request.offline),
            of_usual_size({**config, "arguments": arguments}, name),
        )
        with hub, sizes, torch.random.fork_rng(devices=[]):
            if request.img_size and _wants_img_size(timm, name, config):
                arguments["img_size"] = request.img_size
            torch.manual_seed(request.seed)
            network = timm.create_model(name, pretrained=request.pretrained and not request.weights, **arguments)
        if request.weights is not None:
            notes = load_weights(network, request.weights, _rename_of(network))
    except ProtonmfError:
        raise
    except NotImplementedError as failure:
        raise encoder(name) from failure
    except (TypeError, AssertionError) as failure:
        if arguments:
            raise UsageError(f"{name} cannot be built with {arguments}: {first_line(failure)}") from failure
        raise InputError(f"{name} cannot be built from its config.json: {first_line(failure)}") from failure
    except Exception as failure:  # timm, torch, safetensors and the hub each raise their own kinds here
        raise loading_error(name, request.weights, failure) from failure
    return network.eval(), notes


def _check_here(name: str, *, wanted: bool) -> None:
    """Where that is wanted, refuse weights that timm takes from the web, which being offline with the hub does not
    forbid.

    Raises:
        InputError: they are not on this machine.
    """
    found = None if not wanted or name.startswith((REMOTE, LOCAL)) else import_timm().get_pretrained_cfg(name)
    if found is None or found.hf_hub_id or not found.url:
        return
    kept = Path(torch.hub.get_dir()) / "checkpoints" / found.url.rpartition("/")[2]
    if not kept.is_file():
        raise InputError(
            f"the weights of {name} are not on this machine ({kept}) and --offline forbids to download them. "
            "Give --weights FILE."
        )


def _rename_of(network: Network) -> Rename | None:
    """How timm itself renames the weights of other libraries for a network."""
    return getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)


def _wants_img_size(timm: Any, name: str, config: dict[str, Any]) -> bool:
    """Whether the network itself must be built for another image size; `config` is that of a folder."""
    if name.startswith(LOCAL):
        config, name = config.get("pretrained_cfg", config), config["architecture"]
    elif name.startswith(REMOTE):
        config, name, _ = timm.models.load_model_config_from_hf(name.removeprefix(REMOTE))
    usual = timm.get_pretrained_cfg(name)
    return bool(config.get("fixed_input_size") or (usual and usual.fixed_input_size))


def _config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a folder in timm's format."""
    config = folder / "config.json"
    if not config.is_file():
        reason = "has no config.json" if folder.is_dir() else "does not exist"
        raise InputError(
            f"the model folder {folder} {reason}. local-dir: wants timm's config.json and model.safetensors."
        )
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as failure:
        raise InputError(f"{config} cannot be read as JSON: {first_line(failure).rstrip('.')}.") from failure
    if not isinstance(found, dict) or not isinstance(found.get("architecture"), str):
        raise InputError(f'{config} does not name a timm architecture: it wants an object with "architecture": "...".')
    if not import_timm().is_model(found["architecture"]):
        raise InputError(f"{config} names the architecture {found['architecture']!r}, which this timm does not have.")
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(found.get(key, {}), dict):
            raise InputError(f"{config} is not in timm's format: {key!r} must be an object, not {found[key]!r}.")
    return found


def _check_weights(folder: Path) -> None:
    """Refuse a folder without weights, or with a name of some that leads to none.

    Raises:
        InputError: naming the folder or the file.
    """
    held = [file for file in sorted(folder.iterdir()) if file.suffix in (".safetensors", ".bin", ".pth", ".pt", ".npz")]
    if not held:
        raise InputError(
            f"the model folder {folder} holds no weights: put model.safetensors beside its config.json, or give "
            "--weights FILE."
        )
    file = next((file for file in held if file.name == "model.safetensors"), held[0])  # which timm prefers
    if not file.is_file():
        raise InputError(
            f"the weights {file} are {'a folder' if file.is_dir() else 'a link that leads to no file'}: put the file "
            "itself there, or give --weights FILE."
        )
    with file.open("rb") as weights:
        if weights.read(len(LFS_POINTER)) == LFS_POINTER:
            raise InputError(f"{file} is a pointer of git-lfs and not the weights: fetch them with `git lfs pull`.")


def encoder(name: str) -> NotExactError:
    """The refusal of a network that has no head at all."""
    return NotExactError(f"{name} is an encoder and cannot classify. Choose a classification model, e.g. resnet50.")


def check_classifier(name: str, network: Network) -> None:
    """Refuse encoders and embedding models."""
    if _is_encoder(network):
        raise encoder(name)
    if (getattr(network, "num_classes", 0) or 0) < 1:
        raise NotExactError(
            f"{name} has no classifier (num_classes is 0), so there are no logits to explain. "
            "Give a checkpoint with a head: --weights FILE --num-classes C."
        )


def _is_encoder(network: Network) -> bool:
    """Whether a network has no head at all, whatever number of classes is asked for."""
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        return True
    try:
        network.forward_head(torch.zeros(1, 1, 1))
    except NotImplementedError:
        return True
    except Exception:  # a head that wants other features than these
        return False
    return False


def check_trained(name: str, network: Network, request: BackboneRequest) -> None:
    """Refuse the random classifier that timm adds where another number of classes is asked of pretrained weights."""
    trained = network.pretrained_cfg.get("num_classes")
    if request.pretrained and request.weights is None and trained is not None and trained != network.num_classes:
        raise InputError(
            f"the pretrained weights of {name} have {trained or 'no'} classes, so a classifier of "
            f"{network.num_classes} would be random. Give the trained checkpoint with --weights FILE."
        )


def arguments_of(architecture: str, network: Network, request: BackboneRequest) -> dict[str, Any]:
    """Everything that `rebuilt_network` needs to build the same network without its pretrained configuration.

    Raises:
        InputError: what it would build has other tensors, so that a model file could not be opened again.
    """
    config = network.pretrained_cfg
    arguments = dict(getattr(network, "_model_args", {})) | dict(request.model_args)
    arguments["num_classes"] = int(network.num_classes)
    channels = config.get("input_size", (3,))[0]
    if channels != 3:
        arguments.setdefault("in_chans", channels)
    if config.get("global_pool"):
        arguments.setdefault("global_pool", config["global_pool"])
    if config.get("fixed_input_size"):
        arguments.setdefault("img_size", list(config["input_size"][-2:]))
    kept = {k: v for k, v in arguments.items() if isinstance(v, str | int | float | bool | list | tuple)}
    built_for = getattr(getattr(network, "patch_embed", None), "img_size", None)
    for tried in (kept, kept | {"img_size": list(built_for)}) if built_for else (kept,):
        if _builds_the_same(network, architecture, tried):
            return tried
    raise InputError(
        f"{request.name} cannot be built again: {architecture} with {kept} has other weights, so a model file of it "
        "could not be opened. Give what is missing with --model-arg."
    )


def _builds_the_same(network: Network, architecture: str, arguments: Mapping[str, Any]) -> bool:
    """Whether a network from these arguments has the same tensors, by name and shape."""
    try:
        with torch.device("meta"):
            again = rebuilt_network(architecture, arguments)
    except NotImplementedError:  # what this timm cannot build without memory
        return True
    shapes, others = ({k: v.shape for k, v in each.state_dict().items()} for each in (network, again))
    return shapes == others


def rebuilt_network(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """A network in evaluation mode without its trained weights, from `arguments_of`, which may have been JSON."""
    foreign = sorted(OF_THE_LOADER & arguments.keys())
    if foreign:
        raise ModelFileError(f"its network asks timm's loader for {', '.join(foreign)}, which it may not")
    timm = import_timm()
    if not timm.is_model(architecture.partition(".")[0]):
        raise ModelFileError(f"its network is {architecture[:80]!r}, which this timm does not have")
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return timm.create_model(architecture, pretrained=False, **given).eval()
