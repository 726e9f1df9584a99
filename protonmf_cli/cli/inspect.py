"""protonmf inspect: what is in a model file, or how a network would be read."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.errors import UsageError
from protonmf_cli.options import RECIPES, ImageWords, Machine, NetworkWords, Output, RowsOption
from protonmf_cli.output.records.inspection import class_json, inspection_facts, inspection_json, network_json
from protonmf_cli.output.records.patches import patches_json
from protonmf_cli.output.text.inspection import inspection_lines, network_lines, prototype_lines
from protonmf_cli.output.text.patches import fault_lines, patch_lines

ROWS = RECIPES["default"].rows
PRETRAINED = Annotated[
    bool,
    typer.Option("--pretrained/--no-pretrained", help="Of a network: its weights, or random ones, without a download."),
]
OF_A_NETWORK = Group(
    partial(arguments.any_network_words, ""), features=arguments.Features, labels=arguments.Labels,
    weights=arguments.Weights, num_classes=arguments.NumClasses, pretrained=PRETRAINED, model_arg=arguments.ModelArg,
    img_size=arguments.ImgSize,
)  # fmt: skip
"""What is said of a network beside its name."""
ON_THE_CPU = Group(
    Machine,
    device=arguments.Device,
    batch_size=arguments.BatchSize,
    threads=arguments.Threads,
    offline=arguments.Offline,
)
DATA = Annotated[str | None, typer.Option("--data", metavar="PATH|URL", help="Images that a model file was made from: look at its training patches again. Exit 5 where they are not what it says.")]  # fmt: skip
BOXES = Annotated[Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: folder or zip of CUB-200-2011's text files.")]  # fmt: skip


def inspect(
    context: typer.Context,
    what: Annotated[str | None, typer.Argument(help="Prototype model file (default: as --model), or a network, named as for convert.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    class_name: Annotated[str | None, typer.Option("--class", help="List the prototypes of one class.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", "--png", help="Figure (.png, .svg or .pdf) of a class's prototypes (--class), or of the curves of -p auto.")] = None,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Of a network: which rows the head is read through.")] = ROWS,
    *,
    function: arguments.NetworkFunction = None,
    network: Annotated[NetworkWords, OF_A_NETWORK],
    images: Annotated[ImageWords | None, arguments.images_if_given("train", DATA, boxes=BOXES)],
    machine: Annotated[Machine, ON_THE_CPU] = Machine(device="cpu"),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Show what a model file holds and how exact it is, or how a network's head would be read.

    Example: protonmf inspect prototypes.safetensors --class flamingo
    """
    if function is not None and what is not None and images is None:
        raise UsageError("name one network: WHAT, or --network package.module:function for one of your own code.")
    what = what if function is None or images is not None else f"python:{function}"
    of_network = {
        "--rows": rows != ROWS,
        "--weights": network.weights,
        "--num-classes": network.num_classes,
        "--no-pretrained": not network.pretrained,
        "--model-arg": network.model_args,
        "--img-size": network.img_size,
        "--features": network.features,
        "--labels": network.labels,
    }
    if images is not None:
        _refuse(
            of_network | {"--class": class_name, "--figure": figure}, "--data is for a model file's training patches"
        )
        _inspect_patches(Path(what or model), images, replace(machine, network=function), shown)
        return
    if what is None or Path(what).is_file() or what.endswith(".safetensors") or what.startswith("hub:"):
        _refuse(of_network, f"{what or model} is a model file, which keeps them")
        picture = None if figure is None else Output(path=figure, force=force, option="--figure")
        jobs.early.check(model=Path(what or model), figures=[picture])
        _inspect_file(Path(what or model), class_name, picture, shown, offline=machine.offline)
        return
    source = context.get_parameter_source("model")  # of typer's own click or of the installed one
    named = source is not None and source.name == "COMMANDLINE"
    of_file = {"--model": named, "--class": class_name, "--figure": figure, "--force": force}
    _refuse(of_file, f"{what} is a network, not a model file")
    _inspect_network(replace(network, name=what), rows, machine, shown)


def _refuse(options: Mapping[str, object], reason: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise UsageError(f"{', '.join(given)} cannot be given here: {reason}.")


def _inspect_file(path: Path, class_name: str | None, figure: Output | None, shown: Shown, *, offline: bool) -> None:
    with shown.progress() as bars:
        found = jobs.inspection.inspect(path, class_name, figure=figure, offline=offline, progress=bars)
    if shown.as_json:
        shown.json(inspection_json(found))
        return
    facts = inspection_facts(found.path, found.model, embedded=found.embedded)
    shown.lines(inspection_lines(facts, found.model, found.interpretation))
    active = found.model.active_classes.tolist()
    listed = [found.class_index] if found.class_index is not None else active
    if len(listed) == 1:
        for line in prototype_lines(class_json(found.model, listed[0])):
            shown.out.print(line, markup=False)


def _inspect_patches(path: Path, images: ImageWords, machine: Machine, shown: Shown) -> None:
    jobs.early.check(model=path, data=[images])
    with shown.progress() as bars:
        found = jobs.patches.inspect_patches(path, images, machine=machine, progress=bars)
    if shown.as_json:
        shown.json(patches_json(found))
    else:
        shown.lines(patch_lines(found))
        shown.text(fault_lines(found))
    jobs.patches.check_patches(found)


def _inspect_network(network: NetworkWords, rows: RowsOption, machine: Machine, shown: Shown) -> None:
    with shown.progress() as bars:
        found = jobs.network_inspection.inspect_network(network, rows, machine=machine, progress=bars)
    if shown.as_json:
        shown.json(network_json(found))
    else:
        shown.lines(network_lines(found))
