"""protonmf protopnet push, prune, combine: change trained files."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs, options
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.options import ImageWords, Machine, Output
from protonmf_cli.output.records.protopnet import combination_json, pruning_json, push_json
from protonmf_cli.output.text.protopnet import combination_facts, pruning_facts, push_facts

DEFAULT_MODEL = Path("protopnet.safetensors")
"""What `train` writes and the other commands read, unless they are told otherwise."""
File = Annotated[Path | None, typer.Argument(help="ProtoPNet file. Default: as --model.")]
L1 = Annotated[float | None, typer.Option("--l1", min=0, show_default="as trained", help="Weight of the L1 term.")]
LastLayer = Annotated[
    options.LastLayer | None,
    typer.Option(
        "--last-layer", show_default="as trained", help="exact: solved; passes: trained as in the original code."
    ),
]
OUTPUT = arguments.output("Model to write.")
MACHINE = Group(
    Machine,
    batch_size=arguments.BatchSize,
    workers=arguments.Workers,
    device=arguments.Device,
    threads=arguments.Threads,
)


def images_of_file(split: str) -> Group:
    """Labelled images of a file's classes; `split` is read unless another is named."""
    boxes = Annotated[
        Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: CUB-200-2011's text files.")
    ]
    return Group(
        partial(ImageWords, split=split), data=arguments.Data, split=arguments.Split,
        class_map=arguments.ClassMapFile, boxes=boxes, max_skipped=arguments.MaxSkipped,
    )  # fmt: skip


def push(
    images: Annotated[ImageWords, images_of_file(split="train")],
    output: Annotated[Output, OUTPUT],
    file: File = None,
    model: arguments.Model = DEFAULT_MODEL,
    distinct: Annotated[bool | None, typer.Option("--distinct/--nearest", show_default="as trained", help="Different patches for the prototypes of a class, or each the nearest one.")] = None,
    last_layer: LastLayer = None,
    l1: L1 = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Project every prototype onto its nearest training patch and fit the last layer.

    Example: protonmf protopnet push net.safetensors --data birds -o new.safetensors
    """
    jobs.early.check(model=file or model, data=[images], outputs=[output])
    with shown.progress() as bars:
        found = jobs.protopnet.edits.push_protopnet(
            file or model, images, output=output, distinct=distinct, last_layer=last_layer, l1=l1, machine=machine,
            progress=bars,
        )  # fmt: skip
    if shown.as_json:
        shown.json(push_json(found))
    else:
        shown.lines(push_facts(found))


def prune(
    images: Annotated[ImageWords, images_of_file(split="train")],
    output: Annotated[Output, OUTPUT],
    file: File = None,
    model: arguments.Model = DEFAULT_MODEL,
    nearest: Annotated[int, typer.Option("--nearest", min=1, help="Nearest training images that are looked at.")] = 6,
    least: Annotated[int, typer.Option("--least", min=1, help="How many of them must be of the prototype's class.")] = 3,
    last_layer: LastLayer = None,
    l1: L1 = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Remove prototypes whose nearest training images are of other classes, then fit the last layer.

    Example: protonmf protopnet prune net.safetensors --data birds -o new.safetensors
    """
    jobs.early.check(model=file or model, data=[images], outputs=[output])
    with shown.progress() as bars:
        found = jobs.protopnet.edits.prune_protopnet(
            file or model, images, output=output, nearest=nearest, least=least, last_layer=last_layer, l1=l1,
            machine=machine, progress=bars,
        )  # fmt: skip
    if shown.as_json:
        shown.json(pruning_json(found))
    else:
        shown.lines(pruning_facts(found))


def combine(
    output: Annotated[Output, OUTPUT],
    files: Annotated[list[Path] | None, typer.Argument(help="Two or more ProtoPNet files with the same classes.")] = None,
    models: Annotated[list[Path] | None, typer.Option("--model", "-m", help="The same, one each. Repeatable.")] = None,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Add the logits of several networks in one file, which explains itself.

    Example: protonmf protopnet combine a.safetensors b.safetensors -o c.safetensors
    """
    named = [*(files or ()), *(models or ())]
    for each in named:
        jobs.early.check(model=each)
    jobs.early.check(outputs=[output])
    found = jobs.protopnet.edits.combine_protopnets(named, output=output)
    if shown.as_json:
        shown.json(combination_json(found))
    else:
        shown.lines(combination_facts(found))
