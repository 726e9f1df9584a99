"""protonmf protopnet push, prune, combine: change trained files."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.options import ImageWords, Machine, Output
from protonmf_cli.output.records.protopnet import combination_json, pruning_json, push_json
from protonmf_cli.output.text.protopnet import combination_facts, pruning_facts, push_facts

File = Annotated[Path, typer.Argument(help="ProtoPNet file.")]
L1 = Annotated[float | None, typer.Option("--l1", min=0, show_default="as trained", help="Weight of the L1 term.")]
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
    file: File,
    images: Annotated[ImageWords, images_of_file(split="train")],
    output: Annotated[Output, OUTPUT],
    distinct: Annotated[bool | None, typer.Option("--distinct/--nearest", show_default="as trained", help="Different patches for the prototypes of a class, or each the nearest one.")] = None,
    l1: L1 = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Project every prototype onto its nearest training patch and fit the last layer."""
    with shown.progress() as bars:
        found = jobs.protopnet.edits.push_protopnet(
            file, images, output=output, distinct=distinct, l1=l1, machine=machine, progress=bars
        )
    if shown.as_json:
        shown.json(push_json(found))
    else:
        shown.lines(push_facts(found))


def prune(
    file: File,
    images: Annotated[ImageWords, images_of_file(split="train")],
    output: Annotated[Output, OUTPUT],
    nearest: Annotated[int, typer.Option("--nearest", min=1, help="Nearest training images that are looked at.")] = 6,
    least: Annotated[int, typer.Option("--least", min=1, help="How many of them must be of the prototype's class.")] = 3,
    l1: L1 = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Remove prototypes whose nearest training images are of other classes, then fit the last layer."""
    with shown.progress() as bars:
        found = jobs.protopnet.edits.prune_protopnet(
            file, images, output=output, nearest=nearest, least=least, l1=l1, machine=machine, progress=bars
        )
    if shown.as_json:
        shown.json(pruning_json(found))
    else:
        shown.lines(pruning_facts(found))


def combine(
    files: Annotated[list[Path], typer.Argument(help="Two or more ProtoPNet files with the same classes.")],
    output: Annotated[Output, OUTPUT],
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:
    """Add the logits of several networks in one file, which explains itself."""
    found = jobs.protopnet.edits.combine_protopnets(files, output=output)
    if shown.as_json:
        shown.json(combination_json(found))
    else:
        shown.lines(combination_facts(found))
