"""protonmf report: one offline page that shows a model, explains images and lets its reader intervene."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import PartialError, UsageError
from protonmf_cli.options import ImageWords, Machine, Output, PageOptions
from protonmf_cli.output.records.page import report_json

DEFAULTS = PageOptions()
DATA = Annotated[
    str | None,
    typer.Option(
        "--data", metavar="PATH|URL", help="Labelled images to explain: as for evaluate; their true classes are shown."
    ),
]
BOXES = Annotated[
    Path | None,
    typer.Option(
        "--boxes", help="Cut the images of --data to their boxes: folder or zip of CUB-200-2011's text files."
    ),
]


def report(
    output: Annotated[Path | None, typer.Option("--output", "-o", show_default="report.html, or the folder report", help="HTML file to write; with --folder a folder.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    images: Annotated[list[Path] | None, typer.Option("--images", help="Image, or folder of images, to explain. Repeatable.")] = None,
    per_class: Annotated[int | None, typer.Option("--per-class", min=1, show_default=str(DEFAULTS.per_class), help="Images of each class taken from --data.")] = None,
    *,
    data: Annotated[ImageWords | None, arguments.images_if_given("val", DATA, boxes=BOXES)],
    evaluation: Annotated[Path | None, typer.Option("--evaluation", help="What `evaluate --json` said of this model: its tables are shown.")] = None,
    form: arguments.FormOption = None,
    among: arguments.AmongOption = None,
    max_size: Annotated[float, typer.Option("--max-size", help="Most megabytes of the page; pictures get smaller to fit.")] = DEFAULTS.max_size,
    folder: Annotated[bool, typer.Option("--folder", help="Write a folder with the pictures beside the page, in full size.")] = False,
    machine: Annotated[Machine, arguments.MACHINE] = Machine(),
    seed: arguments.Seed = 0,
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Write a page with a gallery of the prototypes, explained images and live intervention.

    Example: protonmf report --data imagenet -o report.html
    """
    if data is None and per_class:
        raise UsageError("--per-class is about the images of --data: give it too.")
    options = PageOptions(
        form=form, among=among, per_class=per_class or DEFAULTS.per_class, evaluation=evaluation, max_size=max_size,
        folder=folder, seed=seed,
    )  # fmt: skip
    target = Output(path=output or Path("report" if folder else "report.html"), force=force)
    paths = [str(image) for image in images or ()]
    jobs.early.check(model=model, images=paths, data=[data], outputs=[] if folder else [target])
    with shown.progress() as bars:
        written = jobs.page.report(model, images or [], data, options, output=target, machine=machine, progress=bars)
    if shown.as_json:
        shown.json(report_json(written))
    if unread := len(written.content.unreadable):
        shown.warn(f"{unread} of {written.images} images could not be read; the page shows the others.")
        raise typer.Exit(PartialError.exit_code)
