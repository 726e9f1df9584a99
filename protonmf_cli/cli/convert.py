"""protonmf convert: black box -> prototype model."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group, given
from protonmf_cli.errors import UsageError, is_whole
from protonmf_cli.options import (
    RECIPES,
    Augment,
    ConversionOptions,
    Distribution,
    ImageWords,
    Init,
    Machine,
    NearAs,
    NetworkWords,
    Output,
    Recipe,
    Reconstruction,
    RowsOption,
    Share,
    Solver,
)
from protonmf_cli.output.records.conversion import conversion_json, plan_json, share_json
from protonmf_cli.output.text.conversion import conversion_lines, plan_lines, share_lines

DEFAULTS = RECIPES["default"]
DISTRIBUTION = Group(
    Distribution,
    processes=Annotated[int | None, typer.Option("--processes", min=1, help="Processes on this machine. Default: one for each GPU, else one.")],
    ray=Annotated[str | None, typer.Option("--ray", metavar="ADDRESS|local", help="Convert on a Ray cluster.")],
    ray_cpus=Annotated[int, typer.Option("--ray-cpus", min=1, help="Cores of each worker on Ray where there are no GPUs.")],
)  # fmt: skip
"""What works on a conversion besides this process."""
EXIF = Annotated[bool, typer.Option("--exif-transpose", help="Turn images as their camera says.")]


def convert(
    network: Annotated[NetworkWords, arguments.any_network(exif_transpose=EXIF)],
    images: Annotated[ImageWords, arguments.images(split="train")],
    output: Annotated[Output, arguments.output("Prototype model file to write.")] = Output(path=arguments.DEFAULT_MODEL),
    prototypes: Annotated[str, typer.Option("--prototypes", "-p", metavar="N|auto", help="Prototypes per class; auto chooses a number for each.")] = str(DEFAULTS.prototypes),
    max_prototypes: Annotated[int, typer.Option("--max-prototypes", min=1, help="Most that auto tries.")] = DEFAULTS.max_prototypes,
    recipe: Annotated[Recipe, typer.Option("--recipe", help="paper: everything as ProtoNMF was printed; single options still count.")] = "default",
    reconstruction: Annotated[Reconstruction | None, typer.Option("--reconstruction", show_default=DEFAULTS.reconstruction, help="Amounts of parts, or ProtoNMF's fit of the head by a class's own prototypes.")] = None,
    near: Annotated[int | None, typer.Option("--near", min=0, show_default=str(DEFAULTS.near), help="Amounts: nearest classes of the head that are weighed along.")] = None,
    near_as: Annotated[NearAs | None, typer.Option("--near-as", show_default=DEFAULTS.near_as, help="Amounts: weigh each of those as a whole, or by its prototypes.")] = None,
    augment: Annotated[Augment | None, typer.Option("--augment", show_default=DEFAULTS.augment, help="How prototypes take up the residual.")] = None,
    stability: Annotated[bool, typer.Option("--stability/--no-stability", help="Compare the prototypes of two halves of the images.")] = DEFAULTS.stability,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Which rows the head is read through.")] = DEFAULTS.rows,
    init: Annotated[Init | None, typer.Option("--init", show_default=DEFAULTS.nmf.init, help="Start of the factorisation.")] = None,
    solver: Annotated[Solver | None, typer.Option("--solver", show_default=DEFAULTS.nmf.solver, help="Multiplicative updates or HALS.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training patches kept per prototype.")] = DEFAULTS.examples,
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="GiB one class may take; rows of a larger one are read from the disk.")] = DEFAULTS.memory / 2**30,
    sample: Annotated[int | None, typer.Option("--sample", min=1, help="Most images of a class, drawn with the seed. Default: all.")] = None,
    cache_features: Annotated[Path | None, typer.Option("--cache-features", help="Folder for what the network gave: the next conversion of the same images does not run it.")] = None,
    embed_backbone: Annotated[bool, typer.Option("--embed-backbone/--no-embed-backbone", help="Keep the network's weights in the file.")] = True,
    distribution: Annotated[Distribution, DISTRIBUTION] = Distribution(),
    share: Annotated[str | None, typer.Option("--share", metavar="I/N|auto", help="Convert one share of the classes and leave; the last share writes the file. auto: as torchrun or Slurm say.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve everything, write nothing.")] = False,
    machine: Annotated[Machine, arguments.MACHINE_FOR_ROWS] = Machine(batch_size=DEFAULTS.batch_size),
    seed: arguments.Seed = DEFAULTS.seed,
    *,
    shown: Annotated[Shown, arguments.SHOWN_MORE],
) -> None:  # fmt: skip
    """Convert a trained classifier into a prototype model; its logits stay exactly equal.

    Example: protonmf convert resnet18.a1_in1k --data imagenet -o prototypes.safetensors
    """
    chosen = _with_recipe(
        recipe, init=init, solver=solver, reconstruction=reconstruction, augment=augment, near=near, near_as=near_as
    )
    for name, value in (("near", near), ("near-as", near_as)):
        if value and chosen.reconstruction == "paper":
            raise UsageError(
                f"--{name} {value} needs --reconstruction amounts; the paper's uses a class's own prototypes alone."
            )
    chosen = replace(
        chosen, prototypes=_count(prototypes), max_prototypes=max_prototypes, stability=stability, rows=rows,
        examples=examples, memory=int(memory * 2**30), sample=sample, seed=seed,
    )  # fmt: skip
    wanted = _share(share, distribution)
    jobs.early.check_apart([output], [network.weights, *jobs.early.files_of_network(network.name or "")])
    jobs.early.check(data=[images], outputs=[] if dry_run or wanted else [output])
    words = jobs.conversion.ConversionWords(
        network=network, images=images, options=chosen, output=output, embed=embed_backbone, cache=cache_features,
        machine=machine,
    )  # fmt: skip
    with shown.progress() as bars:
        found: Any
        if dry_run:
            found = jobs.conversion.plan(words, bars)
        elif wanted is not None:
            found = jobs.conversion.convert_words_of_share(wanted, words, bars)
        else:
            found = jobs.conversion.convert_words(words, distribution, bars)
    _show(found, shown)


def _show(found: Any, shown: Shown) -> None:
    if isinstance(found, jobs.conversion.ConversionPlan):
        shown.result(plan_json(found), plan_lines)
    elif isinstance(found, jobs.conversion.ConvertedShare):
        shown.result(share_json(found), share_lines)
    else:
        shown.result(conversion_json(found), conversion_lines)


def _share(words: str | None, distribution: Distribution) -> Share | None:
    if words is None:
        return None
    if distribution.ray is not None or distribution.processes is not None:
        raise UsageError("--share is for a scheduler that starts the processes; leave out --processes and --ray.")
    return Share.of(words, os.environ)


def _count(words: str) -> int | None:
    """A number of prototypes, None for "auto"."""
    if words == "auto":
        return None
    if not is_whole(words) or int(words) < 1:
        raise UsageError(f"-p {words!r} is neither a number from 1 nor auto.")
    return int(words)


def _with_recipe(recipe: Recipe, *, init: Init | None, solver: Solver | None, **single: Any) -> ConversionOptions:
    """A recipe's options with those that were given one by one."""
    found = RECIPES[recipe]
    return replace(
        found,
        nmf=replace(found.nmf, init=init or found.nmf.init, solver=solver or found.nmf.solver),
        **given(single),
    )
