"""Rows cut into blocks: every product that a factorisation needs of them, in passes that read each block once."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

Array = NDArray[np.floating[Any]]
Signs = Literal["none", "split", "clip"]
"""Rows without negative entries; negative parts beside the positive ones, in twice the width; or clipped at zero."""

BLOCK_BYTES = 16 * 2**20
"""Of one block on a CPU: small enough for the second product to find it in the cache."""
DEVICE_BLOCK_BYTES = 2**28
"""Of one block on an accelerator, over all classes of a batch."""
FEW_ROWS, MANY_ROWS = 16, 128
"""Rows per product on a CPU: BLAS libraries take skinny products of this size without packing their operands."""
LARGEST_DIRECT = 10**6
"""Multiplications up to which they do."""
LEAST_BYTES = 2**21
"""Of rows for each thread."""


class Rows(Protocol):
    """Rows in memory, on a device, or read as they are asked for; a tensor is one.

    What `rows[start:stop]` gives is only read, and done with before the next part is asked for, so it may be one
    buffer every time. Parts are asked for in rising order, again from 0 in the next pass.
    """

    @property
    def shape(self) -> torch.Size:
        """(n, T, D): images, rows of each, width; or (N, D)."""

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64."""

    @property
    def device(self) -> torch.device:
        """Of what `rows[start:stop]` gives."""

    def __getitem__(self, wanted: slice, /) -> Tensor:
        """The part from start to stop along the first axis."""


@dataclass(frozen=True)
class Block:
    """Some rows of each of G matrices, whose rows are `plain`, or [(s + m) / 2, (s - m) / 2] where they are split."""

    start: int
    stop: int
    threads: int
    plain: Tensor
    """(G, n, D)"""
    size: Tensor | None = None
    """(G, n, D) absolute values of rows that are split by sign."""

    def times(self, basis: Tensor) -> Tensor:
        """(G, k, n) products of the rows with the rows of `basis` (G, k, width)."""
        if self.size is None:
            return _times(self.plain, basis, self.threads)
        positive, negative = basis.chunk(2, dim=-1)
        signed = _times(self.plain, positive - negative, self.threads)
        return signed.add_(_times(self.size, positive + negative, self.threads)).mul_(0.5)

    def gathered(self, codes: Tensor) -> Tensor:
        """(G, k, width) sums of the rows times their `codes` (G, k, n)."""
        if self.size is None:
            return _gathered(self.plain, codes, self.threads)
        signed, size = (_gathered(part, codes, self.threads) for part in (self.plain, self.size))
        return torch.cat([size + signed, size - signed], dim=-1).mul_(0.5)


class RowBlocks:
    """G matrices of equal width, padded with zero rows to the longest, in blocks whose limits depend on shapes alone.

    Args:
        rows: (n, T, D) or (N, D) each; several only on an accelerator, where they are copied into one tensor.
        signs: what is done about negative entries.
        threads: of the products, on a CPU.
    """

    def __init__(self, rows: Sequence[Rows], signs: Signs, threads: int) -> None:
        first = rows[0]
        self.each = first.shape[1] if len(first.shape) == 3 else 1
        """Rows per image."""
        self.counts = tuple(part.shape[0] * self.each for part in rows)
        self.count = max(self.counts)
        self.signs = signs
        self.depth = first.shape[-1]
        self.device, self.dtype = first.device, first.dtype
        self._rows = first if len(rows) == 1 else _padded(rows)
        self._batch, self._threads = len(rows) > 1, threads
        room = BLOCK_BYTES if self.device.type == "cpu" else DEVICE_BLOCK_BYTES // len(rows)
        self._step = max(1, round(room / (first.dtype.itemsize * self.each * self.depth)))
        self._room: Tensor | None = None

    @property
    def width(self) -> int:
        """Of the rows as they are factorised."""
        return self.depth * (1 + (self.signs == "split"))

    def _parts(self) -> Iterator[tuple[int, Tensor]]:
        """First row and (G, n, D) rows as they are."""
        images = self._rows.shape[1] if self._batch else self._rows.shape[0]
        for start in range(0, images, self._step):
            if self._batch:
                part = self._rows[:, start : start + self._step]  # type: ignore[index]
            else:
                part = self._rows[start : start + self._step][None]
            yield start * self.each, part.reshape(len(part), -1, self.depth)

    def __iter__(self) -> Iterator[Block]:
        for start, part in self._parts():
            stop = start + part.shape[1]
            if self.signs == "none":
                yield Block(start, stop, self._threads, part)
            elif self.signs == "clip":
                yield Block(start, stop, self._threads, torch.clamp(part, min=0, out=self._scratch(part)))
            else:
                yield Block(start, stop, self._threads, part, torch.abs(part, out=self._scratch(part)))

    def _scratch(self, part: Tensor) -> Tensor:
        """Room for as many values, the same for every block."""
        if self._room is None or self._room.numel() < part.numel():
            self._room = torch.empty(part.numel(), dtype=part.dtype, device=part.device)
        return self._room[: part.numel()].view(part.shape)


def _padded(rows: Sequence[Rows]) -> Tensor:
    """(G, n, ...) with zeros behind the shorter ones."""
    return torch.nn.utils.rnn.pad_sequence([part[: part.shape[0]] for part in rows], batch_first=True)


def _times(part: Tensor, basis: Tensor, threads: int) -> Tensor:
    """(G, k, n) = basis part^T."""
    if part.device.type != "cpu" or len(part) > 1:
        return basis @ part.mT
    return torch.from_numpy(_thin_times(part[0].numpy(), basis[0].numpy(), threads))[None]


def _gathered(part: Tensor, codes: Tensor, threads: int) -> Tensor:
    """(G, k, D) = codes part."""
    if part.device.type != "cpu" or len(part) > 1:
        return codes @ part
    return torch.from_numpy(_thin_gathered(part[0].numpy(), codes[0].numpy(), threads))[None]


def _thin_times(part: Array, basis: Array, threads: int) -> Array:
    """(k, n) = basis (k, D) part^T, for k far below n and D.

    As a stack of small products, which takes a third of the time of one product: that one would copy `part` into
    another order first.
    """
    rows = FEW_ROWS if FEW_ROWS * basis.size <= LARGEST_DIRECT else FEW_ROWS // 2
    whole = len(part) - len(part) % rows
    stack, found = _stacked(part, rows), np.empty((len(part), len(basis)), part.dtype)
    products = _stacked(found, rows)
    _spread(lambda some: np.matmul(stack[some], basis.T, out=products[some]), stack, threads)
    np.matmul(part[whole:], basis.T, out=found[whole:])
    return np.ascontiguousarray(found.T)


def _thin_gathered(part: Array, codes: Array, threads: int) -> Array:
    """(k, D) = codes (k, n) part, likewise."""
    whole = len(part) - len(part) % MANY_ROWS
    stack, own = _stacked(part, MANY_ROWS), _stacked(codes.T, MANY_ROWS).transpose(0, 2, 1)
    sums = np.empty((len(stack), len(codes), part.shape[1]), part.dtype)
    _spread(lambda some: np.matmul(own[some], stack[some], out=sums[some]), stack, threads)
    return np.asarray(sums.sum(axis=0) + codes[:, whole:] @ part[whole:])


def _stacked(part: Array, rows: int) -> Array:
    """(m, rows, ...) view of what can be cut into pieces of so many rows."""
    shape = (len(part) // rows, rows, part.shape[1])
    return np.lib.stride_tricks.as_strided(part, shape, (rows * part.strides[0], *part.strides))


def _spread(work: Callable[[slice], object], stack: Array, threads: int) -> None:
    """Do the pieces of a stack on some threads, where that is worth while."""
    threads = max(1, min(threads, stack.nbytes // LEAST_BYTES))
    limits = [len(stack) * n // threads for n in range(threads + 1)]
    parts = [slice(*pair) for pair in pairwise(limits)]
    if threads == 1:
        work(parts[0])
    else:
        list(_pool(threads).map(work, parts))


@contextmanager
def small_steps() -> Iterator[int]:
    """Keep the libraries' own threads off: to start them takes longer than most steps do. Gives how many there were,
    among which `RowBlocks` shares out its products itself."""
    threads = torch.get_num_threads()
    with _libraries().limit(limits=1, user_api="blas"):
        torch.set_num_threads(1)
        try:
            yield threads
        finally:
            torch.set_num_threads(threads)


@cache
def _libraries() -> Any:
    return ThreadpoolController()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)
