"""What is refused before anything heavy is loaded: inputs that are not there, outputs that cannot be written."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from protonmf_cli.errors import InputError, ModelFileError
from protonmf_cli.files.images.sources.shards import RANGE
from protonmf_cli.files.leftovers import sweep
from protonmf_cli.files.work.locks import claim

MODEL_SUFFIX = ".safetensors"
HUB = "hub:"
"""Begins the name of a model on the hub, hub:ORG/NAME[@REVISION]: it is not looked for on this machine."""


def check_name(path: Path) -> None:
    """Refuse a path at which safetensors can open nothing.

    Raises:
        InputError: naming it.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as failure:
        raise InputError(
            f"{path} has a name that is not UTF-8, and safetensors opens no such file. Give another name or folder."
        ) from failure


def check_writable(path: Path, force: bool, option: str = "-o", *, alone: bool = True) -> None:
    """Refuse an output that exists, a folder that cannot be written, or what another command is writing.

    Args:
        path: of the file.
        force: replace what is there.
        option: that names it, for the message.
        alone: keep other commands from it until this one ends, and remove what a killed one left half written.

    Raises:
        InputError: with what to do about it.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name with {option}.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is a device or a pipe, which is never replaced; give a file name with {option}.")
    if path.suffix == MODEL_SUFFIX:
        check_name(path)
    _check_new(path, force, option)
    if not path.parent.is_dir():
        raise InputError(f"the folder {path.parent} of the output does not exist. Create it first.")
    check_room(path.parent)
    if alone and claim(path, option):
        _check_new(path, force, option)  # which another one may have written meanwhile
        sweep(path.parent, path.name)


def check_room(folder: Path) -> None:
    """Refuse a folder in which nothing can be written.

    Raises:
        InputError: and why not.
    """
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".protonmf."):
            pass
    except OSError as failure:
        raise InputError(f"nothing can be written to {folder.resolve()}: {failure.strerror or failure}.") from failure


def _check_new(path: Path, force: bool, option: str) -> None:
    if path.exists() and not force:
        raise InputError(f"{path} exists already. Give another name with {option}, or --force to replace it.")


def check_model_there(path: Path) -> None:
    """Refuse a model file that does not exist.

    Raises:
        ModelFileError: with the commands that make one.
        InputError: its name is not UTF-8.
    """
    check_name(path)
    if not path.is_file() and not path.as_posix().startswith(HUB):
        raise ModelFileError(
            f"there is no prototype model at {path}. Make one with `protonmf convert MODEL --data DIR` (or `protopnet "
            "train`, `fewshot fit`), or name one with --model or PROTONMF_MODEL."
        )


def check_images_there(paths: Sequence[str]) -> None:
    """Refuse a model file among images, and images of which none exists.

    Raises:
        InputError: naming it, or one of them.
    """
    for path in paths:
        if path.lower().endswith(MODEL_SUFFIX):
            raise InputError(f"{path} is a model file, not an image: give it with --model.")
    if paths and not any(Path(path).exists() for path in paths):
        if len(paths) == 1:
            raise InputError(f"{paths[0]} cannot be read: No such file or directory.")
        raise InputError(f"none of the {len(paths)} images exists, e.g. {paths[0]}.")


def check_data_there(data: Path | str) -> None:
    """Refuse data on this machine that does not exist.

    Raises:
        InputError: naming it.
    """
    words = str(data)
    if not (isinstance(data, str) and "://" in words) and not Path(data).exists() and not RANGE.search(words):
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
