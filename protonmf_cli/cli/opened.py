"""Opening a model file with everything a command needs to look at images."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from protonmf_cli.cli import machine
from protonmf_cli.errors import ModelFileError

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
    """Load a model and its network onto the device.

    Raises:
        ModelFileError: there is no usable model file; before anything heavy is imported when it is missing.
    """
    check_there(path)
    machine.set_threads(threads)
    from protonmf_cli.jobs.loaded import load

    place = machine.choose_device(device)
    loaded = load(
        path,
        device=place,
        dtype=machine.choose_dtype(dtype, place),
        offline=offline,
        batch_size=batch_size,
        workers=machine.worker_count(workers),
    )
    if loaded.model.is_outdated:
        print(outdated_words(path), file=sys.stderr)
    return loaded


def outdated_words(path: Path) -> str:
    """What to know of a file that was converted before there were amounts."""
    return (
        f"note: {path} was converted by an older protonmf: its rows are projections, which may cancel. It is explained as "
        "it was written; convert again for amounts of parts."
    )


def check_there(path: Path) -> None:
    """Refuse a model file that does not exist, before anything heavy is imported.

    Raises:
        ModelFileError: with the commands that make one.
    """
    if not path.is_file():
        raise ModelFileError(
            f"there is no prototype model at {path}. Make one with `protonmf convert MODEL --data DIR` (or `protopnet "
            "train`, `fewshot fit`), or name one with --model or PROTONMF_MODEL."
        )
