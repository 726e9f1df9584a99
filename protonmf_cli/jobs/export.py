"""An edited head back into an ordinary timm checkpoint."""

from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.readouts.head_writing import write_head
from protonmf_cli.options import Machine, Output
from protonmf_cli.pipelines.progress import LOGGED, Progress

ON_THE_CPU = Machine(device="cpu")


@dataclass(frozen=True, kw_only=True)
class Export:
    """A timm checkpoint that was written."""

    model: Path
    """Prototype model whose logits it gives."""
    folder: Path
    architecture: str
    edits: int
    """Of the model, which the checkpoint holds."""
    relative_difference: float
    """Between its logits and the model's, in float64, in units of their spread."""


def export(
    model: Loaded | str | PathLike[str],
    output: str | PathLike[str] | Output,
    *,
    machine: Machine = ON_THE_CPU,
    progress: Progress = LOGGED,
) -> Export:
    """Write a (edited) model as a timm checkpoint folder; timm alone then gives the edited logits.

    Args:
        model: a file, or a model that is loaded, which stays as it is.
        output: folder for config.json and model.safetensors; it is made.
        machine: threads, and where a file is loaded to; the head is written on the CPU.
        progress: is told if the file is older than amounts.

    Raises:
        InputError: the folder is a file, or holds something already.
        NotExactError: the head is not one layer that the edit could be written into.
    """
    target = Output.of(output)
    _check_folder(target)
    with threads_of(machine):
        loaded = loaded_from(model, machine, progress)
        # moving and writing change a network in place
        own = deepcopy(loaded.backbone) if isinstance(model, Loaded) else loaded.backbone
        backbone = own.to(torch.device("cpu"), torch.float32)
        difference = write_head(backbone, loaded.model.head_vectors(), loaded.model.exact.bias)
        card = loaded.model.card
        save_checkpoint(
            target.path,
            backbone.network,
            architecture=card.source.architecture,
            model_args=card.source.model_args,
            preprocessing=card.preprocessing,
            classes=card.classes,
        )
    return Export(
        model=loaded.path,
        folder=target.path,
        architecture=card.source.architecture,
        edits=len(card.edits),
        relative_difference=difference,
    )


def _check_folder(output: Output) -> None:
    """Refuse a folder that cannot be written to, before any work.

    Raises:
        InputError: with what to do about it.
    """
    folder = output.path
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; -o names a folder for config.json and model.safetensors.")
    if folder.is_dir() and any(folder.iterdir()) and not output.force:
        raise InputError(f"the folder {folder} is not empty. Give --force to write into it, or another -o.")
