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
from protonmf_cli.options import RECIPES, Machine, NetworkWords, Output, RowsOption
from protonmf_cli.output.records.inspection import class_json, inspection_facts, inspection_json, network_json
from protonmf_cli.output.text.inspection import inspection_lines, network_lines, prototype_lines

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
ON_THE_CPU = Group(Machine, threads=arguments.Threads, offline=arguments.Offline)


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
    machine: Annotated[Machine, ON_THE_CPU] = Machine(device="cpu"),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Show what a model file holds and how exact it is, or how a network's head would be read.

    Example: protonmf inspect prototypes.safetensors --class flamingo
    """
    if function is not None and what is not None:
        raise UsageError("name one network: WHAT, or --network package.module:function for one of your own code.")
    what = what if function is None else f"python:{function}"
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


def _inspect_network(network: NetworkWords, rows: RowsOption, machine: Machine, shown: Shown) -> None:
    with shown.progress() as bars:
        found = jobs.network_inspection.inspect_network(network, rows, machine=machine, progress=bars)
    if shown.as_json:
        shown.json(network_json(found))
    else:
        shown.lines(network_lines(found))
