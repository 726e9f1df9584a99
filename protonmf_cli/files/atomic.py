"""Files that are either whole or not there, and digests of tensors."""

import hashlib
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.leftovers import PART


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename, flush the folder; mode 0644.

    Args:
        path: final name.
        content: the bytes, or a function that writes them to the temporary name it is given.

    Raises:
        InputError: the folder is missing or read-only, or the disk is full; nothing is left under `path`.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PART, dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
        if callable(content):
            content(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as failure:
        raise InputError(
            f"{path} could not be written: {failure.strerror or failure}. Nothing was changed."
        ) from failure
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where its file system can do that."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest_of_tensors(tensors: Mapping[str, Tensor], head: str = "") -> str:
    """sha256 over `head` and the name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(_title(name, tensor))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def digest_of_file(path: Path, tensors: Mapping[str, Tensor], start: int, head: str) -> tuple[str, dict[str, float]]:
    """As `digest_of_tensors` of tensors that lie in a file, read piece by piece: nothing of it stays in memory.

    Args:
        path: of the file.
        tensors: by name, in the order in which their bytes follow each other; only dtypes and shapes are looked at.
        start: where the first one begins.
        head: as of `digest_of_tensors`.

    Returns:
        The digest, and the largest size of a number in each tensor of floats; infinite where one is none.
    """
    digest, largest = hashlib.sha256(head.encode()), dict[str, float]()
    sizes = [tensor.numel() * tensor.itemsize for tensor in tensors.values()]
    begins = dict(zip(tensors, itertools.accumulate(sizes, initial=start), strict=False))
    with path.open("rb") as file:
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(_title(name, tensor))
            file.seek(begins[name])
            numbers = FLOATS.get(tensor.dtype)
            left = tensor.numel() * tensor.itemsize
            while left and (piece := file.read(min(left, PIECE))):
                digest.update(piece)
                left -= len(piece)
                if numbers is not None:
                    largest[name] = max(largest.get(name, 0.0), _largest(np.frombuffer(piece, numbers)))
    return digest.hexdigest(), largest


PIECE = 2**20
"""Bytes that are read at once."""
FLOATS: dict[torch.dtype, type[np.generic]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: np.uint16,
}
"""Types of numbers of which some are none, and what NumPy reads them as."""


def _largest(numbers: np.ndarray) -> float:
    """The largest size of some numbers; those of bfloat16 are the upper halves of float32."""
    if numbers.dtype == np.uint16:
        numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
    found = max(float(numbers.max()), -float(numbers.min()))  # either is NaN where a number is
    return found if math.isfinite(found) else math.inf


def _title(name: str, tensor: Tensor) -> bytes:
    return f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
