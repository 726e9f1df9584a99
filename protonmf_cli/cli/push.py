"""protonmf push: a model on the Hugging Face hub."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.output.records.push import push_json
from protonmf_cli.output.text.push import push_lines


def push(
    file: Annotated[Path, typer.Argument(help="Prototype model file.")],
    repository: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository of the hub; it is made.")],
    private: Annotated[bool, typer.Option("--private", help="Make it one that only its owners see.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Put the model into a repository that exists.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the card and send nothing.")] = False,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:
    """Put a model on the Hugging Face hub, with a card of its facts; others then name it hub:ORG/NAME.

    Example: protonmf push prototypes.safetensors ORG/NAME --private
    """
    jobs.early.check(model=file)
    with shown.progress() as bars:
        found = jobs.push.push(file, repository, private=private, force=force, dry_run=dry_run, progress=bars)
    shown.result(push_json(found), lambda _: push_lines(found))
