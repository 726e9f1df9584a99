"""protonmf convert: black box -> prototype model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import given
from protonmf_cli.errors import UsageError
from protonmf_cli.options import (
    RECIPES,
    Augment,
    ConversionOptions,
    ImageWords,
    Init,
    Machine,
    NetworkWords,
    Output,
    Recipe,
    Reconstruction,
    RowsOption,
    Solver,
)
from protonmf_cli.output.records.conversion import conversion_json, plan_json
from protonmf_cli.output.text.conversion import conversion_lines, plan_lines

DEFAULTS = RECIPES["default"]
EXIF = Annotated[bool, typer.Option("--exif-transpose", help="Turn images as their camera says.")]


def convert(
    network: Annotated[NetworkWords, arguments.network(exif_transpose=EXIF)],
    images: Annotated[ImageWords, arguments.images(split="train")],
    output: Annotated[Output, arguments.output("Prototype model file to write.")] = Output(path=arguments.DEFAULT_MODEL),
    prototypes: Annotated[str, typer.Option("--prototypes", "-p", metavar="N|auto", help="Prototypes per class; auto chooses a number for each.")] = str(DEFAULTS.prototypes),
    max_prototypes: Annotated[int, typer.Option("--max-prototypes", min=1, help="Most that auto tries.")] = DEFAULTS.max_prototypes,
    recipe: Annotated[Recipe, typer.Option("--recipe", help="paper: everything as ProtoNMF was printed; single options still count.")] = "default",
    reconstruction: Annotated[Reconstruction | None, typer.Option("--reconstruction", show_default=DEFAULTS.reconstruction, help="Amounts of parts, or ProtoNMF's fit of the head by a class's own prototypes.")] = None,
    near: Annotated[int | None, typer.Option("--near", min=0, show_default=str(DEFAULTS.near), help="Amounts: nearest classes of the head whose prototypes are weighed along.")] = None,
    augment: Annotated[Augment | None, typer.Option("--augment", show_default=DEFAULTS.augment, help="How prototypes take up the residual.")] = None,
    stability: Annotated[bool, typer.Option("--stability/--no-stability", help="Compare the prototypes of two halves of the images.")] = DEFAULTS.stability,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Which rows the head is read through.")] = DEFAULTS.rows,
    init: Annotated[Init | None, typer.Option("--init", show_default=DEFAULTS.nmf.init, help="Start of the factorisation.")] = None,
    solver: Annotated[Solver | None, typer.Option("--solver", show_default=DEFAULTS.nmf.solver, help="Multiplicative updates or HALS.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training patches kept per prototype.")] = DEFAULTS.examples,
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="GiB one class may take; larger ones are subsampled.")] = DEFAULTS.memory / 2**30,
    cache_features: Annotated[Path | None, typer.Option("--cache-features", help="Folder for what the network gave: the next conversion of the same images does not run it.")] = None,
    embed_backbone: Annotated[bool, typer.Option("--embed-backbone/--no-embed-backbone", help="Keep the network's weights in the file.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve everything, write nothing.")] = False,
    machine: Annotated[Machine, arguments.MACHINE] = Machine(batch_size=DEFAULTS.batch_size),
    seed: arguments.Seed = DEFAULTS.seed,
    *,
    shown: Annotated[Shown, arguments.SHOWN_MORE],
) -> None:  # fmt: skip
    """Convert a trained classifier into a prototype model; its logits stay exactly equal."""
    chosen = _with_recipe(recipe, init=init, solver=solver, reconstruction=reconstruction, augment=augment, near=near)
    if near and chosen.reconstruction == "paper":
        raise UsageError(
            f"--near {near} needs --reconstruction amounts; the paper's uses a class's own prototypes alone."
        )
    chosen = replace(
        chosen, prototypes=_count(prototypes), max_prototypes=max_prototypes, stability=stability, rows=rows,
        examples=examples, memory=int(memory * 2**30), seed=seed,
    )  # fmt: skip
    with jobs.machine.threads_of(machine), shown.progress() as bars:
        prepared = jobs.conversion.prepare_conversion(
            network, images, chosen, output=output, embed=embed_backbone, cache=cache_features, machine=machine,
            progress=bars, writes=not dry_run,
        )  # fmt: skip
        if dry_run:
            plan = jobs.conversion.plan_of(prepared)
        else:
            conversion = jobs.conversion.run_conversion(prepared, bars)
    if dry_run:
        shown.result(plan_json(plan), plan_lines)
    else:
        shown.result(conversion_json(conversion), conversion_lines)


def _count(words: str) -> int | None:
    """A number of prototypes, None for "auto"."""
    if words == "auto":
        return None
    if not words.isdecimal() or int(words) < 1:
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
