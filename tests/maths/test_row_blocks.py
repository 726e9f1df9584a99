import numpy as np
import pytest
import torch

from protonmf_cli.maths import nmf, row_blocks
from protonmf_cli.maths.row_blocks import RowBlocks
from protonmf_cli.options import NmfOptions


def rows_of(images=60, each=7, width=24, *, signed=False, seed=0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(images * each, 3, generator=generator) ** 3
    rows = codes @ torch.rand(3, width, generator=generator) + 0.05 * torch.rand(
        images * each, width, generator=generator
    )
    return (rows - 0.2 * signed).view(images, each, width)


class Stored:
    """Rows in a file, read part by part into one buffer; counts the parts."""

    def __init__(self, path, rows: torch.Tensor) -> None:
        self.path, self.shape, self.dtype, self.device = path, rows.shape, rows.dtype, rows.device
        rows.numpy().tofile(path)
        self.bytes = rows[0].numel() * rows.itemsize
        self.buffer = np.empty(0, np.float32)
        self.asked: list[tuple[int, int]] = []

    def __getitem__(self, wanted: slice) -> torch.Tensor:
        start, stop, _ = wanted.indices(self.shape[0])
        self.asked.append((start, stop))
        count = (stop - start) * self.bytes // 4
        self.buffer = self.buffer if len(self.buffer) >= count else np.empty(count, np.float32)
        with self.path.open("rb") as file:
            file.seek(start * self.bytes)
            file.readinto(memoryview(self.buffer[:count]).cast("B"))
        return torch.from_numpy(self.buffer[:count]).view(stop - start, *self.shape[1:])


@pytest.mark.parametrize("signs", ["none", "split", "clip"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_the_whole_matrix(signs, dtype, monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 150 * 24 * dtype.itemsize)
    monkeypatch.setattr(row_blocks, "LEAST_BYTES", 16 * 24 * dtype.itemsize)
    rows = rows_of(signed=signs != "none").to(dtype)
    blocks = RowBlocks([rows], signs, threads=3)
    flat = rows.flatten(0, 1)
    parts = [flat] if signs == "none" else [flat.clamp_min(0)]
    whole = torch.cat(parts + ([(-flat).clamp_min(0)] if signs == "split" else []), dim=1)
    basis, codes = torch.randn(1, 5, blocks.width, dtype=dtype), torch.randn(1, 5, len(flat), dtype=dtype)
    seen = list(range(0, blocks.count, 147))  # 21 images
    found = [(b.start, b.times(basis), b.gathered(codes[..., b.start : b.stop])) for b in blocks]
    assert blocks.width == whole.shape[1]
    assert [start for start, *_ in found] == seen
    assert torch.allclose(torch.cat([part for _, part, _ in found], dim=2), basis @ whole.mT, atol=1e-4)
    assert torch.allclose(sum(part for *_, part in found), codes @ whole, atol=1e-3)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("options", [NmfOptions(), NmfOptions(init="abs", solver="mu", max_iterations=9)])
def test_a_file_gives_the_bytes_that_memory_gives_in_one_pass_an_iteration(tmp_path, monkeypatch, signed, options):
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 8 * 7 * 24 * 4)
    rows = rows_of(signed=signed)
    stored = Stored(tmp_path / "rows", rows)
    halves = [(torch.arange(0, 30), torch.arange(30, 60))]
    words = {"options": options, "seeds": [3], "signs": "split", "parts": halves}
    (found,) = nmf.factorise_group([rows], 3, **words)
    (read,) = nmf.factorise_group([stored], 3, **words)
    assert torch.equal(found.codes, read.codes)
    assert torch.equal(found.basis, read.basis)
    assert all(torch.equal(a, b) for a, b in zip(found.parts, read.parts, strict=True))
    assert (found.error, found.size, found.history) == (read.error, read.size, read.history)
    limits = [(start, min(60, start + 8)) for start in range(0, 60, 8)]
    passes, left = divmod(len(stored.asked), len(limits))
    assert not left
    assert stored.asked == limits * passes
    if options.init == "nndsvda":  # norms, four for the start, one for the codes
        (alone,) = nmf.factorise_group([stored], 3, **{**words, "parts": ()})
        assert len(stored.asked) // len(limits) - passes == alone.iterations + 6


def test_neither_threads_nor_the_size_of_blocks_matter(monkeypatch):
    rows = rows_of(images=90, width=40)
    monkeypatch.setattr(row_blocks, "LEAST_BYTES", 2**12)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(nmf.factorise(rows, 3, options=NmfOptions(), seed=0))
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(found[0].codes, found[1].codes)
    assert torch.equal(found[0].basis, found[1].basis)
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 2**14)
    again = nmf.factorise(rows, 3, options=NmfOptions(), seed=0)
    assert again.error == pytest.approx(found[0].error, rel=1e-2)
    assert (found[0].basis * again.basis).sum(dim=1).min() > 0.999


def test_a_block_is_at_least_one_image(monkeypatch):
    monkeypatch.setattr(row_blocks, "BLOCK_BYTES", 1)
    blocks = RowBlocks([rows_of(images=3)], "none", threads=1)
    assert [(block.start, block.stop) for block in blocks] == [(0, 7), (7, 14), (14, 21)]
