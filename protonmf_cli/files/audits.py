"""What `protonmf audit --json` says: which prototypes look most like a shortcut."""

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from protonmf_cli.errors import InputError

SCHEMA = "protonmf.audit/1"


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """One prototype of the ranking."""

    class_index: int
    """That the prototype belongs to."""
    class_name: str
    prototype: int
    """Number within its class, from 1."""
    prototype_id: int
    shortcut: bool
    """Whether it looks like a shortcut."""


@dataclass(frozen=True, kw_only=True)
class AuditRanking:
    """Prototypes of one model, the most suspicious first."""

    name: str
    """Of the audit, as messages call it."""
    model_digest: str
    """`decision_digest` of the model."""
    ranked: tuple[Ranked, ...]


def read_ranking(path: str | PathLike[str]) -> AuditRanking:
    """The ranking of an audit that was kept.

    Raises:
        InputError: the file cannot be read, or is no audit.
    """
    path = Path(path)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as failure:
        raise InputError(f"the audit {path} cannot be read: {failure.strerror}.") from failure
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise InputError(f"{path} is no audit. Give what `protonmf audit --json` wrote.")
    try:
        return AuditRanking(
            name=f"the audit {path}",
            model_digest=str(value["model_digest"]),
            ranked=tuple(_ranked(each) for each in value["ranking"]),
        )
    except (KeyError, TypeError, ValueError) as failure:
        raise InputError(f"the ranking of the audit {path} is damaged. Run `protonmf audit --json` again.") from failure


def _ranked(each: dict[str, Any]) -> Ranked:
    return Ranked(
        class_index=int(each["class_index"]),
        class_name=str(each["class"]),
        prototype=int(each["prototype"]),
        prototype_id=int(each["prototype_id"]),
        shortcut=bool(each["shortcut"]),
    )
