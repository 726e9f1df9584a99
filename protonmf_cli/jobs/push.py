"""A prototype model on the Hugging Face hub, with a card that says what it is."""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from protonmf_cli.files.hub import (
    CARD,
    FILE,
    card_text,
    check_push,
    check_repository,
    origin_of,
    push_files,
    url_of,
)
from protonmf_cli.jobs.inspection import inspect
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.output.records.inspection import inspection_facts
from protonmf_cli.output.text.inspection import inspection_lines
from protonmf_cli.output.text.model_card import card_body, card_tags
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class Push:
    """What was sent to the hub, or would be."""

    model: Path
    repository: str
    url: str
    commit: str | None
    """None: nothing was sent."""
    private: bool
    bytes: int
    """Of the model file."""
    card: str
    """README.md"""


def push(
    model: Loaded | str | PathLike[str],
    repository: str,
    *,
    private: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Progress = LOGGED,
) -> Push:
    """Put a model file on the Hugging Face hub with a card made from the file's own facts.

    Others then name it `hub:ORG/NAME` wherever a model file is named.

    Args:
        model: a file, or a model that is loaded from one.
        repository: ORG/NAME; it is made.
        private: make it one that only its owners see; one that exists stays as it is.
        force: put the model into a repository that exists.
        dry_run: make the card and send nothing.
        progress: is told stages.

    Raises:
        UsageError: the repository's name is none.
        ModelFileError: the file is missing, damaged or foreign.
        InputError: there is no token, the hub cannot be reached or refuses, or the repository exists.
    """
    check_repository(repository)
    found = inspect(model, progress=progress)
    facts = inspection_facts(found.path, found.model, embedded=found.embedded)
    lines = inspection_lines(facts, found.model, found.interpretation)
    origin = origin_of(found.model.card.source.name)
    body = card_body(found.model, facts, lines, repository=repository, licence=origin.licence)
    card = card_text(body, origin, card_tags(found.model))
    commit = None
    if not dry_run:
        check_push(repository, force=force)
        progress.stage("sending the model")
        files: dict[str, Path | bytes] = {FILE: found.path, CARD: card.encode()}
        commit = push_files(repository, files, private=private, message="Prototype model by protonmf")
    return Push(
        model=found.path, repository=repository, url=url_of(repository), commit=commit, private=private,
        bytes=facts["bytes"], card=card,
    )  # fmt: skip
