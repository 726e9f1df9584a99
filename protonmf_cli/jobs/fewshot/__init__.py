"""Jobs of the few-shot model; imported when they are first used."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from protonmf_cli.jobs.fewshot import benchmark, fitting, interpretation, prediction

__all__ = ["benchmark", "fitting", "interpretation", "prediction"]


def __getattr__(name: str) -> ModuleType:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")
