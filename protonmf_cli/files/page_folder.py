"""A report as a folder: the page and its pictures, whole or not there."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from protonmf_cli.errors import InputError

INDEX = "index.html"


def check_folder(folder: Path, force: bool) -> None:
    """Refuse, before any work, a folder that exists or cannot be made; with force, one that is not a report.

    Raises:
        InputError: with what to do about it.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is where you are; give the name of a new folder with -o.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder with -o.")
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise InputError(f"{folder} exists already. Give another name with -o, or --force to replace it.")
        strange = {entry.name for entry in folder.iterdir()} - {INDEX, "pictures"}
        if strange:
            raise InputError(
                f"{folder} holds more than a report ({', '.join(sorted(strange)[:3])}): --force does not replace it. "
                "Give another name with -o."
            )
    if not folder.parent.is_dir():
        raise InputError(f"the folder {folder.parent} of the output does not exist. Create it first.")
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".protonmf."):
            pass
    except OSError as failure:
        raise InputError(f"nothing can be written to {folder.parent.resolve()}: {failure.strerror}.") from failure


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files beside the final place, then put them there; an older report goes last.

    Args:
        folder: final name.
        files: content by name relative to it.

    Raises:
        InputError: the disk is full or read-only; nothing is left under the final name, or the old report is.
    """
    folder, work = folder.resolve(), None
    try:
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        for name, content in files.items():
            path = work / "new" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if folder.exists():
            folder.rename(work / "old")
        (work / "new").rename(folder)
    except OSError as failure:
        raise InputError(
            f"{folder} could not be written: {failure.strerror or failure}. Nothing was changed."
        ) from failure
    finally:
        if work is not None and (work / "old").exists() and not folder.exists():
            (work / "old").rename(folder)
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)
