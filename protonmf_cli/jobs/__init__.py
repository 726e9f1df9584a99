"""Use cases: options in, a result out. What a command does, and what Python calls.

A job reads and writes files and reports to a `Progress`; it prints nothing, and leaves the process as it was. Jobs are
imported when they are first used, so that the command line shows its help without loading torch.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs import (
        audit,
        conversion,
        demo,
        doctor,
        early,
        evaluation,
        explanation,
        export,
        fewshot,
        gates,
        inspection,
        intervention,
        loaded,
        machine,
        naming,
        network_inspection,
        page,
        patches,
        protopnet,
        push,
    )

__all__ = [
    "audit",
    "conversion",
    "demo",
    "doctor",
    "early",
    "evaluation",
    "explanation",
    "export",
    "fewshot",
    "gates",
    "inspection",
    "intervention",
    "loaded",
    "machine",
    "naming",
    "network_inspection",
    "page",
    "patches",
    "protopnet",
    "push",
]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
