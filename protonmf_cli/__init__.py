"""protonmf: a trained black-box image classifier as a prototype-based interpretable model, its accuracy untouched.

The public names are imported when they are first used, so that `import protonmf_cli` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.2.0"

_PLACES = {
    "load": "protonmf_cli.jobs.loaded",
    "Loaded": "protonmf_cli.jobs.loaded",
    "PrototypeModel": "protonmf_cli.models.prototype",
    "Explanation": "protonmf_cli.models.results",
    "Edit": "protonmf_cli.models.results",
    "ProtonmfError": "protonmf_cli.errors",
}

__all__ = ["Edit", "Explanation", "Loaded", "ProtonmfError", "PrototypeModel", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'protonmf_cli' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
