"""From a model's name to a timm network; the only file that imports timm."""

import difflib
import json
import os
import re
import socket
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from huggingface_hub import constants, errors
from torch import nn

from protonmf_cli.errors import InputError, NotExactError, UsageError
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.readouts.readout import Network

UNREACHABLE = (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError, URLError)
"""What timm and the hub raise where weights are not here and cannot be fetched."""
NOT_THERE = (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.GatedRepoError)
REMOTE = "hf-hub:"
LOCAL = "local-dir:"
OF_THE_LOADER = {
    "model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path",
    "cache_dir", "features_only", "scriptable", "exportable", "no_jit", "device", "dtype",
}  # fmt: skip
"""Arguments of timm's `create_model` that say how to load a network, not what it is."""


@dataclass(frozen=True, kw_only=True)
class BackboneRequest:
    """What the user asks for."""

    name: str
    """timm name, hf-hub:org/name, local-dir:PATH, or a name without its image size."""
    weights: Path | None = None
    """Checkpoint to load instead of the pretrained weights."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    rows: str = "auto"
    img_size: int | None = None
    exif_transpose: bool = False
    offline: bool = False
    pretrained: bool = True
    """False: weights drawn with the seed, for training from scratch."""
    seed: int = 0

    @property
    def side(self) -> int | Sequence[int] | None:
        """Image side in pixels, or height and width, where one is asked for."""
        return self.img_size or self.model_args.get("img_size")


def import_timm() -> Any:
    """timm, also where torchvision's compiled part does not fit torch (a CPU build of one beside the other's).

    timm needs torchvision's transforms only. They import once the schemas of the two operators that
    torchvision annotates at import exist; the operators themselves stay unavailable.
    """
    try:
        import timm
    except RuntimeError as failure:
        if "torchvision::" not in str(failure):
            raise
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import_timm.library = library  # type: ignore[attr-defined]  # its schemas live as long as it does
        import timm
    return timm


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
    timm = import_timm()
    reserved = sorted(OF_THE_LOADER & request.model_args.keys())
    if reserved:
        raise UsageError(
            f"--model-arg {reserved[0]} says how timm loads a network. Weights are given with --weights FILE."
        )
    config: dict[str, Any] = {}
    if name.startswith(LOCAL):
        config = _config_of(Path(name.removeprefix(LOCAL)))
    from_hub = not config and request.weights is None and request.pretrained
    if request.weights is not None and not request.weights.is_file():
        lacking = "is a folder, not a file" if request.weights.is_dir() else "does not exist"
        raise InputError(f"the checkpoint {request.weights} {lacking}.")
    arguments = dict(request.model_args)
    try:
        asked = from_hub and not request.offline and _reachable()
        with _hub(asked=asked), torch.random.fork_rng(devices=[]):
            if request.img_size and _wants_img_size(timm, name, config):
                arguments["img_size"] = request.img_size
            torch.manual_seed(request.seed)
            network = timm.create_model(name, pretrained=request.pretrained and not request.weights, **arguments)
        if request.weights is not None:
            timm.models.load_checkpoint(network, str(request.weights), strict=True, weights_only=True)
    except NotImplementedError as failure:
        raise encoder(name) from failure
    except (TypeError, AssertionError) as failure:
        if arguments:
            raise UsageError(f"{name} cannot be built with {arguments}: {_first_line(failure)}") from failure
        raise InputError(f"{name} cannot be built from its config.json: {_first_line(failure)}") from failure
    except Exception as failure:  # timm, torch, safetensors and the hub each raise their own kinds here
        raise _load_error(name, request, failure) from failure
    return network.eval()


def _load_error(name: str, request: BackboneRequest, failure: Exception) -> InputError:
    what = str(request.weights) if request.weights else name
    text = str(failure)
    if "Error(s) in loading state_dict" in text or "size mismatch" in text:
        lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return InputError(
            f"the checkpoint {what} does not fit {name}: {lines[0][:200] if lines else text[:200]}"
            f"{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}. "
            "Check the model's name, --num-classes and --model-arg."
        )
    if isinstance(failure, UNREACHABLE):
        return InputError(
            f"the weights of {name} are not on this machine and cannot be downloaded (offline or no network). "
            "Give --weights FILE, local-dir:FOLDER, or connect and try again."
        )
    if isinstance(failure, NOT_THERE):
        return InputError(f"the hub has no such model, or no access to it: {name} ({_first_line(failure)}).")
    if "weights_only" in text:
        return InputError(
            f"{what} is a pickle of more than tensors, which is not read. Save its state dict as safetensors."
        )
    if "No pretrained weights exist" in text:
        return InputError(f"timm has no pretrained weights for {name}. Give --weights FILE.")
    return InputError(f"the weights {what} cannot be read ({type(failure).__name__}: {_first_line(failure)}).")


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:300] if lines else type(failure).__name__


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
    except (OSError, ValueError) as failure:
        raise InputError(f"{config} cannot be read as JSON: {failure}.") from failure
    if not isinstance(found, dict) or not isinstance(found.get("architecture"), str):
        raise InputError(f'{config} does not name a timm architecture: it wants an object with "architecture": "...".')
    if not import_timm().is_model(found["architecture"]):
        raise InputError(f"{config} names the architecture {found['architecture']!r}, which this timm does not have.")
    for key in ("pretrained_cfg", "model_args"):
        if not isinstance(found.get(key, {}), dict):
            raise InputError(f"{config} is not in timm's format: {key!r} must be an object, not {found[key]!r}.")
    return found


@contextmanager
def _hub(*, asked: bool) -> Iterator[None]:
    """Within it the hub gives only what is on this machine unless it is asked; afterwards all is as before."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not asked
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable() -> bool:
    """Whether the hub answers: it would try for a minute before it takes what is on this machine."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        return False
    return True


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


def check_finite(name: str, network: Network) -> None:
    """Refuse weights that are no numbers."""
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"the weights of {name} hold NaN or infinite numbers (first in {key}); nothing was converted."
            )


def draw_zero_layers(network: Network, seed: int) -> None:
    """Give layers of an untrained network that start at zero (some classifiers) weights, so that they do something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)


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
        raise InputError(
            f"the model file asks timm's loader for {', '.join(foreign)}, which it may not. Convert again."
        )
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    return import_timm().create_model(architecture, pretrained=False, **given).eval()


def class_names(name: str, network: Network) -> tuple[ClassName, ...]:
    """Labels from the checkpoint, else timm's ImageNet tables, else numbers.

    Raises:
        InputError: labels that are not one text or number for each class.
    """
    timm, config = import_timm(), network.pretrained_cfg
    labels, descriptions = config.get("label_names"), config.get("label_descriptions")
    count = int(network.num_classes)
    if labels is not None:
        is_list = isinstance(labels, list | tuple) and all(isinstance(each, str | int) for each in labels)
        if not is_list or len(labels) != count:
            found = f"{len(labels)} labels" if is_list else "something else than a list of labels"
            raise InputError(f"the label_names of {name} hold {found}, but its classifier has {count} classes.")
        described = descriptions if isinstance(descriptions, dict) else {}
        return tuple(ClassName(label=str(each), description=str(described.get(str(each)) or "")) for each in labels)
    subset = timm.data.infer_imagenet_subset(network)
    if subset:
        info = timm.data.ImageNetInfo(subset)
        names = info.label_names()
        return tuple(
            ClassName(label=label, description=info.label_name_to_description(label)) for label in names[:count]
        )
    return tuple(ClassName(label=str(n)) for n in range(count))
