"""Jobs of ProtoPNet, imported when they are first used."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.protopnet import analyses, edits, finished, images, training

__all__ = ["analyses", "edits", "finished", "images", "training"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
