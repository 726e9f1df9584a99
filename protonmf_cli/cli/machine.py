"""Device, number type and threads, decided once per command."""

import os
from typing import Any

from protonmf_cli.errors import UsageError


def choose_device(wanted: str) -> Any:
    """A torch.device; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no such device here.
    """
    import torch

    if wanted == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        return torch.device(name)
    try:
        device = torch.device(wanted)
    except RuntimeError as failure:
        raise UsageError(f"--device {wanted} is not a device; give auto, cpu, cuda, cuda:N or mps.") from failure
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available.get(device.type, False):
        raise UsageError(f"--device {wanted} is not available on this machine. `protonmf doctor` lists what is.")
    return device


def choose_dtype(wanted: str, device: Any) -> Any:
    """torch.float32 or torch.float64.

    Raises:
        UsageError: another type, or float64 on a device without it.
    """
    import torch

    types = {"float32": torch.float32, "float64": torch.float64}
    if wanted not in types:
        raise UsageError(f"--dtype {wanted} is not one of {', '.join(types)}.")
    if wanted == "float64" and device.type == "mps":
        raise UsageError("mps has no float64; give --device cpu.")
    return types[wanted]


def set_threads(threads: int | None) -> None:
    """Limit torch's CPU threads."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def join_cluster(device: str) -> tuple[Any, Any]:
    """This process among those that torchrun started, and its device; one of one outside torchrun.

    Raises:
        UsageError: no such device here.
    """
    from protonmf_cli.pipelines.protopnet.processes import ALONE, join

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return ALONE, choose_device(device)
    wanted = choose_device(device)
    if wanted.type == "cuda":
        wanted = choose_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
    return join(wanted), wanted


def worker_count(wanted: int | None) -> int:
    """Decoding threads."""
    return wanted or min(8, os.cpu_count() or 1)
