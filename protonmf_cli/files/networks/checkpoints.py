"""A network as a folder that its own library loads: timm's format, or the weights under the library's own names."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.models.backbone import ClassName, Preprocessing, Source
from protonmf_cli.models.networks.split_network import SplitNetwork


def save_checkpoint(
    folder: Path,
    network: nn.Module,
    *,
    architecture: str,
    model_args: Mapping[str, Any],
    preprocessing: Preprocessing,
    classes: Sequence[ClassName],
) -> None:
    """Write `config.json` and `model.safetensors` into a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architecture": architecture,
        "num_classes": len(classes),
        "label_names": [name.label for name in classes],
        "label_descriptions": {name.label: name.description for name in classes if name.description},
        "model_args": dict(model_args),
        "pretrained_cfg": {
            "input_size": list(preprocessing.input_size),
            "interpolation": preprocessing.interpolation,
            "crop_pct": preprocessing.crop_pct,
            "crop_mode": preprocessing.crop_mode,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "num_classes": len(classes),
        },
    }
    _save_tensors(folder, network)
    write_atomically(folder / "config.json", json.dumps(config, indent=1).encode())


def save_weights(folder: Path, network: SplitNetwork, source: Source) -> None:
    """Write `model.safetensors` under the library's own names into a folder, which is made; for transformers, whose
    `from_pretrained` reads it, with their `config.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _save_tensors(folder, network.network.network if source.model_args.get("reversed_channels") else network.network)
    if source.library == "transformers":
        config = {**source.model_args["config"], "architectures": [source.architecture]}
        write_atomically(folder / "config.json", json.dumps(config, indent=1).encode())


def _save_tensors(folder: Path, network: Any) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(folder / "model.safetensors", safetensors.torch.save(tensors, {"format": "pt"}))
