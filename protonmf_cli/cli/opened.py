"""Opening a model file with everything a command needs to look at images."""

from pathlib import Path
from typing import TYPE_CHECKING

from protonmf_cli.cli import machine
from protonmf_cli.options import Machine

if TYPE_CHECKING:
    from protonmf_cli.jobs.loaded import Loaded


def open_model(
    path: Path,
    *,
    device: str,
    dtype: str,
    threads: int | None,
    offline: bool,
    batch_size: int = 32,
    workers: int | None = None,
) -> "Loaded":
    """Load a model and its network onto the device."""
    from protonmf_cli.cli.console import Shown
    from protonmf_cli.jobs.loaded import load

    machine.set_threads(threads)
    how = Machine(device=device, dtype=dtype, offline=offline, batch_size=batch_size, workers=workers)
    return load(path, machine=how, progress=Shown().progress())
