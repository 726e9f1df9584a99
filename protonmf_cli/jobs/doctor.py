"""Is this machine ready, and if not, what to do. Packages are imported late: that one fails is a finding."""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from protonmf_cli.versions import installed_versions

LEAST_DISK = 2 * 2**30
"""Free bytes with which a conversion is not in danger."""


@dataclass(frozen=True, kw_only=True)
class Packages:
    """What torch and timm say of themselves; failures are facts."""

    devices: tuple[str, ...] = ()
    threads: int | None = None
    torch_error: str | None = None
    timm: str | None = None
    """Its version, once it is imported."""
    timm_error: str | None = None
    torchvision_operators: bool = False
    """Whether torchvision's operators were built for this torch."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Something that keeps protonmf or its neighbours from working."""

    what: str
    do: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Versions, device, threads, disk and known problems."""

    versions: Mapping[str, str]
    platform: str
    packages: Packages
    cores: int | None
    folder: Path
    """Where the disk was looked at."""
    free_disk_bytes: int
    offline: bool
    """Whether the environment forbids downloads."""
    state_folder: str
    problems: tuple[Problem, ...]


def diagnose() -> Diagnosis:
    """Look at this machine; whatever is wrong is part of the result."""
    versions, packages, folder = installed_versions(), _packages(), Path.cwd()
    free = shutil.disk_usage(folder).free
    return Diagnosis(
        versions=versions,
        platform=platform.platform(),
        packages=packages,
        cores=os.cpu_count(),
        folder=folder,
        free_disk_bytes=free,
        offline=bool(os.environ.get("HF_HUB_OFFLINE")),
        state_folder=str(platformdirs.user_state_path("protonmf", appauthor=False)),
        problems=tuple(_problems(versions, packages, free)),
    )


def _packages() -> Packages:
    try:
        import torch
    except (ImportError, OSError) as failure:
        return Packages(torch_error=str(failure))
    devices = ["cpu"]
    devices += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return Packages(devices=tuple(devices), threads=torch.get_num_threads(), **_timm())


def _timm() -> dict[str, Any]:
    """The fields of `Packages` about timm and torchvision."""
    try:
        from protonmf_cli.files.networks.timm_import import import_timm

        timm = import_timm()
        import torchvision

        return {"timm": timm.__version__, "torchvision_operators": bool(torchvision.extension._has_ops())}
    except Exception as failure:  # whatever keeps timm from importing is the finding itself
        return {"timm_error": f"{type(failure).__name__}: {failure}"}


def _problems(versions: Mapping[str, str], packages: Packages, free: int) -> Iterator[Problem]:
    for package, version in versions.items():
        if version == "missing" and package != "protonmf":
            yield Problem(what=f"{package} is not installed", do=f"pip install {package}")
    if packages.torch_error:
        yield Problem(what=f"torch does not import: {packages.torch_error}", do="pip install --force-reinstall torch")
    elif packages.timm is None:
        yield Problem(
            what=f"timm does not import: {packages.timm_error}", do="pip install --upgrade timm torchvision torch"
        )
    elif not packages.torchvision_operators:
        yield Problem(
            what=f"torch {versions['torch']} and torchvision {versions['torchvision']} are builds that do not fit "
            "(operator torchvision::nms does not exist)",
            do="nothing for protonmf, which works around it; other programs need both from one source: "
            "pip install --upgrade --force-reinstall torch torchvision",
        )
    if free < LEAST_DISK:
        yield Problem(what="less than 2 GiB of disk is free here", do="make room before a conversion")
