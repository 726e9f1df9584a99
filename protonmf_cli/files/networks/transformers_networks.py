"""Image classifiers of Hugging Face's transformers, from the hub or a folder; never with code of their own."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from protonmf_cli.errors import InputError, ModelFileError, NotExactError, ProtonmfError, UsageError, first_line
from protonmf_cli.files.networks.failures import loading, silenced
from protonmf_cli.files.networks.hub_access import hub_asked
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.files.networks.sizes import of_usual_size
from protonmf_cli.files.networks.weights import check_checkpoint, load_weights
from protonmf_cli.models.readouts.readout import Network

PREFIX = "hf:"
ORIGIN = ("_name_or_path", "auto_map")
"""Of a configuration: where it came from, and whose code it would run."""


def is_folder_of_transformers(folder: Path) -> bool:
    """Whether a folder's config.json is one of transformers."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and "model_type" in found and "architecture" not in found


def load(request: BackboneRequest) -> LoadedNetwork:
    """A classifier with its preprocessing and class names.

    Raises:
        UsageError: transformers is not installed.
        InputError: nothing is there, its weights cannot be read, or it runs code of its author.
        NotExactError: it does not classify images.
    """
    path, at, revision = request.name.removeprefix(PREFIX).partition("@")
    if at and Path(path).is_dir():
        path, revision = path + at + revision, ""
    where: dict[str, Any] = {"trust_remote_code": False, **({"revision": revision} if revision else {})}
    transformers = import_transformers()
    with hub_asked(not Path(path).is_dir() and not request.offline) as asked, _quiet():
        where["local_files_only"] = not asked
        try:
            return _loaded(transformers, path, where, request)
        except ProtonmfError:
            raise
        except Exception as failure:  # whatever the library raises at a configuration that is damaged
            what = f"{type(failure).__name__}: {first_line(failure).rstrip('.')}"
            raise InputError(f"{request.name} cannot be read as a model of transformers ({what}).") from failure


def _loaded(transformers: Any, path: str, where: Mapping[str, Any], request: BackboneRequest) -> LoadedNetwork:
    config = _config(transformers, path, where, request)
    network, notes = _network(transformers, path, config, where, request)
    seen, more = _seen(transformers, path, config, where, request)
    labels = [str(config.id2label[n]) for n in range(config.num_labels)]
    told: dict[str, Any] = {"multi_label": config.problem_type == "multi_label_classification"}
    if labels != [f"LABEL_{n}" for n in range(len(labels))]:
        told["label_names"] = labels
    kept = json.loads(config.to_json_string(use_diff=True))
    reverse = bool(seen.pop("reversed_channels"))
    return LoadedNetwork(
        network=ReversedChannels(network).eval() if reverse else network.eval(),
        name=request.name if request.name.startswith(PREFIX) else PREFIX + request.name,
        architecture=type(network).__name__,
        arguments={
            "config": kept | {"model_type": config.model_type, "num_labels": config.num_labels},
            **({"reversed_channels": True} if reverse else {}),
        },
        config={"num_classes": config.num_labels, **seen, **told},
        notes=(*notes, *more),
    )


def rebuild(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """The network of a model file, without its trained weights."""
    transformers = import_transformers()
    kept = {name: value for name, value in dict(arguments["config"]).items() if name not in ORIGIN}
    config = transformers.AutoConfig.for_model(kept.pop("model_type"), **kept)
    classes = [each for each in _classifiers(transformers, config) if getattr(each, "__name__", "") == architecture]
    if not classes:
        raise ModelFileError(f"its network is {architecture[:80]!r}, which this transformers does not have")
    network = classes[0]._from_config(config).eval()
    return ReversedChannels(network) if arguments.get("reversed_channels") else network


class ReversedChannels(nn.Module):
    """A network that was trained on blue, green, red, for pixels as red, green, blue."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Any:
        """What the network gives."""
        return self.network(pixels.flip(1))


def import_transformers() -> Any:
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    try:
        import transformers
    except ImportError as failure:
        raise UsageError(
            "Hugging Face's networks need the package transformers: pip install 'protonmf[transformers]'."
        ) from failure
    return transformers


def _config(transformers: Any, path: str, where: Mapping[str, Any], request: BackboneRequest) -> Any:
    try:
        config = transformers.AutoConfig.from_pretrained(path, **where)
    except (OSError, ValueError) as failure:
        text = str(failure)
        if "trust_remote_code" in text or "custom code" in text:
            raise InputError(
                f"{request.name} runs code of its author, which is never done. If you trust it, give a function "
                "of your own that loads it: --network package.module:function."
            ) from failure
        if isinstance(failure, OSError) and not Path(path).is_dir():
            raise InputError(
                f"the model {request.name} is not on this machine and cannot be downloaded ({first_line(failure)})."
            ) from failure
        raise InputError(f"{request.name} cannot be read: {first_line(failure)}.") from failure
    if config.model_type == "timm_wrapper":
        prefixed = f"local-dir:{path}" if Path(path).is_dir() else f"hf-hub:{path}"
        raise InputError(f"{request.name} is a network of timm, in its format: name it {prefixed}.")
    config.architectures = config.architectures or []  # which transformers looks through
    if not _classifiers(transformers, config):
        raise NotExactError(
            f"{request.name} is of type {config.model_type}, which does not classify images. "
            "Choose a model of the task image-classification."
        )
    named = [name for name in config.architectures or () if not name.endswith(("Model", "ModelWithProjection"))]
    if named and not any(name.partition("For")[2].startswith("ImageClassification") for name in named):
        raise NotExactError(f"{request.name} is {named[0]}, a model of another task than image-classification.")
    return config


def _classifiers(transformers: Any, config: Any) -> tuple[Any, ...]:
    """Classes of image classifiers that take a configuration."""
    found = transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING.get(type(config), ())
    return tuple(found) if isinstance(found, list | tuple) else (found,)


def _network(
    transformers: Any, path: str, config: Any, where: Mapping[str, Any], request: BackboneRequest
) -> tuple[Network, list[str]]:
    foreign = sorted(request.model_args.keys() - {"num_classes"})
    if foreign:
        raise UsageError(f"--model-arg {foreign[0]} is for timm's networks; {request.name} has its config.json.")
    if request.model_args.get("num_classes", config.num_labels) != config.num_labels:
        raise UsageError(f"--num-classes: {request.name} has {config.num_labels} classes, as its config.json says.")
    kind, notes = transformers.AutoModelForImageClassification, []
    with (
        loading(request.name, request.weights),
        of_usual_size(config.to_dict(), request.name),
        torch.random.fork_rng(devices=[]),
    ):
        torch.manual_seed(request.seed)
        if request.weights is not None:
            check_checkpoint(request.weights)
            network = kind.from_config(config)
            notes = load_weights(network, request.weights)
        elif not request.pretrained:
            network = kind.from_config(config)
        else:
            network, told = kind.from_pretrained(path, config=config, output_loading_info=True, **where)
            _check_head(request.name, told)
    return network.float(), notes


def _check_head(name: str, told: Mapping[str, Any]) -> None:
    """Refuse weights that leave a part of the network as it was drawn."""
    lacking = sorted(told.get("missing_keys", ()))
    wrong = sorted(str(each) for each in told.get("mismatched_keys", ()))
    if lacking or wrong:
        what = f"no weights for {lacking[0]}" if lacking else f"weights of another shape for {wrong[0]}"
        raise NotExactError(
            f"{name} has {what}{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}, so its classifier would "
            "be random. Choose a checkpoint that was trained for image-classification."
        )


def _seen(
    transformers: Any, path: str, config: Any, where: Mapping[str, Any], request: BackboneRequest
) -> tuple[dict[str, Any], list[str]]:
    """Preprocessing as timm's `pretrained_cfg` has it."""
    notes = []
    try:
        found = transformers.AutoImageProcessor.from_pretrained(path, **where)
    except (OSError, ValueError):
        try:
            usual = import_module("transformers.models.auto.image_processing_auto").IMAGE_PROCESSOR_MAPPING
            found = next(each for each in usual[type(config)].values() if each is not None)()
        except (KeyError, StopIteration, ImportError):
            raise InputError(
                f"{request.name} has no preprocessor_config.json, and its type {config.model_type} no usual one."
            ) from None
        notes.append(
            f"{request.name} has no preprocessor_config.json: images are read as usual for {config.model_type}"
        )
    return preprocessing_as_timm(found.to_dict(), int(getattr(config, "num_channels", 3)), request.name), notes


def preprocessing_as_timm(said: Mapping[str, Any], channels: int, name: str) -> dict[str, Any]:
    """An image processor's values in timm's words, and whether its network reads the channels in reverse.

    Args:
        said: of a `preprocessor_config.json`, with defaults filled in.
        channels: of an image.
        name: of the model, for messages.

    Raises:
        InputError: it does something that timm's transform cannot.
    """
    size, crop = _sides(said.get("size")), _sides(said.get("crop_size"))
    if said.get("do_center_crop") and crop is not None:
        shown = crop
    elif said.get("do_resize", True) and size is not None:
        shown = size
    else:
        raise InputError(f"the preprocessing of {name} does not say to which size images are brought.")
    scaled = size if said.get("do_resize", True) and size is not None else shown
    pct = said.get("crop_pct")  # ConvNeXt and others: below 384 pixels, images are scaled beyond what is shown
    squash = not _of_shortest_edge(said.get("size"))
    if pct and shown[0] >= 384:
        ratio, squash = 1.0, True
    else:
        ratio = float(pct) if pct else shown[0] / scaled[0]
    factor = float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 1.0
    offset = 1.0 if said.get("rescale_offset") else 0.0
    normal = bool(said.get("do_normalize"))
    mean = said.get("image_mean") if normal else None
    std = said.get("image_std") if normal else None
    if std is not None and said.get("include_top"):  # EfficientNet's divides twice
        std = [each * each for each in std]
    if said.get("do_flip_channel_order"):
        mean, std = (None if each is None else list(each)[::-1] for each in (mean, std))
    means, stds = ([0.0] * channels if mean is None else mean), ([1.0] * channels if std is None else std)
    return {
        "input_size": (channels, *shown),
        "crop_pct": ratio,
        "crop_mode": "squash" if squash else "center",
        "interpolation": Image.Resampling(int(said.get("resample") or 2)).name.lower(),
        "mean": tuple((each + offset) / (255 * factor) for each in means),
        "std": tuple(each / (255 * factor) for each in stds),
        "reversed_channels": bool(said.get("do_flip_channel_order")),
    }


def _of_shortest_edge(said: Any) -> bool:
    """Whether a size keeps the shape of an image."""
    found = said.get("shortest_edge") if isinstance(said, Mapping) else getattr(said, "shortest_edge", None)
    return found is not None


def _sides(said: Any) -> tuple[int, int] | None:
    """Height and width of a size; of the shortest edge, a square."""
    said = asdict(said) if is_dataclass(said) and not isinstance(said, type) else said
    if isinstance(said, int):
        return said, said
    if isinstance(said, Mapping) and said.get("height") and said.get("width"):
        return int(said["height"]), int(said["width"])
    edge = said.get("shortest_edge") if isinstance(said, Mapping) else None
    return (int(edge), int(edge)) if edge else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it transformers logs errors alone, and shows no bars."""
    said = import_module("transformers.utils.logging")
    bars = said.is_progress_bar_enabled()
    said.disable_progress_bar()
    try:
        with silenced("transformers", logging.ERROR):
            yield
    finally:
        if bars:
            said.enable_progress_bar()
