"""Heads rebuilt from prototypes: amounts by the dual, what is weighed along, the ridge, and what happens at the edges."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from protonmf_cli.maths.amounts import dual
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.options import LEAST_SHARE, MOST_CANCELLATION, RIDGES, ConversionOptions
from protonmf_cli.pipelines.conversion.factorisation import factorise_readings
from protonmf_cli.pipelines.conversion.reconstruction import Bases, connections_of, reconstruct_heads, with_wholes
from protonmf_cli.pipelines.conversion.sums import sums_of

AMOUNTS = ConversionOptions(prototypes=2, near=2, ridge=0.0)


def problem(classes=5, own=2, width=16, images=30, seed=0, unplaced=False):
    """Images that are sums of their class's prototypes and a little of everything; heads that point at own ones."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.nn.functional.normalize(torch.rand(classes * own, width, generator=generator) ** 3, dim=1)
    owner = torch.arange(classes).repeat_interleave(own)
    vectors = 0.2 * torch.randn(classes, width, generator=generator, dtype=torch.float64)
    for c in range(classes):
        vectors[c] += basis[owner == c].double().sum(dim=0)
    parts = {}
    for c in range(classes):
        codes = 1 + torch.rand(images, own, generator=generator)
        pooled = codes @ basis[owner == c] + 0.1 * torch.rand(images, width, generator=generator)
        rest = 3 + torch.rand(images, width, generator=generator)
        stacked = torch.stack([pooled, rest], dim=1) if unplaced else pooled[:, None]
        sample = pooled[:4, None] * torch.tensor([[0.75], [0.25]])
        parts[c] = SimpleNamespace(pooled=stacked, sample=sample, prototypes=basis[owner == c])
    return vectors, Bases(classes=list(range(classes)), prototypes=basis, owner=owner), parts


def reconstructed(vectors, bias, bases, parts, options):
    return reconstruct_heads(vectors, bias, bases, sums_of(parts), parts, options)


def solve(options, wholes=False, **size):
    vectors, bases, parts = problem(**size)
    bases = with_wholes(bases, sums_of(parts).projected) if wholes else bases
    bias = torch.zeros(len(vectors), dtype=torch.float64)
    return vectors, bases, parts, reconstructed(vectors, bias, bases, parts, options)


def connections(found, c):
    hit = found.weights.class_index == c
    return found.weights.prototype[hit].tolist(), found.weights.value[hit].double()


def test_weights_are_the_head_s_own_row_on_the_prototype_and_the_residual_is_orthogonal_to_them():
    vectors, _, _, found = solve(AMOUNTS)
    for c in range(len(vectors)):
        used, value = connections(found, c)
        chosen = found.prototypes[used].double()
        assert torch.allclose(value, chosen @ vectors[c], atol=1e-4)
        assert torch.allclose(chosen @ found.residual[c], torch.zeros(len(used), dtype=torch.float64), atol=1e-4)


@pytest.mark.parametrize("wholes", [False, True])
def test_parts_always_add_up_to_the_head(wholes):
    paper = () if wholes else (replace(AMOUNTS, reconstruction="paper", near=0),)
    for options in (AMOUNTS, replace(AMOUNTS, ridge=0.2), *paper):
        vectors, _, _, found = solve(options, wholes)
        for c in range(len(vectors)):
            used, value = connections(found, c)
            chosen = found.prototypes[used].double()
            readers = chosen if found.amounts is None else dual(chosen, found.amounts.ridge).readers
            assert torch.allclose(value @ readers + found.residual[c], vectors[c], atol=1e-12)


def test_the_paper_s_coefficients_are_least_squares_in_parameter_space():
    vectors, bases, _, found = solve(replace(AMOUNTS, reconstruction="paper", near=0))
    for c in bases.classes:
        used, value = connections(found, c)
        expected = np.linalg.lstsq(bases.prototypes[used].double().numpy().T, vectors[c].numpy(), rcond=None)[0]
        assert used == bases.own(c)
        assert np.allclose(value.numpy(), expected, atol=1e-5)


def test_amounts_are_planted_ones_whatever_else_is_in_the_image():
    basis = torch.nn.functional.normalize(torch.rand(4, 9, generator=torch.Generator().manual_seed(3)), dim=1).double()
    planted = torch.tensor([0.5, 2.0, 0.0, -1.0], dtype=torch.float64)
    outside = torch.randn(9, dtype=torch.float64)
    outside -= torch.from_numpy(np.linalg.lstsq(basis.numpy().T, outside.numpy(), rcond=None)[0]) @ basis
    found = dual(basis, 0.0)
    assert torch.allclose(found.readers @ (planted @ basis + outside), planted, atol=1e-4)
    assert torch.allclose(found.readers @ basis.mT, torch.eye(4, dtype=torch.float64), atol=1e-4)
    assert torch.allclose(found.mixing @ basis, found.readers)


def test_a_usual_amount_is_one():
    _, bases, parts, found = solve(AMOUNTS)
    for c in bases.classes:
        used, _ = connections(found, c)
        own = bases.own(c)
        readers = dual(found.prototypes[used], 0.0).readers[: len(own)]
        amounts = parts[c].pooled[:, 0].double() @ readers.T
        assert torch.allclose(amounts.quantile(0.5, dim=0), torch.ones(2, dtype=torch.float64), atol=1e-5)
        low, high = found.amounts.range_of(own[0])
        inside = ((amounts[:, 0] >= low - 1e-6) & (amounts[:, 0] <= high + 1e-6)).double().mean()
        assert inside == pytest.approx(0.9, abs=0.05)
        peaks = (parts[c].sample.double() @ readers.T).amax(dim=1).quantile(0.5, dim=0)
        assert found.amounts.peak_of(own[0]) == pytest.approx(float(peaks[0]), rel=1e-5)


def test_what_is_weighed_along_is_chosen_by_the_head_alone():
    vectors, bases, _ = problem()
    chosen = connections_of(vectors, bases, 2)
    unit = torch.nn.functional.normalize(vectors, dim=1)
    for c, used in enumerate(chosen):
        cosine = unit @ unit[c]
        nearest = sorted(set(range(5)) - {c}, key=lambda other: -float(cosine[other]))[:2]
        assert used == bases.own(c) + [j for other in nearest for j in bases.own(other)]
    turned = replace(bases, prototypes=bases.prototypes.flip(1))
    assert connections_of(vectors, turned, 2) == chosen


def test_a_class_as_a_whole_is_what_its_parts_hold_of_its_mean_image():
    _, bases, parts = problem()
    found = with_wholes(bases, sums_of(parts).projected)
    assert (found.parts, len(found.prototypes)) == (10, 15)
    assert torch.equal(found.prototypes[:10], bases.prototypes)
    assert torch.equal(found.without_wholes.prototypes, bases.prototypes)
    for n, c in enumerate(found.classes):
        own, mean = bases.prototypes[bases.own(c)].double().numpy(), parts[c].pooled[:, 0].double().mean(dim=0)
        held = np.linalg.lstsq(own.T, mean.numpy(), rcond=None)[0] @ own
        assert np.allclose(found.prototypes[10 + n].double().numpy(), held / np.linalg.norm(held), atol=1e-5)
        assert found.own(c) == bases.own(c)


def test_a_near_class_is_one_row_where_it_is_weighed_as_a_whole():
    vectors, bases, parts = problem()
    found = with_wholes(bases, sums_of(parts).projected)
    wide = torch.cat([vectors, torch.ones(1, 16, dtype=torch.float64)])
    each, whole = (connections_of(wide, some, 2) for some in (bases, found))
    for c in range(5):
        owners = [int(bases.owner[j]) for j in each[c]]
        assert whole[c] == found.own(c) + [10 + other for other in dict.fromkeys(owners) if other != c]
    assert len(whole[5]) == 3  # one class more than the others are weighed along with


def test_wholes_are_read_by_themselves_and_edits_of_parts_are_as_without_them():
    _, bases, parts, found = solve(AMOUNTS, wholes=True)
    _, _, _, without = solve(AMOUNTS)
    for n, c in enumerate(range(5)):
        whole = found.prototypes[10 + n].double()
        amounts = parts[c].pooled[:, 0].double() @ whole / (whole @ whole)
        assert float(amounts.quantile(0.5)) == pytest.approx(1, abs=1e-5)
        low, high = found.amounts.range_of(10 + n)
        assert low < 1 < high
    unit = [torch.nn.functional.normalize(each.amounts.edit_readers[:10], dim=1) for each in (found, without)]
    assert torch.allclose(*unit, atol=1e-5)
    along = (found.amounts.edit_readers * found.prototypes).sum(dim=1)
    assert torch.allclose(along, torch.ones(15), atol=1e-4)
    assert found.pairs_alike == without.pairs_alike


def test_a_class_without_images_has_rows_of_other_classes_and_its_logit_stays():
    vectors, bases, parts = problem()
    wide = torch.cat([vectors, torch.ones(1, 16, dtype=torch.float64)])
    found = reconstructed(wide, torch.zeros(6, dtype=torch.float64), bases, parts, AMOUNTS)
    used, value = connections(found, 5)
    assert len(used) == 3 * 2  # one class more than the others are weighed along with
    assert torch.allclose(value @ dual(found.prototypes[used], 0.0).readers + found.residual[5], wide[5])


def test_the_mean_of_the_rows_without_a_place_is_kept():
    _, _, parts, found = solve(AMOUNTS, unplaced=True)
    expected = torch.cat([part.pooled[:, 1] for part in parts.values()]).mean(dim=0)
    assert torch.allclose(found.amounts.unplaced_mean, expected, atol=1e-5)
    _, _, _, without = solve(AMOUNTS)
    assert not without.amounts.unplaced_mean.any()


def cancelling(seed=0):
    """Classes of two prototypes in nearly opposite directions, one of which the head counts against the class."""
    vectors, bases, parts = problem(own=2, seed=seed)
    basis = bases.prototypes.clone()
    generator = torch.Generator().manual_seed(seed)
    for c in range(5):
        first = torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
        second = torch.nn.functional.normalize(0.35 * torch.randn(16, generator=generator) - first, dim=0)
        basis[2 * c], basis[2 * c + 1] = first, second
        vectors[c] = (first - 0.3 * second).double()
        codes = 10 + torch.rand(30, 2, generator=generator)
        parts[c] = SimpleNamespace(
            pooled=(codes @ torch.stack([1.2 * first, second]))[:, None], sample=torch.zeros(2, 1, 16),
            prototypes=basis[2 * c : 2 * c + 2],
        )  # fmt: skip
    return vectors, replace(bases, prototypes=basis), parts


def test_a_ridge_is_taken_only_where_rows_cancel_and_only_while_the_prototypes_carry_the_logit():
    free = replace(AMOUNTS, ridge=None)
    _, _, _, found = solve(free)
    assert found.amounts.ridge == RIDGES[0]
    vectors, bases, parts = cancelling()
    bias = torch.zeros(5, dtype=torch.float64)
    found = reconstructed(vectors, bias, bases, parts, free)
    assert found.amounts.ridge > 0

    def judged(ridge):
        made = reconstructed(vectors, bias, bases, parts, replace(AMOUNTS, ridge=ridge))
        cancelled, shares = [], []
        heads = torch.stack(
            [v @ dual(made.prototypes[u], ridge).readers for u, v in (connections(made, c) for c in range(5))]
        )
        for c in range(5):
            used, value = connections(made, c)
            x = parts[c].pooled[:, 0].double()
            rows = (x @ dual(made.prototypes[used], ridge).readers.T) * value
            cancelled.append(rows.abs().sum(dim=1) / rows.sum(dim=1).abs())
            part, whole = x @ heads.T, x @ vectors.T
            shares.append((part[:, c] - part.mean(dim=1)) / (whole[:, c] - whole.mean(dim=1)))
        return float(torch.cat(cancelled).median()), float(np.median(torch.cat(shares).numpy()))

    place = RIDGES.index(found.amounts.ridge)
    assert judged(RIDGES[place])[1] >= LEAST_SHARE
    assert all(judged(ridge)[0] > MOST_CANCELLATION for ridge in RIDGES[:place])
    cancels_still = judged(RIDGES[place])[0] > MOST_CANCELLATION
    assert not cancels_still or judged(RIDGES[place + 1])[1] < LEAST_SHARE


def test_the_bias_and_what_all_images_have_without_a_place_count_as_carried_where_a_ridge_is_chosen():
    """Else classes that differ by them alone would seem to be decided by what is left."""
    vectors, bases, parts = cancelling()
    free, none = replace(AMOUNTS, ridge=None), torch.zeros(5, dtype=torch.float64)
    ridge = reconstructed(vectors, none, bases, parts, free).amounts.ridge
    assert ridge > 0
    bias = 1000 * torch.arange(-2.0, 3.0, dtype=torch.float64)
    assert reconstructed(vectors, bias, bases, parts, free).amounts.ridge >= ridge
    rest = (1000 * torch.randn(16, generator=torch.Generator().manual_seed(7))).expand(30, 1, 16)
    placeless = {
        c: SimpleNamespace(pooled=torch.cat([part.pooled, rest], dim=1), sample=part.sample, prototypes=part.prototypes)
        for c, part in parts.items()
    }
    assert reconstructed(vectors, none, bases, placeless, free).amounts.ridge >= ridge


def test_equal_prototypes_share_what_they_hold_and_are_named():
    vectors, bases, parts = problem()
    twins = bases.prototypes.clone()
    twins[1] = twins[0]
    found = reconstructed(
        vectors, torch.zeros(5, dtype=torch.float64), replace(bases, prototypes=twins), parts, AMOUNTS
    )
    assert found.alike[0][:2] == (0, 1)
    used, value = connections(found, 0)
    assert value.isfinite().all()
    readers = dual(found.prototypes[used], 0.0).readers
    contributions = value * (readers @ (5 * twins[0].double()))
    assert float(contributions[0]) == pytest.approx(float(contributions[1]), rel=1e-3)
    assert float(contributions[:2].sum()) == pytest.approx(float(vectors[0] @ (5 * twins[0].double())), rel=1e-3)


def test_prototypes_that_are_all_zero_have_no_amount():
    vectors, bases, parts = problem()
    gone = bases.prototypes.clone()
    gone[3] = 0
    found = reconstructed(vectors, torch.zeros(5, dtype=torch.float64), replace(bases, prototypes=gone), parts, AMOUNTS)
    assert found.prototypes.isfinite().all()
    assert found.residual.isfinite().all()
    for c in range(5):
        used, value = connections(found, c)
        assert all(float(v) == 0 for j, v in zip(used, value, strict=True) if j == 3)


def test_more_prototypes_than_dimensions_stay_exact():
    vectors, bases, parts, found = solve(replace(AMOUNTS, near=4), classes=6, own=4, width=8)
    assert len(bases.prototypes) > 8
    assert found.nothing_left == tuple(range(6))
    for c in range(6):
        used, value = connections(found, c)
        readers = dual(found.prototypes[used], found.amounts.ridge).readers
        assert torch.allclose(value.double() @ readers, vectors[c], atol=1e-4)


def test_one_image_per_class():
    _, _, _, found = solve(replace(AMOUNTS, ridge=None), images=1)
    assert found.weights.value.isfinite().all()
    assert found.residual.isfinite().all()
    assert found.amounts.usual.isfinite().all()


def reading_of(rows):
    return ClassReading(
        class_index=0, rows=rows, pooled=rows.sum(dim=1, keepdim=True), predicted=torch.zeros(len(rows)),
        crops=torch.empty(0), images=tuple(range(len(rows))), skipped=(), figures={},
    )  # fmt: skip


def test_signed_rows_are_split_and_their_prototypes_joined():
    generator = torch.Generator().manual_seed(0)
    planted = torch.nn.functional.normalize(torch.randn(2, 12, generator=generator), dim=1)
    codes = torch.rand(20, 9, 2, generator=generator) * (torch.rand(20, 9, 2, generator=generator) > 0.5)
    rows = codes @ planted
    options = ConversionOptions(prototypes=2, stability=False)
    (found,) = factorise_readings([reading_of(rows)], 2, options)
    basis = found.factors.basis
    assert basis.shape == (2, 12)
    assert torch.allclose(basis.norm(dim=1), torch.ones(2), atol=1e-5)
    assert (basis < 0).any()
    assert (basis @ planted.T).abs().amax(dim=1).min() > 0.8
    (clipped,) = factorise_readings([reading_of(rows)], 2, replace(options, reconstruction="paper"))
    assert (clipped.factors.basis >= 0).all()
    left = rows.flatten(0, 1) - found.factors.codes @ basis
    assert float(left.square().sum() / rows.square().sum()) < 0.5


def test_rows_that_are_not_signed_are_factorised_as_they_are():
    rows = torch.rand(10, 4, 6, generator=torch.Generator().manual_seed(1))
    options = ConversionOptions(prototypes=2, stability=False)
    (found,) = factorise_readings([reading_of(rows)], 2, options)
    (paper,) = factorise_readings([reading_of(rows)], 2, replace(options, reconstruction="paper"))
    assert torch.equal(found.factors.basis, paper.factors.basis)
