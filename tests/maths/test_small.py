"""nnls, scoring, metrics."""

import numpy as np
import pytest
import torch

from protonmf_cli.maths.metrics import bootstrap_interval, logit_share, median_share
from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.maths.scoring import peak_box, strongest_images, upsample


@pytest.mark.parametrize(("p", "width"), [(1, 25), (3, 25), (10, 25), (12, 6)])
def test_nonnegative_codes_are_optimal(p, width):
    """The conditions of Karush, Kuhn and Tucker, which only a minimum meets."""
    generator = torch.Generator().manual_seed(p)
    A = torch.randn(60, width, generator=generator, dtype=torch.float64)
    B = torch.rand(p, width, generator=generator, dtype=torch.float64)
    codes = nonnegative_codes(A, B)
    slope = (codes @ B - A) @ B.mT
    assert codes.shape == (60, p) and (codes >= 0).all() and (codes > 0).any()
    assert (slope > -1e-9).all() and (codes * slope).abs().max() < 1e-9
    assert nonnegative_codes(A.float(), B.float()).dtype == torch.float32
    assert nonnegative_codes(A[:0], B).shape == (0, p)


def test_nonnegative_codes_survive_a_dead_prototype():
    B = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert nonnegative_codes(torch.tensor([[2.0, 3.0]]), B).tolist() == [[2.0, 0.0]]


def test_box_is_around_the_peak_only():
    grid = torch.zeros(7, 7)
    grid[1, 5] = 10.0
    grid[5, 1] = 9.0  # a second, weaker peak far away does not stretch the box
    left, top, right, bottom = peak_box(grid, (224, 224))
    assert 5 * 32 - 16 <= left < 5 * 32 + 16 <= right <= 6 * 32 + 16
    assert 32 - 16 <= top < 48 < bottom <= 64 + 16


@pytest.mark.parametrize("size", [(224, 224), (64, 96), (7, 7)])
def test_box_stays_inside_the_crop(size):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        left, top, right, bottom = peak_box(torch.rand(7, 7, generator=generator), size)
        assert 0 <= left < right <= size[1]
        assert 0 <= top < bottom <= size[0]
    assert peak_box(torch.zeros(3, 3), size) == (0, 0, size[1], size[0])


def test_upsampling_keeps_a_constant():
    assert torch.allclose(upsample(torch.full((2, 3, 3), 0.7), (30, 20)), torch.tensor(0.7), atol=1e-6)


def test_strongest_images_are_distinct_and_sorted():
    codes = torch.rand(9, 4, 3, generator=torch.Generator().manual_seed(0))
    chosen = strongest_images(codes, 5)
    for k, row in enumerate(chosen.tolist()):
        best = [float(codes[image, :, k].max()) for image in row]
        assert len(set(row)) == 5
        assert best == sorted(best, reverse=True)


def test_logit_share_by_hand():
    whole = torch.tensor([[5.0, 1.0, 100.0], [2.0, 2.0, 0.0]])
    part = torch.tensor([[3.0, 1.0, -7.0], [1.0, 0.0, 0.0]])
    share = logit_share(part, whole, torch.tensor([0, 0]), torch.tensor([0, 1]))
    assert share[0] == pytest.approx(1.0 / 2.0)
    assert share[1].isnan()  # the centred logit is zero
    assert median_share(share) == pytest.approx(0.5)
    assert median_share(share[1:]) is None
    assert logit_share(part, whole, torch.tensor([0, 0]), torch.tensor([0])).isnan().all()


def test_bootstrap_interval_covers_the_mean():
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values, seed=0)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert (low, high) == bootstrap_interval(values, seed=0)
