"""Device, number type, threads and processes of a job."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from protonmf_cli.errors import UsageError
from protonmf_cli.options import Machine
from protonmf_cli.pipelines.protopnet.processes import ALONE, Processes, join

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def device_of(machine: Machine) -> torch.device:
    """The device; "auto" takes CUDA, then MPS, then the CPU.

    Raises:
        UsageError: no such device here.
    """
    wanted = machine.device
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


def dtype_of(machine: Machine) -> torch.dtype:
    """torch.float32 or torch.float64.

    Raises:
        UsageError: another type, or float64 on a device without it.
    """
    if machine.dtype not in DTYPES:
        raise UsageError(f"--dtype {machine.dtype} is not one of {', '.join(DTYPES)}.")
    if machine.dtype == "float64" and device_of(machine).type == "mps":
        raise UsageError("mps has no float64; give --device cpu.")
    return DTYPES[machine.dtype]


def workers_of(machine: Machine) -> int:
    """Decoding threads."""
    return machine.workers or min(8, os.cpu_count() or 1)


@contextmanager
def threads_of(machine: Machine) -> Iterator[None]:
    """torch's CPU threads for the length of a job."""
    before = torch.get_num_threads()
    if machine.threads is not None:
        torch.set_num_threads(machine.threads)
    try:
        yield
    finally:
        if machine.threads is not None:
            torch.set_num_threads(before)


def leads() -> bool:
    """Whether this process writes and reports: the first one of those that torchrun started, or the only one."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1 or int(os.environ.get("RANK", "0")) == 0


def processes_of(machine: Machine) -> tuple[Processes, torch.device]:
    """This process among those that torchrun started, and its device; one of one outside torchrun.

    Raises:
        UsageError: no such device here.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE, device_of(machine)
    wanted = device_of(machine)
    if wanted.type == "cuda":
        wanted = device_of(Machine(device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))
    return join(wanted), wanted
