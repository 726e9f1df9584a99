"""Versions of what the figures depend on, without importing any of it."""

import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("protonmf", "torch", "torchvision", "timm", "numpy", "scipy", "scikit-learn", "cvxpy", "clarabel",
            "safetensors", "pillow", "matplotlib", "typer", "rich")  # fmt: skip


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
