"""CLIP's image towers by open_clip, as zero-shot classifiers of the classes in a list."""

import difflib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.networks.failures import loading, silenced
from protonmf_cli.files.networks.hub_access import hub_asked
from protonmf_cli.files.networks.labels import read_labels
from protonmf_cli.files.networks.request import BackboneRequest, LoadedNetwork
from protonmf_cli.files.networks.weights import check_checkpoint, load_weights
from protonmf_cli.models.networks.zero_shot import ZeroShotClassifier
from protonmf_cli.models.readouts.readout import Network

PREFIX = "open_clip:"
SENTENCES = ("itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.",
             "a {} in a video game.", "art of the {}.", "a photo of the small {}.")  # fmt: skip
"""In which a class is named where no sentence is given: the seven of Radford et al. 2021 (CLIP) that do best."""
FOLDER, CONFIG = "local-dir:", "open_clip_config.json"
"""How open_clip calls a model in a folder, and the file there that says what it is."""
MODES = {"shortest": "center", "squash": "squash", "longest": "border"}
"""How open_clip brings an image to its size, in timm's words."""


def load(request: BackboneRequest) -> LoadedNetwork:
    """An image tower `open_clip:ARCHITECTURE[:TAG]` with the labels of a file; the text tower runs once.

    Raises:
        UsageError: open_clip is not installed or has no such network, or no labels are given.
        InputError: there are no weights, or they cannot be read or do not fit.
    """
    library = _import()
    architecture, _, tag = request.name.removeprefix(PREFIX).partition(":")
    _check_name(library, architecture, tag, request)
    if request.labels is None:
        raise UsageError(f"{request.name} has no classes of its own: give --labels FILE, with one on each line.")
    labels = read_labels(request.labels)
    sentences = _sentences(request)
    with loading(request.name, request.weights):
        model, tokenizer, notes = _built(library, architecture, tag, request)
        with torch.no_grad():
            texts = library.build_zero_shot_classifier(model, tokenizer, labels, [each.format for each in sentences])
    network = _classifier(model, texts.mT)
    return LoadedNetwork(
        network=network,
        name=request.name,
        architecture=architecture,
        arguments={"num_classes": len(labels), "width": texts.shape[0]},
        config={"num_classes": len(labels), "label_names": labels, **_seen(library.get_model_preprocess_cfg(model))},
        notes=(*notes, f"the classes are named in {len(sentences)} sentences ({sentences[0].format(labels[0])} ...)"),
    )


def rebuild(architecture: str, arguments: Mapping[str, Any]) -> Network:
    """The network of a model file, without its trained weights."""
    library = _import()
    if architecture not in library.list_models():
        raise ModelFileError(f"its network is {architecture[:80]!r}, which this open_clip does not have")
    with silenced(None, logging.CRITICAL):  # it warns that weights are drawn
        visual = library.create_model(architecture, pretrained=None, precision="fp32").visual
    return ZeroShotClassifier(visual, int(arguments["width"]), int(arguments["num_classes"])).eval()


def both_towers(request: BackboneRequest) -> tuple[Network, Any, Mapping[str, Any], list[str]]:
    """Image and text tower `open_clip:ARCHITECTURE[:TAG]`, or those that open_clip or its users saved in a folder.

    Returns:
        The model with both towers, what makes tokens of sentences, the preprocessing as timm's `pretrained_cfg` has it,
        and notes.

    Raises:
        UsageError: open_clip is not installed, or has no such network.
        InputError: there are no weights, or they cannot be read or do not fit.
    """
    library = _import()
    if not request.name.startswith(PREFIX) or request.name.startswith(PREFIX + FOLDER):
        folder = Path(request.name.removeprefix(PREFIX).removeprefix(FOLDER))
        if not (folder / CONFIG).is_file():
            raise UsageError(
                f"--tower {request.name} is neither open_clip:ARCHITECTURE:TAG nor a folder with {CONFIG} and weights, "
                "as open_clip saves them."
            )
        name, tag = f"{FOLDER}{folder}", ""
    else:
        name, _, tag = request.name.removeprefix(PREFIX).partition(":")
        _check_name(library, name, tag, request)
    with loading(request.name, request.weights):
        model, tokenizer, notes = _built(library, name, tag, request)
    return model, tokenizer, _seen(library.get_model_preprocess_cfg(model)), notes


def _built(library: Any, name: str, tag: str, request: BackboneRequest) -> tuple[Network, Any, list[str]]:
    """A model of open_clip with its weights, what makes tokens, and notes."""
    wants = request.pretrained and request.weights is None
    notes: list[str] = []
    asked = hub_asked(wants and not request.offline)
    with asked, silenced(None, logging.CRITICAL), torch.random.fork_rng(devices=[]):
        torch.manual_seed(request.seed)
        model = library.create_model(
            name, pretrained=tag or None if wants else None, precision="fp32", load_weights=wants,
            require_pretrained=wants,
        ).eval()  # fmt: skip
        tokenizer = library.get_tokenizer(name)
    if request.weights is not None:
        check_checkpoint(request.weights)
        notes = load_weights(model, request.weights)
    return model, tokenizer, notes


def _import() -> Any:
    try:
        import open_clip
    except ImportError as failure:
        raise UsageError(
            "networks of open_clip need the package open_clip_torch: pip install 'protonmf[open_clip]'."
        ) from failure
    return open_clip


def _check_name(library: Any, architecture: str, tag: str, request: BackboneRequest) -> None:
    known = library.list_models()
    if architecture not in known:
        close = difflib.get_close_matches(architecture, known, n=3, cutoff=0.4)
        raise UsageError(
            f"open_clip has no network called {architecture!r}. Did you mean {', '.join(close) or known[0]}?"
        )
    tags = library.list_pretrained_tags_by_model(architecture)
    if request.pretrained and request.weights is None and tag not in tags:
        what = f"has no weights {tag!r}" if tag else "wants the name of its weights"
        raise UsageError(
            f"{PREFIX}{architecture} {what}: write {PREFIX}{architecture}:TAG with one of "
            f"{', '.join(tags[:12]) or 'none'}, or give --weights FILE."
        )


def _sentences(request: BackboneRequest) -> Sequence[str]:
    foreign = sorted(request.model_args.keys() - {"sentence"})
    if foreign:
        raise UsageError(
            f"--model-arg {foreign[0]} is for timm's networks; open_clip's take sentence='a photo of a {{}}.'."
        )
    given = request.model_args.get("sentence")
    if given is not None and "{}" not in str(given):
        raise UsageError(f"--model-arg sentence={given!r} has no {{}} where the name of a class goes.")
    return SENTENCES if given is None else (str(given),)


def _classifier(model: Network, texts: Tensor) -> ZeroShotClassifier:
    """The image tower with text vectors (C, D), its scale and its bias."""
    found = ZeroShotClassifier(model.visual, texts.shape[1], len(texts))
    bias = getattr(model, "logit_bias", None)
    with torch.no_grad():
        found.texts.weight.copy_(model.logit_scale.exp() * texts)
        found.texts.bias.copy_(torch.zeros(len(texts)) if bias is None else bias.expand(len(texts)))
    return found.eval()


def _seen(said: Mapping[str, Any]) -> dict[str, Any]:
    """open_clip's preprocessing as timm's `pretrained_cfg` has it."""
    size, mode = said["size"], said.get("resize_mode", "shortest")
    if mode not in MODES:
        raise InputError(f"open_clip's resize_mode {mode!r} cannot be done here.")
    return {
        "input_size": (3, size, size) if isinstance(size, int) else (3, *size),
        "crop_pct": 1.0,
        "crop_mode": MODES[mode],
        "interpolation": said.get("interpolation", "bicubic"),
        "mean": tuple(said["mean"]),
        "std": tuple(said["std"]),
    }
