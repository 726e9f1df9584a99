"""Versions of what the figures depend on, without importing any of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("protonmf", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "cvxpy", "clarabel",
            "safetensors", "pillow", "matplotlib", "typer", "rich")  # fmt: skip


OF_A_LIBRARY = {"transformers": "transformers", "torchvision": "torchvision", "open_clip": "open_clip_torch"}
"""Package of a library of networks, where it is not timm."""


def packages_of(library: str) -> tuple[str, ...]:
    """Packages that decide what a network of a library computes, and how it is read.

    >>> packages_of("timm"), packages_of("open_clip")
    (('protonmf', 'torch', 'timm'), ('protonmf', 'torch', 'timm', 'open_clip_torch'))
    """
    return ("protonmf", "torch", "timm", *([OF_A_LIBRARY[library]] if library in OF_A_LIBRARY else []))


def installed_versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Package name -> version, "missing" where it is not installed; "python" first.

    >>> installed_versions(("no-such-package",))["no-such-package"]
    'missing'
    """
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found
