"""protonmf export: an edited head back into an ordinary timm checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.options import Machine, Output
from protonmf_cli.output.records.export import export_json
from protonmf_cli.output.text.export import export_lines

DOWNLOADS = Group(Machine, offline=arguments.Offline)


def export(
    output: Annotated[Output, arguments.output("Folder to write: config.json and model.safetensors.")],
    file: Annotated[Path | None, typer.Argument(help="Prototype model file. Default: as --model.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    machine: Annotated[Machine, DOWNLOADS] = Machine(device="cpu"),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:
    """Write a (edited) model as a timm checkpoint folder; timm alone then gives the edited logits."""
    with shown.progress() as bars:
        written = jobs.export.export(file or model, output, machine=machine, progress=bars)
    shown.result(export_json(written), lambda _: export_lines(written))
