"""protonmf name: words for prototypes, as captions."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.errors import UsageError
from protonmf_cli.options import Machine, Output
from protonmf_cli.output.records.naming import naming_json
from protonmf_cli.output.text.naming import naming_blocks

TEMPLATE = "a photo of a {word}"
MACHINE = Group(Machine, device=arguments.Device, threads=arguments.Threads, offline=arguments.Offline)


def name(
    file: Annotated[Path | None, typer.Argument(help="Prototype model file, or hub:ORG/NAME. Default: as --model.")] = None,
    vocabulary: Annotated[Path | None, typer.Option("--vocabulary", help="Words to choose from, one on each line (UTF-8).")] = None,
    tower: Annotated[str | None, typer.Option("--tower", metavar="NAME|FOLDER", help="open_clip:ARCHITECTURE:TAG, or a folder with open_clip_config.json and weights.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint of open_clip:ARCHITECTURE instead of a TAG.")] = None,
    template: Annotated[str, typer.Option("--template", help="Sentence in which each word is read.")] = TEMPLATE,
    min_margin: Annotated[float | None, typer.Option("--min-margin", min=0, max=2, show_default="best word three times as probable as the second", help="Cosine by which the best word is at least before the second to be a name.")] = None,
    drop: Annotated[bool, typer.Option("--drop", help="Take the names of the file away.")] = False,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Save the model with its names.")] = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Name prototypes by the words that a CLIP finds nearest to their training patches; captions, which decide nothing.

    Example: protonmf name --vocabulary words.txt --tower open_clip:RN50:openai
    """
    source = file or model
    target = None if output is None else Output(path=output, force=force)
    given = _of_naming(vocabulary, tower, weights, template, min_margin)
    if drop and (lost := [option for option, value in given if value]):
        raise UsageError(f"--drop takes names away: leave out {', '.join(lost)}.")
    jobs.early.check_edited(source, target)
    jobs.early.check(model=source)
    with shown.progress() as bars:
        if drop:
            if target is None:
                raise UsageError("--drop wants -o FILE, the model without names.")
            found = jobs.naming.drop_names(source, output=target, progress=bars)
        elif vocabulary is None or tower is None:
            raise UsageError("give --vocabulary FILE and --tower NAME (or --drop, to take names away).")
        else:
            found = jobs.naming.name(
                source, vocabulary, tower, weights=weights, template=template, min_margin=min_margin, output=target,
                machine=machine, progress=bars,
            )  # fmt: skip
    if shown.as_json:
        shown.json(naming_json(found))
    else:
        show_blocks(naming_blocks(found), shown)


def _of_naming(
    vocabulary: Path | None, tower: str | None, weights: Path | None, template: str, min_margin: float | None
) -> list[tuple[str, bool]]:
    """Options of naming alone, and whether they were given."""
    return [
        ("--vocabulary", vocabulary is not None),
        ("--tower", tower is not None),
        ("--weights", weights is not None),
        ("--template", template != TEMPLATE),
        ("--min-margin", min_margin is not None),
    ]
