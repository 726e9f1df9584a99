"""protonmf explain: why this class."""

from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import WIDE, show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, PartialError
from protonmf_cli.options import ExplainOptions, GateOptions, Machine, MapKind, Output
from protonmf_cli.output.records.explanation import explanation_json
from protonmf_cli.output.text.explanation import explanation_blocks


def explain(
    images: Annotated[list[str], typer.Argument(help="Image files; - reads their paths from standard input.")],
    model: arguments.Model = arguments.DEFAULT_MODEL,
    class_name: arguments.ClassName = None,
    against: Annotated[str | None, typer.Option("--against", help="Class that the explained one is compared with, on the same amounts.")] = None,
    map_kind: Annotated[MapKind, typer.Option("--map", help="Map that is drawn: where a prototype is, or what each place adds to the logit.")] = "presence",
    form: arguments.FormOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Prototypes shown; the JSON lists all.")] = 5,
    max_unlike: Annotated[float | None, typer.Option("--max-unlike", help="Exit 5 when an image is less usual for its predicted class (1: as one in twenty training images).")] = None,
    png: Annotated[Path | None, typer.Option("--png", help="Picture to write; with several images a folder.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page to write: the report of these images, with live intervention.")] = None,
    machine: Annotated[Machine, arguments.MACHINE_FOR_ONE] = Machine(),
    force: arguments.Force = False,
    json_lines: Annotated[bool, typer.Option("--jsonl", help="One JSON object per image and line.")] = False,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Explain why an image is what the classifier says: contributions, maps, training patches."""
    paths = arguments.paths_of(images)
    options = ExplainOptions(class_name=class_name, against=against, map_kind=map_kind, form=form, top=top)
    drawn, page = (None if path is None else Output(path=path, force=force) for path in (png, html))
    targets = jobs.explanation.Targets.of(paths, drawn, page)
    records: list[dict[str, Any]] = []
    done = 0
    gates, unlike = GateOptions(max_unlike=max_unlike), dict[str, Any]()
    with jobs.machine.threads_of(machine), shown.progress() as bars:
        loaded = jobs.loaded.load(model, machine=machine, progress=bars)
        if gates.max_unlike is not None:
            jobs.gates.check_says_unlike(loaded.model)
        for found in jobs.explanation.explained_each(loaded, targets, options, bars, remembers=True):
            if not isinstance(found, jobs.explanation.Explained):
                shown.error(f"{found.path} {found.reason}")
                continue
            unlike[found.explanation.image] = found.explanation.unlike
            done += 1
            if json_lines:
                shown.json(explanation_json(found.explanation, found.contrast), indent=None)
            elif shown.as_json:
                records.append(explanation_json(found.explanation, found.contrast))
            else:
                if done > 1:
                    shown.out.print()
                wide = shown.out.width >= WIDE
                show_blocks(explanation_blocks(found.explanation, top, found.contrast, wide=wide), shown)
    if records:
        shown.json(records[0] if len(paths) == 1 else {"schema": "protonmf.explanations/1", "explanations": records})
    if not done:
        raise InputError(f"none of the {len(paths)} images could be explained.")
    jobs.gates.check_unlike(unlike, gates)
    if done < len(paths):
        raise PartialError(f"{len(paths) - done} of {len(paths)} images could not be explained; the others were.")
