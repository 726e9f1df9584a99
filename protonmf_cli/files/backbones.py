"""From a model's name to a Backbone; the only file that imports timm."""

import difflib
import json
import math
import os
import re
import socket
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError, NotExactError, UsageError
from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.images import Crop
from protonmf_cli.models.backbone import (
    ADDON,
    BACKBONE,
    MISFITS,
    Backbone,
    ClassName,
    Preprocessing,
    Source,
    probe_readout,
    unreadable,
)
from protonmf_cli.models.combination import COMBINED, combined_backbone, weights_of_member
from protonmf_cli.models.pooled_features import POOLED_FEATURES, pooled_features
from protonmf_cli.models.protopnet import LATENT_PATCHES, add_on_layers, drop_unused, latent_readout
from protonmf_cli.models.prototype import Card, PrototypeModel, check_backbone
from protonmf_cli.models.readout import Network

REMOTE = "hf-hub:"
LOCAL = "local-dir:"


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


def load_backbone(request: BackboneRequest) -> tuple[Backbone, list[str]]:
    """Load a classifier on the CPU in float32 and find how its head is read.

    Returns:
        The backbone, and notes for the user (such as a completed name).

    Raises:
        UsageError: unknown name.
        InputError: no weights, or weights that do not fit or hold NaN.
        NotExactError: no classifier, or one that cannot be written as a sum over rows.
    """
    timm = import_timm()
    name, notes = complete_name(request.name)
    network = _create(timm, name, request)
    network.eval()
    config = dict(network.pretrained_cfg)
    _check_classifier(name, network)
    if not request.pretrained:
        _draw_zero_layers(network, request.seed)
    _check_trained(name, network, config, request)
    _check_finite(name, network)
    source = _source(network, name, config, request)
    classes = _class_names(timm, network, config)
    return _backbone(network, _preprocessing(timm, network, config, request), classes, source, request.rows), notes


def load_features(request: BackboneRequest) -> tuple[Network, Preprocessing, Source, list[str]]:
    """Load a network on the CPU for its last feature map alone; pool and classifier are dropped.

    Returns:
        The network in evaluation mode, its preprocessing, where it came from, and notes for the user.

    Raises:
        UsageError: unknown name.
        InputError: no weights, weights that do not fit or hold NaN, or features without a grid.
    """
    timm = import_timm()
    name, notes = complete_name(request.name)
    network = _create(timm, name, request)
    network.eval()
    _check_finite(name, network)
    config = dict(network.pretrained_cfg)
    preprocessing = _preprocessing(timm, network, config, request)
    source = _source(network, name, config, request)
    try:
        drop_unused(network, preprocessing.input_size)
    except NotImplementedError as failure:
        raise _encoder(name) from failure
    except MISFITS as failure:
        raise unreadable(name, preprocessing.input_size, failure) from failure
    return network, preprocessing, source, notes


def _preprocessing(timm: Any, network: Network, config: Mapping[str, Any], request: BackboneRequest) -> Preprocessing:
    sizes = {"img_size": request.img_size} if request.img_size else {}
    resolved = timm.data.resolve_data_config(sizes, pretrained_cfg=config, model=network)
    channels, height, width = resolved["input_size"]
    channels = request.model_args.get("in_chans", channels)
    if channels not in (1, 3):
        raise InputError(
            f"{request.name} reads images of {channels} channels; those of 1 (grey) and 3 (colour) can be read."
        )
    if min(height, width) < 1 or not all(0 < value < math.inf for value in resolved["std"]):
        raise InputError(
            f"the preprocessing of {request.name} cannot be used: images of {height} x {width}, divided by "
            f"{tuple(resolved['std'])}."
        )
    return Preprocessing(
        input_size=(channels, height, width),
        interpolation=resolved["interpolation"],
        crop_pct=resolved["crop_pct"],
        crop_mode=resolved["crop_mode"],
        mean=_per_channel(resolved["mean"], channels),
        std=_per_channel(resolved["std"], channels),
        exif_transpose=request.exif_transpose,
    )


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Statistics of colours, or their mean for a network that is asked to read grey."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _source(network: Network, name: str, config: Mapping[str, Any], request: BackboneRequest) -> Source:
    return Source(
        name=name,
        architecture=config.get("architecture") or name,
        model_args=_arguments(network, config, request),
        digest=digest_of_tensors(network.state_dict()),
    )


def restore_backbone(model: PrototypeModel, weights: Mapping[str, Tensor] | None, offline: bool) -> Backbone:
    """The backbone of a model file: from the weights inside it, else from where it was loaded first.

    Raises:
        InputError: the weights are not to be had, or are not the ones the model was made from.
    """
    card = model.card
    rows, kind = card.readout["rows"], card.readout["kind"]  # of which there may be a better one now
    if kind == COMBINED:
        parts = [_restore_latent(member, weights_of_member(weights or {}, n)) for n, member in enumerate(card.members)]
        return combined_backbone(parts, card)
    if kind == LATENT_PATCHES:
        return _restore_latent(card, weights or {})
    if kind == POOLED_FEATURES:
        return _restore_features(model, weights, offline)
    if weights is None:
        loaded, _ = load_backbone(_request_of(card, offline))
        backbone = _backbone(loaded.network, card.preprocessing, card.classes, loaded.source, rows, kind)
    else:
        network = _network_of(card)
        _load_into(network, _part(weights, BACKBONE), card)
        network.eval()
        backbone = _backbone(network, card.preprocessing, card.classes, card.source, rows, kind)
    check_backbone(model, backbone)
    return backbone


def _request_of(card: Card, offline: bool) -> BackboneRequest:
    """What to ask for where the weights are not inside the model file."""
    return BackboneRequest(
        name=card.source.name,
        model_args={k: v for k, v in card.source.model_args.items() if k != "num_classes"},
        rows=card.readout["rows"],
        exif_transpose=card.preprocessing.exif_transpose,
        offline=offline,
    )


def _restore_features(model: PrototypeModel, weights: Mapping[str, Tensor] | None, offline: bool) -> Backbone:
    """The network of a few-shot model."""
    card = model.card
    if weights is None:
        network, _, source, _ = load_features(_request_of(card, offline))
    else:
        network, source = _features_of(card, weights), card.source
    backbone = features_backbone(network, card.preprocessing, card.classes, source, card.readout["layers"])
    check_backbone(model, backbone)
    return backbone


def features_backbone(
    network: Network,
    preprocessing: Preprocessing,
    classes: tuple[ClassName, ...],
    source: Source,
    layers: Sequence[int],
) -> Backbone:
    """A network of `load_features` as the Backbone of a few-shot model."""
    return Backbone(
        network=network,
        readout=pooled_features(network, layers, preprocessing.input_size),
        rows_option="auto",
        preprocessing=preprocessing,
        classes=classes,
        source=source,
        formula_difference=0.0,
    )


def _features_of(card: Card, weights: Mapping[str, Tensor]) -> Network:
    """The network of a file without pool and classifier, in evaluation mode."""
    network = _network_of(card)
    network.eval()
    drop_unused(network, card.preprocessing.input_size)
    _load_into(network, _part(weights, BACKBONE), card)
    return network


def _network_of(card: Card) -> Network:
    """The network of a model file without its weights."""
    return import_timm().create_model(card.source.architecture, pretrained=False, **_tuples(card.source.model_args))


def _restore_latent(card: Card, weights: Mapping[str, Tensor]) -> Backbone:
    """Network and add-on layers of a ProtoPNet; both are always inside its file."""
    network = _features_of(card, weights)
    layers = add_on_layers(
        card.readout["addon"],
        card.readout["features"],
        card.readout["channels"],
        bounded=card.similarity != "cosine",
    )
    _load_into(layers, _part(weights, ADDON), card)
    return latent_backbone(network, layers, card)


def latent_backbone(network: Network, layers: nn.Module, card: Card) -> Backbone:
    """Network and add-on layers as the Backbone of a card."""
    readout = latent_readout(network, layers.eval(), tuple(card.readout["patch"]), card.preprocessing.input_size)
    return Backbone(
        network=network,
        readout=readout,
        rows_option=card.readout["rows"],
        preprocessing=card.preprocessing,
        classes=card.classes,
        source=card.source,
        formula_difference=0.0,
    )


def _part(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


def _load_into(module: Network, weights: Mapping[str, Tensor], card: Card) -> None:
    try:
        module.load_state_dict(dict(weights), strict=True)
    except RuntimeError as failure:
        raise InputError(
            f"the network inside the model file does not fit {card.source.architecture}: {failure}"
        ) from failure


def crop_of(preprocessing: Preprocessing) -> Crop:
    """timm's evaluation transform up to the normalisation: PIL image -> uint8 (channels, height, width)."""
    timm = import_timm()
    try:
        return timm.data.create_transform(
            input_size=preprocessing.input_size,
            interpolation=preprocessing.interpolation,
            crop_pct=preprocessing.crop_pct,
            crop_mode=preprocessing.crop_mode,
            mean=preprocessing.mean,
            std=preprocessing.std,
            normalize=False,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as failure:
        raise InputError(f"the checkpoint's preprocessing cannot be used: {preprocessing} ({failure!r}).") from failure


def crop_for(card: Card) -> Crop:
    """What the network, or every network of a combined model, sees of a picture."""
    if not card.members:
        return crop_of(card.preprocessing)
    crops = [crop_of(member.preprocessing) for member in card.members]
    _, height, width = card.preprocessing.input_size

    def stacked(picture: Any) -> Tensor:
        parts = [crop(picture) for crop in crops]
        padded = [nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in parts]
        return torch.cat(padded)

    return stacked


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


def _create(timm: Any, name: str, request: BackboneRequest) -> Network:
    arguments = dict(request.model_args)
    if request.img_size and _wants_img_size(timm, name):
        arguments["img_size"] = request.img_size
    local = name.startswith(LOCAL)
    if local:
        _check_folder(Path(name.removeprefix(LOCAL)))
    elif request.weights is None and request.pretrained:
        _prepare_download(request.offline)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(request.seed)
            network = timm.create_model(name, pretrained=request.pretrained and not request.weights, **arguments)
        if request.weights is not None:
            if not request.weights.is_file():
                raise InputError(f"the checkpoint {request.weights} does not exist.")
            timm.models.load_checkpoint(network, str(request.weights), strict=True, weights_only=True)
    except (InputError, NotExactError):
        raise
    except NotImplementedError as failure:
        raise _encoder(name) from failure
    except (TypeError, AssertionError) as failure:
        raise UsageError(f"{name} cannot be built with {dict(arguments)}: {_first_line(failure)}") from failure
    except Exception as failure:  # timm, torch, safetensors and the hub each raise their own kinds here
        raise _load_error(name, request, failure) from failure
    return network


def _load_error(name: str, request: BackboneRequest, failure: Exception) -> InputError:
    what = str(request.weights) if request.weights else name
    text = str(failure)
    kind = type(failure).__name__
    if "Error(s) in loading state_dict" in text or "size mismatch" in text:
        lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        return InputError(
            f"the checkpoint {what} does not fit {name}: {lines[0][:200] if lines else text[:200]}"
            f"{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}. "
            "Check the model's name, --num-classes and --model-arg."
        )
    if kind in {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectionError", "URLError"} or (
        "offline" in text.lower() or "Cannot find the requested files" in text or "couldn't connect" in text.lower()
    ):
        return InputError(
            f"the weights of {name} are not on this machine and cannot be downloaded (offline or no network). "
            "Give --weights FILE, local-dir:FOLDER, or connect and try again."
        )
    if kind in {"RepositoryNotFoundError", "EntryNotFoundError", "GatedRepoError"}:
        return InputError(f"the hub has no such model, or no access to it: {name} ({_first_line(failure)}).")
    if "No pretrained weights exist" in text:
        return InputError(f"timm has no pretrained weights for {name}. Give --weights FILE.")
    return InputError(f"the weights {what} cannot be read ({kind}: {_first_line(failure)}).")


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return lines[0][:300] if lines else type(failure).__name__


def _encoder(name: str) -> NotExactError:
    return NotExactError(f"{name} is an encoder and cannot classify. Choose a classification model, e.g. resnet50.")


def _wants_img_size(timm: Any, name: str) -> bool:
    """Whether the network itself must be built for another image size."""
    if name.startswith(LOCAL):
        config = json.loads((Path(name.removeprefix(LOCAL)) / "config.json").read_text())
        return bool(config.get("pretrained_cfg", config).get("fixed_input_size"))
    if name.startswith(REMOTE):
        return False
    return bool(timm.get_pretrained_cfg(name).fixed_input_size)


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        reason = "has no config.json" if folder.is_dir() else "does not exist"
        raise InputError(
            f"the model folder {folder} {reason}. local-dir: wants timm's config.json and model.safetensors."
        )
    try:
        json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise InputError(f"{config} cannot be read as JSON: {failure}.") from failure


def _prepare_download(offline: bool) -> None:
    """Make the hub fail at once instead of after retries when it cannot be reached."""
    from huggingface_hub import constants

    if offline or constants.HF_HUB_OFFLINE:
        constants.HF_HUB_OFFLINE = True
        return
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    try:
        port = address.port or (80 if address.scheme == "http" else 443)
        socket.create_connection((address.hostname or "", port), timeout=3).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True


def _check_classifier(name: str, network: Network) -> None:
    if _is_encoder(network):
        raise _encoder(name)
    if not getattr(network, "num_classes", 0):
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


def _draw_zero_layers(network: Network, seed: int) -> None:
    """Give layers of an untrained network that start at zero (some classifiers) weights, so that they do something."""
    generator = torch.Generator().manual_seed(seed)
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d) and not layer.weight.any():
            nn.init.trunc_normal_(layer.weight, std=0.02, generator=generator)


def _check_trained(name: str, network: Network, config: Mapping[str, Any], request: BackboneRequest) -> None:
    """Refuse the random classifier that timm adds where another number of classes is asked of pretrained weights."""
    trained = config.get("num_classes")
    if request.pretrained and request.weights is None and trained is not None and trained != network.num_classes:
        raise InputError(
            f"the pretrained weights of {name} have {trained or 'no'} classes, so a classifier of "
            f"{network.num_classes} would be random. Give the trained checkpoint with --weights FILE."
        )


def _check_finite(name: str, network: Network) -> None:
    for key, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InputError(
                f"the weights of {name} hold NaN or infinite numbers (first in {key}); nothing was converted."
            )


def _arguments(network: Network, config: Mapping[str, Any], request: BackboneRequest) -> dict[str, Any]:
    """Everything that `create_model` needs to build the same network without its pretrained configuration."""
    arguments = dict(getattr(network, "_model_args", {})) | dict(request.model_args)
    arguments["num_classes"] = int(network.num_classes)
    channels = config.get("input_size", (3,))[0]
    if channels != 3:
        arguments.setdefault("in_chans", channels)
    if config.get("global_pool"):
        arguments.setdefault("global_pool", config["global_pool"])
    if config.get("fixed_input_size"):
        arguments.setdefault("img_size", list(config["input_size"][-2:]))
    return {
        key: value for key, value in arguments.items() if isinstance(value, str | int | float | bool | list | tuple)
    }


def _tuples(arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}


def _class_names(timm: Any, network: Network, config: Mapping[str, Any]) -> tuple[ClassName, ...]:
    """Labels from the checkpoint, else timm's ImageNet tables, else numbers."""
    labels, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    count = int(network.num_classes)
    if labels and len(labels) == count:
        return tuple(ClassName(label=str(label), description=str(descriptions.get(label, ""))) for label in labels)
    subset = timm.data.infer_imagenet_subset(network)
    if subset:
        info = timm.data.ImageNetInfo(subset)
        names = info.label_names()
        return tuple(
            ClassName(label=label, description=info.label_name_to_description(label)) for label in names[:count]
        )
    return tuple(ClassName(label=str(n)) for n in range(count))


def _backbone(
    network: Network,
    preprocessing: Preprocessing,
    classes: tuple[ClassName, ...],
    source: Source,
    rows: str,
    kind: str | None = None,
) -> Backbone:
    readout, difference = probe_readout(network, preprocessing.input_size, rows, source.name, kind=kind)
    return Backbone(
        network=network,
        readout=readout,
        rows_option=rows,
        preprocessing=preprocessing,
        classes=classes,
        source=source,
        formula_difference=difference,
    )
