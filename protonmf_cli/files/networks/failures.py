"""What libraries say when they cannot load a network, as one sentence."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from protonmf_cli.errors import InputError, ModelFileError, ProtonmfError, first_line
from protonmf_cli.files.networks.hub_access import NOT_THERE, UNREACHABLE


def loading_error(name: str, weights: Path | None, failure: Exception) -> InputError:
    """What timm, torch, safetensors and the hub, each in their own words, could not load."""
    what = str(weights) if weights else name
    text = str(failure)
    if "Error(s) in loading state_dict" in text or "size mismatch" in text:
        lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
        without = f" {lines.pop()}" if lines and lines[-1].startswith("(without") else ""
        return InputError(
            f"the checkpoint {what}{without} does not fit {name}: {lines[0][:200] if lines else text[:200]}"
            f"{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}. "
            "Check the model's name, --num-classes and --model-arg."
        )
    if isinstance(failure, UNREACHABLE) or "Failed to download" in text:
        return InputError(
            f"the weights of {name} are not on this machine and cannot be downloaded (offline or no network). "
            "Give --weights FILE, local-dir:FOLDER, or connect and try again."
        )
    if isinstance(failure, NOT_THERE):
        return InputError(f"the hub has no such model, or no access to it: {name} ({first_line(failure)}).")
    if "weights_only" in text:
        return InputError(
            f"{what} is a pickle of more than tensors, which is not read. Save its state dict as safetensors."
        )
    if "No pretrained weights exist" in text:
        return InputError(f"timm has no pretrained weights for {name}. Give --weights FILE.")
    return InputError(f"the weights {what} cannot be read ({type(failure).__name__}: {first_line(failure)}).")


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Within it a model file is refused by its name."""
    try:
        yield
    except ModelFileError as failure:
        words = failure.words.rstrip(".")
        if str(file) in words:
            raise
        raise ModelFileError(f"{file} is not a valid prototype model: {words}.") from failure


@contextmanager
def refusals_of(file: Path) -> Iterator[None]:
    """Within it whatever fails because a model file describes no network is a refusal of that file.

    Raises:
        ModelFileError: naming the file, and what is wrong with it.
    """
    try:
        with naming(file):
            yield
    except (ProtonmfError, torch.OutOfMemoryError):
        raise
    except Exception as failure:  # libraries raise their own kinds on what a damaged file asks for
        raise ModelFileError(
            f"{file} is not a valid prototype model: its network cannot be built "
            f"({type(failure).__name__}: {first_line(failure).rstrip('.')})."
        ) from failure


@contextmanager
def loading(name: str, weights: Path | None) -> Iterator[None]:
    """Within it whatever fails is a network that cannot be loaded."""
    try:
        yield
    except ProtonmfError:
        raise
    except Exception as failure:  # libraries, torch, safetensors and the hub each raise their own kinds here
        raise loading_error(name, weights, failure) from failure


@contextmanager
def silenced(logger: str | None, level: int) -> Iterator[None]:
    """Within it a library's logger (None: the root, which some log to) says nothing below a level."""
    found = logging.getLogger(logger)
    before = found.level
    found.setLevel(level)
    try:
        yield
    finally:
        found.setLevel(before)
