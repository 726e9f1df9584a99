"""Folders that jobs write several files to."""

from pathlib import Path

from protonmf_cli.errors import InputError


def make_folder(folder: Path, option: str = "--figures") -> None:
    """Make the folder that an option names before any work.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise InputError(f"the folder {folder} of {option} cannot be made: {failure.strerror}.") from failure
