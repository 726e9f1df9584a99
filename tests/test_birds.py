"""The birds that explanations are measured on, and the measures, on planted explainers."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import protonmf_cli

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

import bird_measures as measures
import bird_pictures as birds
import birds as benchmark
import manipulated
from bird_measures import Answers, Importance

SHAPES = birds.classes()
K = len(birds.NAMES)


# Pictures


def test_equal_seeds_draw_equal_pixels():
    first, again = (birds.draw(birds.scene_of(3, "val", 7), SHAPES[7]) for _ in range(2))
    assert np.array_equal(first.pixels, again.pixels)
    other = birds.draw(birds.scene_of(4, "val", 7), SHAPES[7])
    assert np.mean(first.pixels != other.pixels) > 0.5


@pytest.mark.parametrize("n", range(12))
def test_what_is_left_out_changes_the_pixels_of_its_mask_alone(n):
    scene = birds.scene_of(0, "val", n)
    whole = birds.draw(scene, SHAPES[n])
    for k in range(K):
        found = birds.draw(scene, SHAPES[n], without=[k])
        changed = (found.pixels != whole.pixels).any(axis=2)
        assert changed.any() and not (changed & ~whole.parts[k]).any()
        assert not found.parts[k].any() and found.middles()[k] is None
    for m in range(whole.object_count):
        changed = (birds.draw(scene, SHAPES[n], without_objects=[m]).pixels != whole.pixels).any(axis=2)
        assert not (changed & ~whole.objects[m]).any()


def test_another_shape_changes_its_own_pixels_alone():
    scene = birds.scene_of(0, "val", 1)
    for k, name in enumerate(birds.NAMES):
        for number in range(len(birds.PARTS[name])):
            shapes = [*SHAPES[1]]
            shapes[k] = number
            found, before = birds.draw(scene, shapes), birds.draw(scene, SHAPES[1])
            changed = (found.pixels != before.pixels).any(axis=2)
            assert changed.any() == (number != SHAPES[1][k])
            assert not (changed & ~(found.parts[k] | before.parts[k])).any()


def test_every_part_is_seen():
    for n in range(40):
        whole = birds.draw(birds.scene_of(0, "val", n), SHAPES[n])
        assert (whole.parts.sum(axis=(1, 2)) >= 20).all(), n
        for (x, y), mask in zip(whole.middles(), whole.parts, strict=True):
            assert mask[int(y), int(x)]


def test_classes_differ_in_two_parts():
    table = np.array(SHAPES)
    assert table.shape == (50, K)
    differing = (table[:, None] != table[None]).sum(axis=2) + K * np.eye(len(table), dtype=int)
    assert differing.min() >= 2
    assert all(len(set(table[:, k])) == len(birds.PARTS[name]) for k, name in enumerate(birds.NAMES))


def test_smallest_sufficient_parts():
    toy = ((0, 0), (0, 1), (1, 0))
    assert birds.smallest_sufficient(toy, 0) == [frozenset({0, 1})]
    assert birds.smallest_sufficient(toy, 1) == [frozenset({1})]
    for c in (0, 20):
        for chosen in birds.smallest_sufficient(SHAPES, c):
            assert birds.fitting(SHAPES, c, chosen) == [c]
            assert all(birds.fitting(SHAPES, c, chosen - {k}) != [c] for k in chosen)


def test_training_pictures_lack_parts_and_measured_ones_do_not():
    lacking = [birds.left_out(0, "train", n) for n in range(200)]
    assert 60 < sum(map(bool, lacking)) < 140 and max(map(len, lacking)) == K - 1
    assert not any(birds.left_out(0, "val", n) for n in range(50))


# Measures


@pytest.fixture(scope="module")
def planted() -> tuple[Answers, np.ndarray]:
    """Answers of a network that adds up parts: (N, K) gains of the true class's logit; two objects, of which the first
    is relevant and the second is missing in odd images."""
    generator = np.random.default_rng(0)
    count, table = 100, np.array(SHAPES)
    targets = generator.integers(50, size=count)
    gains = generator.permuted(np.tile([0.1, 1.0, 2.0, 4.0, 8.0], (count, 1)), axis=1)
    alike = (table[targets][:, None] == table[None]).astype(float)  # (N, C, K)
    parts = np.empty((count, 1 << K, 50))
    for bits in range(1 << K):
        there = np.array([not bits >> k & 1 for k in range(K)])
        parts[:, bits] = (alike * there * gains[:, None]).sum(axis=2)
    objects = np.repeat(parts[:, :1], 2, axis=1)
    objects[:, 0] -= 3.0
    objects[1::2, 1] = np.nan
    return Answers(targets=targets, parts=parts, objects=objects), gains


def said(parts: np.ndarray, objects: tuple[float, float] = (0.0, 0.0)) -> Importance:
    return measures.shared_out(parts, np.array(objects), float(np.abs(parts).sum() + sum(objects)))


def test_an_oracle_and_its_opposite_rank_parts(planted):
    answers, gains = planted
    assert measures.accuracy(answers).mean() == 1
    assert np.allclose(answers.drops, gains)
    assert np.allclose(measures.single_deletion(answers, lambda n, c: said(gains[n])), 1)
    assert np.allclose(measures.single_deletion(answers, lambda n, c: said(-gains[n])), 0)
    random = measures.single_deletion(answers, lambda n, c: said(np.random.default_rng([n, c]).random(K)))
    assert abs(random.mean() - 0.5) < 0.08
    assert np.isnan(measures.single_deletion(answers, lambda n, c: said(np.ones(K)))).all()


def test_what_is_relevant(planted):
    answers, gains = planted
    assert np.array_equal(answers.relevant(answers.drops), gains >= 0.05 * gains.sum(axis=1, keepdims=True))
    assert np.array_equal(answers.relevant(answers.object_drops), np.tile([True, False], (100, 1)))
    independent = measures.background_independence(answers)
    assert np.allclose(independent[::2], 0.5) and np.allclose(independent[1::2], 0.0)


def test_distractibility_of_planted_explainers(planted):
    answers, gains = planted
    relevant = answers.relevant(answers.drops)
    assert np.allclose(measures.distractibility(answers, lambda n, c: said(gains[n] * relevant[n]), 0.01), 1)
    everything = measures.distractibility(answers, lambda n, c: said(np.ones(K), (1.0, 1.0)), 0.01)
    assert np.allclose(everything, 0)
    parts_alone = measures.distractibility(answers, lambda n, c: said(np.ones(K)), 0.01)
    irrelevant = (~relevant).sum(axis=1)
    assert np.allclose(parts_alone[::2], 1 / (1 + irrelevant[::2]))  # the second object is irrelevant and left alone


def test_checks_of_planted_explainers(planted):
    answers, gains = planted
    all_parts, none = (lambda n, c: said(np.ones(K))), (lambda n, c: said(np.zeros(K)))
    assert measures.preservation_check(answers, all_parts, 0.01).mean() == 1
    assert measures.deletion_check(answers, none, 0.01).mean() == 0
    assert measures.deletion_check(answers, all_parts, 0.01).mean() > 0.9  # class 0 is said of nothing
    assert measures.synthetic_data_check(answers, all_parts, SHAPES, 0.01).mean() == 1
    assert measures.synthetic_data_check(answers, none, SHAPES, 0.01).mean() == 0

    def enough(n, c):
        return said(np.isin(np.arange(K), list(birds.smallest_sufficient(SHAPES, c)[0])).astype(float))

    assert measures.synthetic_data_check(answers, enough, SHAPES, 0.01).mean() == 1
    assert measures.preservation_check(answers, enough, 0.01).mean() == 1


def test_target_sensitivity_of_planted_explainers(planted):
    answers, gains = planted
    table = np.array(SHAPES)
    alike = lambda n, c: said(gains[n] * (table[answers.targets[n]] == table[c]))  # noqa: E731
    found = measures.target_sensitivity(answers, alike, SHAPES)
    assert np.isfinite(found).mean() > 0.5 and np.nanmean(found) == 1
    assert np.nanmean(measures.target_sensitivity(answers, lambda n, c: said(gains[n]), SHAPES)) == 0
    for c in range(50):
        pair = measures.target_pairs(SHAPES, c)
        if pair is not None:
            shared = [set(np.flatnonzero(table[other] == table[c]).tolist()) for other in pair]
            assert len(shared[0]) == len(shared[1]) == 2 and not shared[0] & shared[1]


def test_shares_of_an_attribution():
    found = measures.shared_out(np.array([2.0, -1.0, 0.5]), np.array([1.0]), 4.0)
    assert found.important(0.2) == {0} and found.important(0.1) == {0, 2}
    assert found.object_scores.tolist() == [0.25]
    against = measures.shared_out(np.array([2.0, -1.0]), np.array([0.0]), -1.0)
    assert against.important(0.5) == {0}


# What is read of networks and of files


def test_answers_are_of_the_pictures_without_parts(tmp_path):
    sample = benchmark.Birds(0, "val", 2)

    def logits(crops: torch.Tensor) -> torch.Tensor:
        return crops.double().mean(dim=(1, 2, 3))[:, None] * torch.arange(1, 51)

    for _ in range(2):  # read, and from what was kept
        found = benchmark.answers_on(sample, logits, tmp_path / "answers.npz")
        without = sample.draw(1, without=[0, 3])
        assert np.allclose(found.without(1, [3, 0]), without.pixels.mean() * np.arange(1, 51))
        assert np.allclose(found.objects[0, 1, 0], sample.draw(0, without_objects=[1]).pixels.mean())
        assert np.isfinite(found.objects[:, :, 0]).sum(axis=1).tolist() == [each.object_count for each in sample.whole]


def test_importance_of_a_map_is_what_lies_inside_the_parts():
    sample = benchmark.Birds(0, "val", 1)
    picture, (parts, objects) = sample.whole[0], sample.masks[0]
    assert (parts & picture.parts == picture.parts).all() and parts.sum() > picture.parts.sum()
    tail = parts[4].astype(float)
    found = benchmark.by_map(sample, 0, tail)
    assert found.parts[4] == tail.sum() and found.part_scores[4] == 1 and found.important(0.9) == {4}
    assert found.object_scores[len(objects) :].tolist() == [0.0] * (benchmark.MOST_OBJECTS - len(objects))
    grid = np.random.default_rng(0).random((7, 7))
    assert abs(benchmark.pixels_of(grid).sum() - grid.sum()) < 1e-4 * grid.sum()
    covered = benchmark.share_covered(picture.parts, benchmark.box_mask((0, 0, 112, 112)))
    assert covered.tolist() == [1.0] * K


def test_likeness_of_maps():
    maps = [np.random.default_rng(n).random((7, 7)) for n in range(3)]
    ranks, seen = manipulated.likeness(maps, [2 * each + 1 for each in maps])
    assert np.allclose(ranks, 1) and np.allclose(seen, 1)
    ranks, seen = manipulated.likeness(maps, [-each for each in maps])
    assert np.allclose(ranks, -1) and (seen < 0).all()
    assert manipulated.likeness(maps[:1], [np.ones((7, 7))])[0] == [0]


def test_other_prototypes_under_the_same_logits(converted):
    loaded = protonmf_cli.load(converted)
    model = loaded.model
    sums = {c: torch.rand(6, model.prototypes.shape[1], dtype=torch.float64) for c in range(len(model.bias))}
    generator = torch.Generator().manual_seed(0)
    turned = manipulated.rotated(model, generator)
    for c in model.active_classes.tolist():
        own = model.own(c)
        both = torch.cat([model.prototypes[own].double(), turned[own]])
        assert torch.linalg.matrix_rank(both, rtol=1e-5) == torch.linalg.matrix_rank(both[: len(own)], rtol=1e-5)
    assert not torch.allclose(turned.float(), model.prototypes)
    for prototypes in (turned, torch.rand(model.prototypes.shape, generator=generator, dtype=torch.float64)):
        found = manipulated.with_prototypes(model, prototypes, sums)
        assert torch.allclose(found.head_vectors(), model.head_vectors(), atol=1e-5)
        for c in model.active_classes.tolist():  # the unit of an amount is the usual one
            amounts = sums[c] @ found.exact.readers(c)[: len(model.own(c))].mT
            assert torch.allclose(amounts.quantile(0.5, dim=0), torch.ones(len(model.own(c))).double(), atol=1e-3)


def test_swapped_patches_are_of_other_prototypes(converted):
    model = protonmf_cli.load(converted).model
    found = manipulated.with_swapped(model)
    assert [len(found.examples.of(k)) for k in range(len(model.prototypes))] == [
        len(model.examples.of(k)) for k in range(len(model.prototypes))
    ]
    assert (found.examples.prototype != model.examples.prototype).all()
    cars = manipulated.with_pictures(model.examples, [manipulated.car(n) for n in range(2)])
    assert cars.picture(0) == cars.picture(2) != cars.picture(1) and cars.sources == model.examples.sources
