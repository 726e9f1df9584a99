"""Files that are either whole or not there, and digests of tensors."""

import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError


def write_atomically(path: Path, content: bytes | Callable[[Path], None]) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename, mode 0644.

    Args:
        path: final name.
        content: the bytes, or a function that writes them to the temporary name it is given.

    Raises:
        InputError: the folder is missing or read-only, or the disk is full; nothing is left under `path`.
    """
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
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
    except OSError as failure:
        raise InputError(
            f"{path} could not be written: {failure.strerror or failure}. Nothing was changed."
        ) from failure
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path, name: str, age: float = 0.0) -> None:
    """Remove what `write_atomically` left where its process was killed.

    Args:
        folder: where it wrote.
        name: with which the final names begin, up to a dot.
        age: seconds for which nobody touched it.
    """
    for path in folder.glob(f".{name}.*.part"):
        with suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime >= age:
                path.unlink()


def digest_of_tensors(tensors: Mapping[str, Tensor], head: str = "") -> str:
    """sha256 over `head` and the name, dtype, shape and bytes of every tensor, in the order of the names."""
    digest = hashlib.sha256(head.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(_title(name, tensor))
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def digest_of_file(path: Path, tensors: Mapping[str, Tensor], start: int, head: str) -> tuple[str, frozenset[str]]:
    """As `digest_of_tensors` of tensors that lie in a file, read piece by piece: nothing of it stays in memory.

    Args:
        path: of the file.
        tensors: by name, in the order in which their bytes follow each other; only dtypes and shapes are looked at.
        start: where the first one begins.
        head: as of `digest_of_tensors`.

    Returns:
        The digest, and the names of tensors that hold NaN or infinite numbers.
    """
    digest, broken = hashlib.sha256(head.encode()), set[str]()
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
                if numbers is not None and not np.isfinite(np.frombuffer(piece, numbers)).all():
                    broken.add(name)
    return digest.hexdigest(), frozenset(broken)


PIECE = 2**20
"""Bytes that are read at once."""
FLOATS = {torch.float32: np.float32, torch.float64: np.float64}
"""Types of numbers of which some are none."""


def _title(name: str, tensor: Tensor) -> bytes:
    return f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode()
