"""Pieces of a class that is too large for memory, one for each image, in a file that is read range by range."""

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.models.class_part import Pieces

AT_ONCE = 64
"""Images that are copied at a time."""


class Spool:
    """Pieces of one shape and type in a file; what is read of it does not stay in the process's memory."""

    def __init__(
        self, file: BinaryIO, shape: Sequence[int], dtype: torch.dtype, device: torch.device, count: int = 0
    ) -> None:
        self._file, self._one, self._count = file, torch.Size(shape), count
        self.dtype, self.device = dtype, device

    @classmethod
    def unnamed(cls, folder: Path, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Self:
        """An empty one on the disk of a folder; it goes with the process, however that ends.

        Raises:
            InputError: nothing can be written there.
        """
        try:
            return cls(tempfile.TemporaryFile(dir=folder, buffering=0), shape, dtype, device)
        except OSError as failure:
            raise _refusal(failure) from failure

    @classmethod
    def opened(cls, path: Path, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Self:
        """One that was kept under a name, of shape (n, ...) in all.

        Raises:
            OSError: it is not there, or cut short.
        """
        file = path.open("rb", buffering=0)
        if path.stat().st_size != math.prod(shape) * dtype.itemsize:
            raise OSError(f"{path} is cut short")
        return cls(file, shape[1:], dtype, device, shape[0])

    @property
    def shape(self) -> torch.Size:
        """(n, ...)"""
        return torch.Size((self._count, *self._one))

    def append(self, part: Tensor) -> None:
        """Further pieces (B, ...), after those that are there.

        Raises:
            InputError: the disk is full.
        """
        left = _bytes_of(part.detach().cpu().contiguous())
        self._file.seek(0, os.SEEK_END)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as failure:
            raise _refusal(failure) from failure
        self._count += len(part)

    def __getitem__(self, wanted: slice | Tensor) -> Tensor:
        """Pieces of a range, or of int64 numbers, on the device."""
        if isinstance(wanted, Tensor):
            return torch.cat([self[n : n + 1] for n in wanted.tolist()] or [self[:0]])
        start, stop, _ = wanted.indices(self._count)
        found = torch.empty(max(0, stop - start), *self._one, dtype=self.dtype)
        left, position = _bytes_of(found), start * math.prod(self._one) * self.dtype.itemsize
        self._file.seek(position)
        while left:
            read = self._file.readinto(left)  # type: ignore[attr-defined]
            if not read:
                raise OSError("a file of rows was cut short while it was read")
            left = left[read:]
        return found.to(self.device)

    def to(self, device: torch.device) -> "Spool":
        """The same file, handed out on another device."""
        return Spool(self._file, self._one, self.dtype, device, self._count)


def keep(pieces: Pieces, path: Path) -> None:
    """Write pieces to a file for `Spool.opened`, whole or not at all.

    Raises:
        InputError: the disk is full.
    """

    def written(target: Path) -> None:
        with target.open("wb") as file:
            for start in range(0, pieces.shape[0], AT_ONCE):
                file.write(_bytes_of(pieces[start : start + AT_ONCE].cpu().contiguous()))

    write_atomically(path, written)


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy().data)


def _refusal(failure: OSError) -> InputError:
    return InputError(
        f"the rows of a class are larger than --memory and could not be written beside the output: "
        f"{failure.strerror or failure}. Make room there, or give a larger --memory, or fewer images with --sample."
    )
