"""Prototype models on the Hugging Face hub: fetched, and pushed with a card."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, ModelCardData, constants, errors, get_token
from huggingface_hub import hf_hub_download as download

from protonmf_cli.errors import InputError, UsageError, first_line
from protonmf_cli.files.checks import HUB
from protonmf_cli.files.networks.hub_access import NOT_THERE, UNREACHABLE, hub_answers, hub_asked
from protonmf_cli.files.networks.timm_import import import_timm

FILE, CARD = "prototypes.safetensors", "README.md"
"""What a repository holds."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w-]*(?:\.[\w-]+)*/[A-Za-z0-9][\w-]*(?:\.[\w-]+)*")
LIBRARY = "protonmf"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a network comes from, as far as its name says."""

    repository: str | None
    """Of the hub."""
    licence: str | None
    """As the hub calls it."""


def fetch_model(name: str, *, offline: bool) -> Path:
    """The file of `hub:ORG/NAME[@REVISION]` on this machine, downloaded where it is not here or not the newest.

    Raises:
        UsageError: it is no name.
        InputError: it is not to be had.
    """
    repository, _, revision = name.removeprefix(HUB).partition("@")
    check_repository(repository)
    try:
        with hub_asked(not offline):
            return Path(download(repository, FILE, revision=revision or None))
    except UNREACHABLE as failure:
        raise InputError(
            f"{name} is not on this machine and cannot be downloaded (offline or no network). Connect and try again, "
            "or give a file."
        ) from failure
    except errors.RevisionNotFoundError as failure:
        raise InputError(f"{repository} has no revision {revision!r}. Leave it out for the newest one.") from failure
    except errors.RemoteEntryNotFoundError as failure:
        raise InputError(f"{repository} holds no {FILE}, so it is no model of `protonmf push`.") from failure
    except NOT_THERE as failure:
        raise InputError(f"the hub has no model {repository}, or no access to it ({first_line(failure)}).") from failure
    except errors.HfHubHTTPError as failure:
        raise InputError(f"{name} could not be downloaded: {first_line(failure)}.") from failure


def check_repository(name: str) -> None:
    """Refuse what is not ORG/NAME.

    Raises:
        UsageError: with what is wanted.
    """
    if not REPOSITORY.fullmatch(name):
        raise UsageError(f"{name!r} is not of the form ORG/NAME, letters, numbers and -_. on both sides of the slash.")


def check_push(repository: str, *, force: bool) -> None:
    """Refuse, before anything is sent, to push without a token, a network or a free name.

    Raises:
        InputError: with what to do about it.
    """
    if get_token() is None:
        raise InputError(
            "there is no token of the hub, so nothing was sent. Log in with `hf auth login`, or set HF_TOKEN."
        )
    with _sending(repository):
        if HfApi().repo_exists(repository) and not force:
            raise InputError(f"{repository} exists already. Give another name, or --force to put this model into it.")


def push_files(repository: str, files: Mapping[str, Path | bytes], *, private: bool, message: str) -> str:
    """Make a repository, where there is none, and write files into it in one commit.

    Returns:
        The commit.

    Raises:
        InputError: with what was done.
    """
    with _sending(repository):
        api = HfApi(library_name=LIBRARY)
        api.create_repo(repository, private=private, exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
        commit: str = api.create_commit(repository, operations, commit_message=message).oid
        return commit


@contextmanager
def _sending(repository: str) -> Iterator[None]:
    """Within it what the hub refuses is said in a sentence."""
    if constants.HF_HUB_OFFLINE:
        raise InputError("the hub is switched off (HF_HUB_OFFLINE), so nothing was sent.")
    if not hub_answers():
        raise InputError(
            f"the hub at {constants.ENDPOINT} cannot be reached, so nothing was sent. Connect and try again."
        )
    try:
        yield
    except errors.HfHubHTTPError as failure:
        status = getattr(failure.response, "status_code", None)
        if status in (401, 403):
            raise InputError(
                f"the token may not write to {repository} (the hub said {status}). Log in with one that may: "
                "`hf auth login`."
            ) from failure
        raise InputError(f"the hub refused {repository}: {first_line(failure)}.") from failure
    except Exception as failure:  # of whichever library carries the requests
        if not isinstance(failure, OSError) and not type(failure).__module__.startswith(("httpx", "requests")):
            raise
        raise InputError(
            f"the hub at {constants.ENDPOINT} cannot be reached any more ({first_line(failure)}). Try again."
        ) from failure


def url_of(repository: str) -> str:
    """Where people see a repository."""
    return f"{constants.ENDPOINT}/{repository}"


def origin_of(name: str) -> Origin:
    """What the name of a network says of where it comes from; no network is asked.

    >>> origin_of("hf-hub:timm/resnet18.a1_in1k").repository, origin_of("local-dir:mine")
    ('timm/resnet18.a1_in1k', Origin(repository=None, licence=None))
    """
    library, colon, rest = name.partition(":")
    if colon:
        named = rest.partition("@")[0] if library in ("hf", "hf-hub") else ""
        return Origin(repository=named if REPOSITORY.fullmatch(named) else None, licence=None)
    timm = import_timm()
    config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    if config is None or not config.has_weights:
        return Origin(repository=None, licence=None)
    repository = config.hf_hub_id
    if repository and repository.endswith("/"):
        repository += config.architecture + (f".{config.tag}" if config.tag else "")
    return Origin(repository=repository or None, licence=config.license or None)


def card_text(body: str, origin: Origin, tags: Sequence[str]) -> str:
    """A README.md that the hub reads: front matter, then the body in Markdown.

    Raises:
        ValueError: the hub would not read it.
    """
    data = ModelCardData(
        library_name=LIBRARY,
        pipeline_tag="image-classification",
        base_model=origin.repository,
        license=origin.licence,
        tags=list(tags),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))
