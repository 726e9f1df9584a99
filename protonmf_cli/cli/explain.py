"""protonmf explain: why this class."""

from collections.abc import Iterator
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
    among: arguments.AmongOption = None,
    against: Annotated[str | None, typer.Option("--against", help="Class that the explained one is compared with, on the same amounts; next: the best other one with prototypes.")] = None,
    map_kind: Annotated[MapKind, typer.Option("--map", help="Map that is drawn: where a prototype is, or what each place adds to the logit.")] = "presence",
    form: arguments.FormOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Prototypes shown; the JSON lists all.")] = 5,
    max_unlike: Annotated[float | None, typer.Option("--max-unlike", help="Exit 5 when an image is less usual for its predicted class (1: as one in twenty training images).")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", "--png", help="Figure to write, .png, .svg or .pdf; with several images a folder.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page to write: the report of these images, with live intervention.")] = None,
    machine: Annotated[Machine, arguments.MACHINE_FOR_ONE] = Machine(),
    force: arguments.Force = False,
    json_lines: Annotated[bool, typer.Option("--jsonl", help="One JSON object per image and line.")] = False,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Explain why an image is what the classifier says: contributions, maps, training patches.

    Example: protonmf explain img.jpg --png why.png
    """
    paths = arguments.paths_of(images)
    options = ExplainOptions(class_name=class_name, among=among, against=against, map_kind=map_kind, form=form, top=top)
    drawn, page = (
        None if path is None else Output(path=path, force=force, option=option)
        for option, path in (("--figure", figure), ("--html", html))
    )
    if isinstance(paths, Iterator):
        jobs.early.check(model=model)
        targets = jobs.early.Targets.one_by_one(paths, drawn, page)
    else:
        jobs.early.check(model=model, images=paths)
        targets = jobs.early.Targets.of(paths, drawn, page, model)
    gates = GateOptions(max_unlike=max_unlike)
    answers = _Answers(shown, top, json_lines=json_lines)
    goes_on = figure is not None or html is not None or max_unlike is not None  # also when nobody reads any more
    with jobs.machine.threads_of(machine), shown.progress() as bars:
        loaded = jobs.loaded.load(model, machine=machine, progress=bars)
        if gates.max_unlike is not None:
            jobs.gates.check_says_unlike(loaded.model)
        for found in jobs.explanation.explained_each(loaded, targets, options, bars, remembers=True):
            answers.add(found)
            if shown.out.gone and not goes_on:
                return
    answers.end()
    jobs.gates.check_unlike(answers.unlike, gates)
    answers.check_all()


class _Answers:
    """What was explained: said at once, unless it is one JSON object of all."""

    def __init__(self, shown: Shown, top: int, *, json_lines: bool) -> None:
        self.shown, self.top, self.json_lines = shown, top, json_lines
        self.done = self.failed = 0
        self.records: list[dict[str, Any]] = []
        self.unlike: dict[str, Any] = {}

    def add(self, found: Any) -> None:
        """One image, explained or not."""
        if not isinstance(found, jobs.explanation.Explained):
            self.failed += 1
            self.shown.error(f"{found.path} {found.reason}")
            return
        self.done += 1
        self.unlike[found.explanation.image] = found.explanation.unlike
        if self.json_lines:
            self.shown.json(explanation_json(found.explanation, found.contrast), indent=None)
        elif self.shown.as_json:
            self.records.append(explanation_json(found.explanation, found.contrast))
        else:
            if self.done > 1:
                self.shown.out.print()
            wide = self.shown.out.width >= WIDE
            show_blocks(explanation_blocks(found.explanation, self.top, found.contrast, wide=wide), self.shown)

    def end(self) -> None:
        """
        Raises:
            InputError: none could be explained.
        """
        if self.records:
            several = {"schema": "protonmf.explanations/1", "explanations": self.records}
            self.shown.json(self.records[0] if self.done + self.failed == 1 else several)
        if not self.done:
            raise InputError(f"none of the {self.failed} images could be explained.")

    def check_all(self) -> None:
        """
        Raises:
            PartialError: some could not be explained.
        """
        if self.failed:
            every = self.done + self.failed
            raise PartialError(f"{self.failed} of {every} images could not be explained; the others were.")
