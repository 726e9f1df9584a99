"""protonmf export: a model for other programs: an ordinary timm checkpoint, or a graph of ONNX."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.options import ExportFormat, Machine, Output
from protonmf_cli.output.records.export import export_json
from protonmf_cli.output.text.export import export_lines

DOWNLOADS = Group(Machine, offline=arguments.Offline)


def export(
    output: Annotated[Output, arguments.output("Folder of the timm checkpoint to write, or ONNX file.")],
    file: Annotated[Path | None, typer.Argument(help="Prototype model file. Default: as --model.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    written_as: Annotated[ExportFormat, typer.Option("--format", help="checkpoint: a folder whose logits the network's own library gives. onnx: one graph, image to logits, amounts and maps.")] = "checkpoint",
    machine: Annotated[Machine, DOWNLOADS] = Machine(device="cpu"),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Write a (edited) model as a timm checkpoint, whose logits timm alone gives, or as an ONNX graph.

    Example: protonmf export edited.safetensors -o network
    """
    jobs.early.check(model=file or model)
    jobs.early.check_apart([output], [file or model])
    with shown.progress() as bars:
        written = jobs.export.export(file or model, output, format=written_as, machine=machine, progress=bars)
    shown.result(export_json(written), lambda _: export_lines(written))
