"""What a few-shot model is compared with, on the same features: class means, a linear softmax, nearest neighbours."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor

from protonmf_cli.maths.normalisation import normaliser_of
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot.fitting import canonical_order
from protonmf_cli.pipelines.fewshot.folds import fold_numbers
from protonmf_cli.pipelines.fewshot.starts import span_of

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 300.0, 1e3, 3e3, 1e4, 1e5)
"""Values of C of the linear softmax that cross-validation chooses among."""
NEIGHBOURS = (1, 3, 5, 7)

Probabilities = Callable[[np.ndarray, np.ndarray, np.ndarray, float], np.ndarray]
"""Training rows, their labels, other rows, hyper-parameter -> class probabilities of the other rows."""


def single_prototype(
    rows: Tensor, labels: Tensor, others: Tensor, options: FewShotOptions, blocks: tuple[int, ...] | None
) -> Tensor:
    """(M,) class with the nearest mean: one prototype per class, as in prototypical networks (Snell et al. 2017).

    Args:
        rows, labels: training features (N, D) and classes 0..L-1 (N,).
        others: (M, D) features.
        options, blocks: normalisation, see `fit_prototypes`.
    """
    rows, others = _normalised(rows, others, options, blocks)
    means = torch.stack([rows[labels == c].mean(dim=0) for c in range(int(labels.max()) + 1)])
    return torch.cdist(others, means).argmin(dim=1)


def softmax_l2(
    rows: Tensor, labels: Tensor, others: Tensor, options: FewShotOptions, blocks: tuple[int, ...] | None
) -> Tensor:
    """(M,) class by a linear softmax with an L2 penalty, chosen among `STRENGTHS` over the few-shot model's folds."""

    def answer(train: np.ndarray, truth: np.ndarray, seen: np.ndarray, strength: float) -> np.ndarray:
        found: np.ndarray = LogisticRegression(C=strength, max_iter=2000).fit(train, truth).predict_proba(seen)
        return found

    with threadpool_limits(limits=1):
        return _chosen(answer, STRENGTHS, rows, labels, others, options, blocks)


def nearest_neighbours(
    rows: Tensor, labels: Tensor, others: Tensor, options: FewShotOptions, blocks: tuple[int, ...] | None
) -> Tensor:
    """(M,) class by k nearest neighbours, k among `NEIGHBOURS` over the few-shot model's folds."""

    def answer(train: np.ndarray, truth: np.ndarray, seen: np.ndarray, count: float) -> np.ndarray:
        nearest = KNeighborsClassifier(min(int(count), len(train)), weights="distance").fit(train, truth)
        found: np.ndarray = nearest.predict_proba(seen)
        return found

    with threadpool_limits(limits=1):
        return _chosen(answer, NEIGHBOURS, rows, labels, others, options, blocks)


def _chosen(
    answer: Probabilities,
    values: Sequence[float],
    rows: Tensor,
    labels: Tensor,
    others: Tensor,
    options: FewShotOptions,
    blocks: tuple[int, ...] | None,
) -> Tensor:
    """Answers with the value of the highest held-out accuracy, of equals the one with the least loss."""
    order = canonical_order(rows, labels)
    rows, labels = rows[order], labels[order]
    numbers = fold_numbers(labels, options.folds, options.seed)
    truth = labels.numpy()
    scores = []
    for value in values if int(numbers.max()) >= 0 else values[:0]:
        right, loss = [], []
        for k in range(int(numbers.max()) + 1):
            apart = (numbers == k).numpy()
            train, seen = _in_span(*_normalised(rows[~apart], rows[apart], options, blocks))
            found = answer(train, truth[~apart], seen, value)
            right.append(found.argmax(axis=1) == truth[apart])
            loss.append(-np.log(found[np.arange(len(found)), truth[apart]].clip(1e-12)))
        scores.append((np.concatenate(right).mean(), -np.concatenate(loss).mean()))
    best = values[max(range(len(scores)), key=lambda n: scores[n])] if scores else values[len(values) // 2]
    train, seen = _in_span(*_normalised(rows, others, options, blocks))
    return torch.from_numpy(answer(train, truth, seen, best).argmax(axis=1))


def _normalised(
    rows: Tensor, others: Tensor, options: FewShotOptions, blocks: tuple[int, ...] | None
) -> tuple[Tensor, Tensor]:
    normaliser = normaliser_of(rows.double(), options.normalisation, blocks)
    return normaliser(rows.double()), normaliser(others.double())


def _in_span(rows: Tensor, others: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both in orthonormal coordinates of the first one's span, and how far the others lie outside it.

    Distances and the solution of the linear softmax stay as they are, with far fewer columns.
    """
    axes = span_of(rows)
    inside = others @ axes.mT
    outside = (others - inside @ axes).norm(dim=1, keepdim=True)
    padded = torch.nn.functional.pad(rows @ axes.mT, (0, 1))
    return padded.numpy(), torch.cat([inside, outside], dim=1).numpy()


BASELINES: dict[str, Callable[[Tensor, Tensor, Tensor, FewShotOptions, tuple[int, ...] | None], Tensor]] = {
    "single-prototype": single_prototype,
    "softmax-l2": softmax_l2,
    "knn": nearest_neighbours,
}
"""As they are called in tables."""
