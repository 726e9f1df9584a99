"""N-way classification from K images per class: the few-shot model and its baselines on random classes.

Protocol ("Using prototypes to improve convolutional networks interpretability", 2017, Table 1): N classes are drawn at
random, their images are split into two folds, and each fold once gives K images per class for everything that is
fitted or chosen, while the other one is the test. A subset's accuracy is the mean over the two.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed
from scipy.stats import rankdata, ttest_1samp
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.options import FewShotOptions, WeightNorm
from protonmf_cli.pipelines.fewshot.baselines import BASELINES
from protonmf_cli.pipelines.fewshot.fitting import fit_prototypes
from protonmf_cli.pipelines.progress import SILENT, Progress

MODELS: dict[str, WeightNorm] = {"prototypes-l2": "l2", "prototypes-l1": "l1"}
METHODS = (*MODELS, *BASELINES)
DIGITS = 12
"""Of a difference of two accuracies that are no rounding."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One split of one subset: which images of which classes are fitted to, and which are the test."""

    ways: int
    subset: int
    shots: Mapping[int, tuple[int, ...]]
    """class -> numbers of its images"""
    test: Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one task gave."""

    ways: int
    subset: int
    accuracy: Mapping[str, float]
    """method -> share of the test images"""
    prototypes: Mapping[str, int]
    """method -> number of prototypes"""
    zeros: Mapping[str, float]
    """method -> share of the prototype-to-class weights that are zero"""


def draw_tasks(counts: Mapping[int, int], ways: Sequence[int], shots: int, subsets: int, seed: int) -> list[Task]:
    """Two tasks for each subset of classes, all decided by the seed.

    Args:
        counts: class -> its images.
        ways: numbers of classes N.
        shots: images per class K.
        subsets: of classes, for each N.
        seed: of classes and images.

    Raises:
        InputError: too few classes have enough images.
    """
    enough = sorted(c for c, count in counts.items() if count >= 2 * shots)
    tasks = []
    for n in ways:
        if n < 2:
            raise InputError(f"{n}-way: a classifier needs at least two classes.")
        if len(enough) < n:
            raise InputError(
                f"{n}-way with {shots} shots needs {n} classes of at least {2 * shots} images (two folds), but only "
                f"{len(enough)} of {len(counts)} classes have as many. Give fewer --ways or --shots."
            )
        for subset in range(subsets):
            generator = random.Random(f"{seed} {n} {subset}")
            chosen = sorted(generator.sample(enough, n))
            halves = {c: _halves(counts[c], generator) for c in chosen}
            for fold in (0, 1):
                tasks.append(
                    Task(
                        ways=n,
                        subset=subset,
                        shots={c: halves[c][fold][:shots] for c in chosen},
                        test={c: halves[c][1 - fold] for c in chosen},
                    )
                )
    return tasks


def _halves(count: int, generator: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    order = generator.sample(range(count), count)
    return tuple(order[: count // 2]), tuple(order[count // 2 :])


def run_tasks(
    tasks: Sequence[Task],
    features: Mapping[int, Tensor],
    options: FewShotOptions,
    *,
    blocks: tuple[int, ...] | None = None,
    processes: int = 1,
    progress: Progress = SILENT,
) -> list[Score]:
    """Fit every method to every task.

    Args:
        tasks: of `draw_tasks`.
        features: class -> (n, D) of all its images that a task may name.
        options: of the few-shot model; `norm` is set by the method.
        blocks: widths of joined layers.
        processes: that share the tasks; the result does not depend on it.
    """
    jobs = (delayed(run_task)(task, *_of_task(task, features), options, blocks) for task in tasks)
    progress.stage("fitting", len(tasks))
    found: list[Score] = []
    for score in Parallel(n_jobs=processes, return_as="generator", batch_size=1)(jobs):
        found.append(score)
        progress.advance()
    return found


def _of_task(task: Task, features: Mapping[int, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training features and labels 0..N-1, test features and labels."""
    parts = []
    for numbers in (task.shots, task.test):
        rows = torch.cat([features[c][list(chosen)] for c, chosen in numbers.items()])
        labels = torch.tensor([k for k, chosen in enumerate(numbers.values()) for _ in chosen])
        parts += [rows, labels]
    return parts[0], parts[1], parts[2], parts[3]


def run_task(
    task: Task,
    rows: Tensor,
    labels: Tensor,
    others: Tensor,
    truth: Tensor,
    options: FewShotOptions,
    blocks: tuple[int, ...] | None,
) -> Score:
    """Accuracy of every method on one task."""
    accuracy, prototypes, zeros = {}, {}, {}
    for method, norm in MODELS.items():
        fit = fit_prototypes(rows, labels, task.ways, replace(options, norm=norm), blocks=blocks)
        accuracy[method] = _accuracy(fit.logits(others).argmax(dim=1), truth)
        prototypes[method] = len(fit.model.prototypes)
        zeros[method] = float((fit.model.weights == 0).double().mean())
    for method, answer in BASELINES.items():
        accuracy[method] = _accuracy(answer(rows, labels, others, options, blocks), truth)
    return Score(ways=task.ways, subset=task.subset, accuracy=accuracy, prototypes=prototypes, zeros=zeros)


def _accuracy(answers: Tensor, truth: Tensor) -> float:
    return float((answers == truth).double().mean())


def summary(scores: Sequence[Score], shots: int) -> list[dict[str, Any]]:
    """Rows of `protonmf.fewshot_benchmark/1`: mean and deviation over the subsets, and tests of the model's gain.

    The paired tests are two-sided. That of Wilcoxon is exact and always there. The t-test is None where it is not
    defined, and `no_ttest` says why.
    """
    rows = []
    for ways in dict.fromkeys(score.ways for score in scores):
        of_subset = {method: _per_subset(scores, ways, method) for method in METHODS}
        for method, values in of_subset.items():
            rows.append(
                {
                    "method": method,
                    "ways": ways,
                    "shots": shots,
                    "subsets": len(values),
                    "mean": float(values.mean()),
                    "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
                    "accuracy": values.tolist(),
                    **_of_model(scores, ways, method),
                    **_tests(of_subset, method),
                }
            )
    return rows


def _per_subset(scores: Sequence[Score], ways: int, method: str) -> np.ndarray:
    found: dict[int, list[float]] = {}
    for score in scores:
        if score.ways == ways:
            found.setdefault(score.subset, []).append(score.accuracy[method])
    return np.array([np.mean(values) for values in found.values()])


def _of_model(scores: Sequence[Score], ways: int, method: str) -> dict[str, float | None]:
    own = [score for score in scores if score.ways == ways]
    if method not in MODELS:
        return {"prototypes": None, "zero_weights": None}
    return {
        "prototypes": float(np.mean([score.prototypes[method] for score in own])),
        "zero_weights": float(np.mean([score.zeros[method] for score in own])),
    }


def _tests(of_subset: Mapping[str, np.ndarray], method: str) -> dict[str, dict[str, Any]]:
    """baseline -> p of the paired t-test and of Wilcoxon's, and why a t-test is left out."""
    against = BASELINES if method in MODELS else {}
    gains = {other: (of_subset[method] - of_subset[other]).round(DIGITS) for other in against}
    why = {other: _no_ttest(gain) for other, gain in gains.items()}
    return {
        "p_ttest": {o: None if why[o] else float(ttest_1samp(gain, 0).pvalue) for o, gain in gains.items()},
        "p_wilcoxon": {other: signed_rank_p(gain) for other, gain in gains.items()},
        "no_ttest": {other: reason for other, reason in why.items() if reason},
    }


def _no_ttest(gain: np.ndarray) -> str | None:
    """Why a t-test of these differences is not defined, if it is not."""
    if len(gain) < 2:
        return "one subset has no variance"
    if np.ptp(gain) == 0:
        return f"all {len(gain)} subsets differ by {gain[0]:+.4f}, without variance" if gain[0] else "no subset differs"
    return None


def signed_rank_p(differences: np.ndarray) -> float:
    """Exact two-sided p of Wilcoxon's signed-rank test, over all signs of the differences; they may be equal.

    Zeros are left out, as Wilcoxon did, and equal sizes share their mean rank; 1 where nothing differs.

    >>> signed_rank_p(np.full(10, 0.01)) == 2 / 2**10
    True
    >>> signed_rank_p(np.zeros(10))
    1.0
    """
    differences = differences[differences != 0]
    ranks = (2 * rankdata(np.abs(differences))).astype(int)  # mean ranks are halves
    chances = np.ones(1)  # of every sum of the ranks with a plus
    for rank in ranks:
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    above = int(ranks[differences > 0].sum())
    return min(1.0, 2 * float(chances[: min(above, int(ranks.sum()) - above) + 1].sum()))
