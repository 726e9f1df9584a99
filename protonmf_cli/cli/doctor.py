"""protonmf doctor: is this machine ready, and if not, what to do."""

import os
import platform
import shutil
from pathlib import Path
from typing import Any

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.versions import installed_versions


def doctor(as_json: arguments.Json = False) -> None:
    """Show versions, device, threads, disk and known problems, each with what to do."""
    shown = Shown()
    versions = installed_versions()
    facts: dict[str, Any] = {
        "schema": "protonmf.doctor/1",
        "versions": versions,
        "platform": platform.platform(),
        **_torch_facts(),
        "cores": os.cpu_count(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "offline": bool(os.environ.get("HF_HUB_OFFLINE")),
        "state_folder": _state_folder(),
    }
    facts["problems"] = _problems(facts)
    if as_json:
        shown.json(facts)
    else:
        _show(facts, shown)


def _torch_facts() -> dict[str, Any]:
    """What torch and timm say of themselves; failures become facts."""
    try:
        import torch
    except (ImportError, OSError) as failure:
        return {
            "devices": [],
            "threads": None,
            "torch_error": str(failure),
            "timm": None,
            "torchvision_operators": False,
        }
    devices = ["cpu"]
    devices += [f"cuda:{n} ({torch.cuda.get_device_name(n)})" for n in range(torch.cuda.device_count())]
    devices += ["mps"] if torch.backends.mps.is_available() else []
    return {
        "devices": devices,
        "threads": torch.get_num_threads(),
        "torch_error": None,
        **_timm_facts(torch),
    }


def _timm_facts(torch: Any) -> dict[str, Any]:
    from protonmf_cli.files.networks.loading import import_timm

    try:
        timm = import_timm()
        import torchvision

        works = bool(torchvision.extension._has_ops())
        return {"timm": timm.__version__, "torchvision_operators": works}
    except Exception as failure:  # whatever keeps timm from importing is the finding itself
        return {"timm": None, "torchvision_operators": False, "timm_error": f"{type(failure).__name__}: {failure}"}


def _state_folder() -> str:
    import platformdirs

    return str(platformdirs.user_state_path("protonmf", appauthor=False))


def _problems(facts: dict[str, Any]) -> list[dict[str, str]]:
    versions = facts["versions"]
    found = []
    for package, version in versions.items():
        if version == "missing" and package != "protonmf":
            found.append({"what": f"{package} is not installed", "do": f"pip install {package}"})
    if facts["torch_error"]:
        found.append(
            {"what": f"torch does not import: {facts['torch_error']}", "do": "pip install --force-reinstall torch"}
        )
    elif facts["timm"] is None:
        found.append(
            {
                "what": f"timm does not import: {facts.get('timm_error')}",
                "do": "pip install --upgrade timm torchvision torch",
            }
        )
    elif not facts["torchvision_operators"]:
        found.append(
            {
                "what": f"torch {versions['torch']} and torchvision {versions['torchvision']} are builds that do not fit "
                "(operator torchvision::nms does not exist)",
                "do": "nothing for protonmf, which works around it; other programs need both from one source: "
                "pip install --upgrade --force-reinstall torch torchvision",
            }
        )
    if facts["free_disk_bytes"] < 2 * 2**30:
        found.append({"what": "less than 2 GiB of disk is free here", "do": "make room before a conversion"})
    return found


def _show(facts: dict[str, Any], shown: Shown) -> None:
    lines = {
        "versions": ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        "platform": facts["platform"],
        "devices": ", ".join(facts["devices"]) or "none",
        "threads": f"{facts['threads']} of {facts['cores']} cores",
        "disk": f"{facts['free_disk_bytes'] / 2**30:.0f} GiB free in {Path.cwd()}",
        "offline": "yes (HF_HUB_OFFLINE)" if facts["offline"] else "no",
        "state": facts["state_folder"],
    }
    for name, text in lines.items():
        shown.out.print(f"{name:>9}  {text}", markup=False)
    for problem in facts["problems"]:
        shown.out.print(f"  problem  {problem['what']}\n       do  {problem['do']}", markup=False)
    if not facts["problems"]:
        shown.out.print("all is well")
