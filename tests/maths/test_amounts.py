"""Neighbours among rows and pairs of near duplicates: as all pairs at once have them, however they are taken apart."""

import pytest
import torch

from protonmf_cli.maths.amounts import near_duplicates, nearest_rows


def rows_of(count=23, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 100])
@pytest.mark.parametrize("among", [range(23), range(1, 23, 3)])
def test_nearest_rows_are_those_of_all_cosines_and_equal_ones_come_in_their_order(chunk, among):
    rows = rows_of()
    rows[[4, 7, 10]] = 2 * rows[[1]]  # as near as can be, and equally
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    for count in (1, 3, 40):
        found = nearest_rows(rows, torch.tensor(list(among)), count, chunk=chunk)
        for row, chosen in enumerate(found):
            others = [n for n in among if n != row]
            wanted = sorted(others, key=lambda n: (-round(float(unit[row] @ unit[n]), 9), n))[:count]
            assert chosen == wanted


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_near_duplicates_are_those_of_all_pairs_the_most_alike_first(chunk):
    rows = rows_of()
    rows[5], rows[9], rows[20] = 3 * rows[2] + 0.01 * rows[3], rows[2] + 0.1, 0.0
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    cosine = unit @ unit.mT
    pairs = [(i, j) for i in range(23) for j in range(i + 1, 23) if float(cosine[i, j]) >= 0.6]
    wanted = sorted(pairs, key=lambda pair: -float(cosine[pair]))
    for most in (0, 2, 100):
        count, found = near_duplicates(rows, 0.6, most, chunk=chunk)
        assert (count, [(i, j) for i, j, _ in found]) == (len(pairs), wanted[:most])
        assert [c for *_, c in found] == pytest.approx([float(cosine[pair]) for pair in wanted[:most]], abs=1e-12)


def test_a_pair_at_the_threshold_is_judged_in_float64():
    angle = torch.tensor(0.95, dtype=torch.float64).acos()
    below, above = (torch.stack([(angle + off).cos(), (angle + off).sin()]) for off in (1e-9, -1e-9))
    first = torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert near_duplicates(torch.stack([first, below]), 0.95, 9)[0] == 0
    assert near_duplicates(torch.stack([first, above]), 0.95, 9)[0] == 1
