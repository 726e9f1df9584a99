"""protonmf audit: which prototypes look like shortcuts."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.options import AuditOptions, ImageWords, Machine, Output
from protonmf_cli.output.records.audit import audit_json
from protonmf_cli.output.text.audit import audit_blocks

OPTIONS = Group(
    AuditOptions,
    masks=Annotated[Path | None, typer.Option("--masks", help="Folder of masks of the objects, CLASS/NAME as the images: what is not black is the object.")],
    boxes=Annotated[Path | None, typer.Option("--boxes", help="Bounding boxes of the objects: folder or zip of CUB-200-2011's text files.")],
    groups=Annotated[Path | None, typer.Option("--groups", help="Lines `path,group`: the worst group's accuracy with and without each prototype.")],
    max_shortcuts=Annotated[int | None, typer.Option("--max-shortcuts", min=0, help="Exit 5 when more prototypes look like a shortcut.")],
    hosts=Annotated[int, typer.Option("--hosts", min=1, help="Images that each patch of a telling prototype is pasted into.")],
    seed=arguments.Seed,
)  # fmt: skip


def audit(
    images: Annotated[ImageWords, arguments.images(split="val")],
    model: arguments.Model = arguments.DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML page that shows the ranking.")] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Prototypes listed here; the page and --json hold all.")] = 10,
    *,
    options: Annotated[AuditOptions, OPTIONS],
    junit_xml: Annotated[Path | None, typer.Option("--junit-xml", help="Write --max-shortcuts as a JUnit test case.")] = None,
    machine: Annotated[Machine, arguments.MACHINE] = Machine(),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Rank the prototypes by how much they look like shortcuts: pasted into other images, and taken out.

    Example: protonmf audit --data imagenet -o audit.html
    """
    page = None if output is None else Output(path=output, force=force)
    junit = None if junit_xml is None else Output(path=junit_xml, force=force, option="--junit-xml")
    jobs.early.check(model=model, data=[images], outputs=[page, junit])
    with shown.progress() as bars:
        found = jobs.audit.audit(model, images, options, output=page, junit=junit, machine=machine, progress=bars)
    if shown.as_json:
        shown.json(audit_json(found))
    else:
        show_blocks(audit_blocks(found, top), shown)
    jobs.gates.check_gates(found.gates)
