"""The few-shot benchmark: fair tasks, baselines that are what they are called, sound statistics."""

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel, wilcoxon
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid

from protonmf_cli.errors import InputError
from protonmf_cli.maths.normalisation import normaliser_of
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot import baselines as fewshot_baselines
from protonmf_cli.pipelines.fewshot.baselines import BASELINES
from protonmf_cli.pipelines.fewshot.benchmark import METHODS, Score, draw_tasks, run_tasks, signed_rank_p, summary

OPTIONS = FewShotOptions(scales=(5.0,), anchors=(3e-3,), alphas=(1e-2,), sparse_alphas=(1e-2, 1e-3))


def features(classes=6, images=10, width=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 1, width, generator=generator)
    noise = torch.randn(classes, images, width, generator=generator)
    return dict(enumerate(centres + 0.9 * noise))


def test_tasks_never_test_what_they_were_fitted_to():
    tasks = draw_tasks(dict.fromkeys(range(9), 11), [2, 5], 4, 3, seed=1)
    assert len(tasks) == 2 * 2 * 3
    for first, second in zip(tasks[::2], tasks[1::2], strict=True):
        assert (first.ways, first.subset) == (second.ways, second.subset)
        assert len(first.shots) == first.ways and first.shots.keys() == second.shots.keys()
        for c in first.shots:
            assert len(first.shots[c]) == len(second.shots[c]) == 4
            # two folds: what one fits to belongs to what the other tests
            assert set(first.shots[c]) <= set(second.test[c]) and set(second.shots[c]) <= set(first.test[c])
            assert not set(first.test[c]) & set(second.test[c])
            assert sorted(first.test[c] + second.test[c]) == list(range(11))
    assert tasks == draw_tasks(dict.fromkeys(range(9), 11), [2, 5], 4, 3, seed=1)
    assert tasks != draw_tasks(dict.fromkeys(range(9), 11), [2, 5], 4, 3, seed=2)
    # other numbers of classes leave a subset as it is
    assert tasks[6:] == draw_tasks(dict.fromkeys(range(9), 11), [5], 4, 3, seed=1)


def test_too_few_images_are_refused():
    with pytest.raises(InputError, match=r"5-way with 4 shots needs 5 classes of at least 8 images \(two folds\), but "
                       "only 3 of 5 classes have as many"):  # fmt: skip
        draw_tasks({0: 8, 1: 8, 2: 8, 3: 7, 4: 2}, [5], 4, 1, seed=0)


@pytest.mark.slow
def test_the_result_does_not_depend_on_the_number_of_processes():
    given = features()
    tasks = draw_tasks({c: len(x) for c, x in given.items()}, [3], 4, 2, seed=0)
    one, two = (run_tasks(tasks, given, OPTIONS, processes=n) for n in (1, 2))
    assert one == two
    assert all(set(score.accuracy) == set(METHODS) for score in one)
    assert all(score.prototypes["prototypes-l2"] >= 3 for score in one)
    assert all(score.zeros["prototypes-l1"] > score.zeros["prototypes-l2"] == 0 for score in one)


@pytest.mark.parametrize("kind", ["unit", "none"])
def test_baselines_are_what_they_are_called(kind, monkeypatch):
    """In the span of the samples or out of it: the same answers as scikit-learn on the whole features."""
    given = features(classes=5, images=14, width=60, seed=3)
    rows = torch.cat([x[:5] for x in given.values()])
    others = torch.cat([x[5:] for x in given.values()])
    labels = torch.arange(5).repeat_interleave(5)
    options = FewShotOptions(normalisation=kind)
    normaliser = normaliser_of(rows.double(), kind)
    train, seen, y = normaliser(rows.double()).numpy(), normaliser(others.double()).numpy(), labels.numpy()
    monkeypatch.setattr(fewshot_baselines, "STRENGTHS", (3.0,))
    monkeypatch.setattr(fewshot_baselines, "NEIGHBOURS", (3,))
    known = {
        "single-prototype": NearestCentroid().fit(train, y).predict(seen),
        "softmax-l2": LogisticRegression(C=3.0, max_iter=5000, tol=1e-8).fit(train, y).predict(seen),
        "knn": KNeighborsClassifier(3, weights="distance").fit(train, y).predict(seen),
    }
    inside = [torch.from_numpy(x) for x in fewshot_baselines._in_span(torch.from_numpy(train), torch.from_numpy(seen))]
    assert torch.allclose(
        torch.cdist(inside[1], inside[0]), torch.cdist(torch.from_numpy(seen), torch.from_numpy(train))
    )
    assert known.keys() == BASELINES.keys()
    for name, answer in BASELINES.items():
        assert (answer(rows, labels, others, options, None).numpy() == known[name]).all(), name


def test_the_strength_of_the_softmax_is_chosen_on_held_out_samples(monkeypatch):
    """Labels that the features do not tell: weak penalties overfit and are not taken."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(60, 30, generator=generator)
    labels = (rows[:, 0] + 3 * torch.randn(60, generator=generator) > 0).long()
    tried = []
    original = fewshot_baselines.LogisticRegression

    def noted(**words):
        tried.append(words["C"])
        return original(**words)

    monkeypatch.setattr(fewshot_baselines, "LogisticRegression", noted)
    BASELINES["softmax-l2"](rows, labels, rows, FewShotOptions(normalisation="none", folds=4), None)
    assert len(tried) == 9 * 4 + 1 and len(set(tried)) == 9
    assert tried[-1] < 1e3


def scores_of(table):
    """table: method -> accuracies of both folds of each subset."""
    count = len(next(iter(table.values())))
    models = ("prototypes-l2", "prototypes-l1")
    return [
        Score(
            ways=5, subset=n // 2, accuracy={m: v[n] for m, v in table.items()},
            prototypes=dict.fromkeys(models, 5 + n), zeros=dict.fromkeys(models, 0.5),
        )
        for n in range(count)
    ]  # fmt: skip


def test_means_and_tests_are_over_subsets():
    generator = np.random.default_rng(0)
    table = {m: generator.uniform(0.5, 1, 12) for m in METHODS}
    table["knn"] = table["prototypes-l2"]
    rows = {row["method"]: row for row in summary(scores_of(table), 3)}
    per_subset = {m: v.reshape(6, 2).mean(axis=1) for m, v in table.items()}
    row = rows["prototypes-l2"]
    assert row["mean"] == pytest.approx(per_subset["prototypes-l2"].mean())
    assert row["std"] == pytest.approx(per_subset["prototypes-l2"].std(ddof=1))
    assert (row["subsets"], row["shots"], row["ways"]) == (6, 3, 5) and row["prototypes"] == pytest.approx(10.5)
    ours, theirs = per_subset["prototypes-l2"], per_subset["softmax-l2"]
    assert row["p_ttest"]["softmax-l2"] == pytest.approx(ttest_rel(ours, theirs).pvalue)
    assert row["p_wilcoxon"]["softmax-l2"] == pytest.approx(wilcoxon(ours, theirs).pvalue)
    assert row["p_wilcoxon"]["knn"] == 1.0 and row["p_ttest"]["knn"] is None
    assert row["no_ttest"] == {"knn": "no subset differs"}
    assert rows["softmax-l2"]["p_ttest"] == rows["softmax-l2"]["p_wilcoxon"] == rows["softmax-l2"]["no_ttest"] == {}


def test_equal_differences_have_a_wilcoxon_test():
    """Every subset gains the same: a t-test has no variance to go by, the signs of all ten are one in 512."""
    base = np.repeat(np.linspace(0.8, 0.9, 10), 2)
    table = dict.fromkeys(METHODS, base) | {"prototypes-l2": base + 0.01, "prototypes-l1": base - 0.02}
    rows = {row["method"]: row for row in summary(scores_of(table), 5)}
    for method, gain in (("prototypes-l2", "+0.0100"), ("prototypes-l1", "-0.0200")):
        assert rows[method]["p_wilcoxon"] == dict.fromkeys(BASELINES, 2 / 2**10)
        assert rows[method]["p_ttest"] == dict.fromkeys(BASELINES)
        why = f"all 10 subsets differ by {gain}, without variance"
        assert rows[method]["no_ttest"] == dict.fromkeys(BASELINES, why)


def test_zeros_and_ties_are_tested_exactly():
    """Planted differences in four of ten subsets, two of them equal but for rounding, against all their signs."""
    gain = np.array([0.01, 0.1 + 0.01 - 0.1, 0.03, -0.02, 0, 0, 0, 0, 0, 0])
    base = np.full(20, 0.8)
    table = dict.fromkeys(METHODS, base) | {"prototypes-l2": base + gain.repeat(2)}
    row = summary(scores_of(table), 5)[0]
    # ranks 1.5, 1.5, 4 with a plus, 3 with a minus: sums of a sign's ranks up to 3 are {}, 1.5, 1.5, 1.5 + 1.5, 3
    assert row["p_wilcoxon"] == dict.fromkeys(BASELINES, 2 * 5 / 2**4)
    assert row["p_ttest"]["knn"] == pytest.approx(ttest_rel(base[:10] + gain, base[:10]).pvalue)
    assert row["no_ttest"] == {}


@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_the_exact_test_is_scipys_where_nothing_is_equal(count):
    gain = np.random.default_rng(count).normal(0.3, size=count)
    assert signed_rank_p(gain) == pytest.approx(wilcoxon(gain, method="exact").pvalue)


def test_one_subset_has_no_t_test():
    rows = summary(scores_of({m: [0.5, 0.7] for m in METHODS}), 3)
    assert rows[0]["p_ttest"] == dict.fromkeys(BASELINES) and rows[0]["std"] == 0.0
    assert rows[0]["p_wilcoxon"] == dict.fromkeys(BASELINES, 1.0)
    assert rows[0]["no_ttest"] == dict.fromkeys(BASELINES, "one subset has no variance")
