"""protonmf export: an edited head back into an ordinary timm checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError


def export(
    folder: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: config.json and model.safetensors.")],
    file: Annotated[Path | None, typer.Argument(help="Prototype model file. Default: as --model.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Write a (edited) model as a timm checkpoint folder; timm alone then gives the edited logits."""
    shown = Shown(quiet=quiet)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; -o names a folder for config.json and model.safetensors.")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise InputError(f"the folder {folder} is not empty. Give --force to write into it, or another -o.")
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.files.networks.checkpoints import save_checkpoint
    from protonmf_cli.models.readouts.head_writing import write_head

    loaded = open_model(file or model, device="cpu", dtype="float32", threads=None, offline=offline)
    card = loaded.model.card
    difference = write_head(loaded.backbone, loaded.model.head_vectors(), loaded.model.exact.bias)
    save_checkpoint(
        folder,
        loaded.backbone.network,
        architecture=card.source.architecture,
        model_args=card.source.model_args,
        preprocessing=card.preprocessing,
        classes=card.classes,
    )
    edits = len(card.edits)
    if as_json:
        facts = {"model": str(file or model), "output": str(folder), "edits": edits}
        shown.json({"schema": "protonmf.export/1"} | facts | {"relative_difference": difference})
    else:
        shown.out.print(f"{folder}: {card.source.architecture} with {edits} edit{'s' * (edits != 1)}", markup=False)
        shown.out.print(
            f"timm.create_model('local-dir:{folder}', pretrained=True) gives these logits "
            f"(float64 difference {difference:.0e} of their spread)",
            markup=False,
        )
