"""A report as a folder: the page and its pictures, whole or not there."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import sync_folder
from protonmf_cli.files.checks import check_room
from protonmf_cli.files.leftovers import PART, sweep
from protonmf_cli.files.work.locks import claim

INDEX = "index.html"
PICTURES = "pictures"


def check_folder(folder: Path, force: bool) -> None:
    """Refuse, before any work, a folder that exists or cannot be made; with force, one that is not a report.

    Raises:
        InputError: with what to do about it, also where another command is writing it.
    """
    if Path.cwd().is_relative_to(folder.resolve()):
        raise InputError(f"{folder} is where you are; give the name of a new folder with -o.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give the name of a folder with -o.")
    _check_replaceable(folder, force)
    if not folder.parent.is_dir():
        raise InputError(f"the folder {folder.parent} of the output does not exist. Create it first.")
    check_room(folder.parent)
    if claim(folder):
        _check_replaceable(folder, force)  # which another one may have written meanwhile
        sweep(folder.parent, folder.name)


def _check_replaceable(folder: Path, force: bool) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        if not force:
            raise InputError(f"{folder} exists already. Give another name with -o, or --force to replace it.")
        strange = {entry.name for entry in folder.iterdir()} - {INDEX, PICTURES}
        if strange:
            raise InputError(
                f"{folder} holds more than a report ({', '.join(sorted(strange)[:3])}): --force does not replace it. "
                "Give another name with -o."
            )


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write a page and its pictures; a reader finds the older page with its pictures, or the new one with its own.

    Args:
        folder: final name.
        files: content by name relative to it: index.html, and pictures whose names say their content, so that those of
            an older page and of the new one lie side by side for a moment.

    Raises:
        InputError: the disk is full or read-only; nothing is left under the final name, or the old report is.
    """
    folder, work = folder.resolve(), None
    try:
        work = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.", suffix=PART))
        _write_all(work, files)
        if (folder / INDEX).exists():
            _replace(folder, work, files)
        else:
            work.chmod(0o755)
            if folder.exists():
                shutil.rmtree(folder)  # empty, or pictures without a page
            work.rename(folder)
            work = None
            sync_folder(folder.parent)
    except OSError as failure:
        raise InputError(
            f"{folder} could not be written: {failure.strerror or failure}. Nothing was changed."
        ) from failure
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def _write_all(work: Path, files: Mapping[str, bytes]) -> None:
    """All files, first written, then flushed to disk together."""
    for name, content in files.items():
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_bytes(content)
    for name in files:
        with (work / name).open("rb+") as file:
            os.fsync(file.fileno())
    for each in (work / PICTURES, work):
        if each.is_dir():
            sync_folder(each)


def _replace(folder: Path, work: Path, files: Mapping[str, bytes]) -> None:
    """The pictures first, then the page at once, then what only the older page showed goes."""
    pictures = folder / PICTURES
    pictures.mkdir(exist_ok=True)
    there = {path.name for path in pictures.iterdir()}
    wanted = {Path(name).name for name in files if name != INDEX}
    try:
        for name in sorted(wanted):
            (work / PICTURES / name).replace(pictures / name)
        sync_folder(pictures)
        (work / INDEX).replace(folder / INDEX)
    except OSError:
        for name in wanted - there:
            (pictures / name).unlink(missing_ok=True)
        raise
    sync_folder(folder)
    for name in there - wanted:
        (pictures / name).unlink(missing_ok=True)
    if not wanted:
        pictures.rmdir()
