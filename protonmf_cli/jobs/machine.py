"""Device, number type, threads and processes of a job."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache

import torch

from protonmf_cli.errors import UsageError
from protonmf_cli.options import Machine
from protonmf_cli.pipelines.protopnet.processes import ALONE, Processes, join

DTYPES = {"float32": torch.float32, "float64": torch.float64}
MOST_WORKERS = 32
"""Decoding threads beyond which they wait for each other."""
HALF = {"bfloat16": torch.bfloat16}
"""For rows alone: a network in half the time, rounded at the third digit."""


def device_of(machine: Machine) -> torch.device:
    """The device; "auto" takes CUDA, then MPS, then the CPU, and of several GPUs each process of torchrun or srun its own.

    Raises:
        UsageError: no such device here.
    """
    wanted = machine.device
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        return torch.device(_own_gpu())
    if wanted == "auto":
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
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


def _own_gpu() -> str:
    number, count = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID", ""), torch.cuda.device_count()
    return f"cuda:{int(number) % count}" if count > 1 and number.isdecimal() else "cuda"


def dtype_of(machine: Machine, *, rows: bool = False) -> torch.dtype:
    """torch.float32 or torch.float64, and torch.bfloat16 where only rows are read.

    Raises:
        UsageError: another type, or float64 on a device without it.
    """
    allowed = DTYPES | HALF if rows else DTYPES
    if machine.dtype not in allowed:
        only = " (bfloat16 is for the rows of a conversion)" if machine.dtype in HALF else ""
        raise UsageError(f"--dtype {machine.dtype} is not one of {', '.join(allowed)}{only}.")
    if machine.dtype == "float64" and device_of(machine).type == "mps":
        raise UsageError("mps has no float64; give --device cpu.")
    return allowed[machine.dtype]


def workers_of(machine: Machine) -> int:
    """Decoding threads: Pillow lets go of the interpreter's lock, but not all the time."""
    return machine.workers or min(MOST_WORKERS, os.cpu_count() or 1)


TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of glibc's mallopt."""


@cache
def keep_memory() -> None:
    """Let glibc keep up to 512 MiB of what is free, instead of the little it starts with.

    What a layer makes is freed at the next one; handed back to the system, it is asked for anew page by page, which
    takes longer than to compute it. Blocks beyond 32 MiB go back as ever. Other C libraries stay as they are, and so
    does one that the environment has settings for.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with suppress(OSError, TypeError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(MMAP_THRESHOLD, 32 * 2**20)
        library.mallopt(TRIM_THRESHOLD, 512 * 2**20)


@contextmanager
def threads_of(machine: Machine) -> Iterator[None]:
    """torch's CPU threads for the length of a job."""
    keep_memory()
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
