"""The few-shot prototype model on features: what cross-validation chooses, and the fit with it.

Classes begin with one prototype, at their mean. A class gets another one (Ward's method then splits its samples, and
the prototypes start at the means of the parts) where that lowers the held-out loss by more than the price. In the end a
prototype goes if the objective without it, weights fitted anew, rises by no more than the price: a cluster that two
classes share ends with one prototype for both.

Reference: "Using prototypes to improve convolutional networks interpretability" (2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.maths.soft_prototypes import (
    Penalty,
    SoftPrototypes,
    estimate,
    fit_weights,
    matches,
    objective,
    refine,
)
from protonmf_cli.options import FewShotOptions


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One set of hyper-parameters, in the units of `FewShotOptions`."""

    scale: float
    alpha: float
    anchor: float


@dataclass(frozen=True, kw_only=True)
class Normaliser:
    """What is done to features (N, D) before they are matched."""

    kind: str
    mean: Tensor | None
    """(D,) taken off before the length is made one"""

    def __call__(self, rows: Tensor) -> Tensor:
        if self.kind == "none":
            return rows
        return functional.normalize(rows if self.mean is None else rows - self.mean, dim=1)


@dataclass(frozen=True, kw_only=True)
class FewShotFit:
    """A fitted model and how it was chosen."""

    model: SoftPrototypes
    owner: Tensor
    """(J,) class in whose samples a prototype started"""
    normaliser: Normaliser
    choice: Choice
    objective: float
    held_out: dict[Choice, tuple[float, float]]
    """Accuracy and loss over the folds of every set tried; empty where nothing could be held out."""
    counts: tuple[int, ...]
    """Prototypes of each class before any was removed."""
    folds: int
    """0 where nothing could be held out"""

    def logits(self, rows: Tensor) -> Tensor:
        """(N, L) class logits of features (N, D)."""
        return self.model.logits(self.normaliser(rows.double()))


def normaliser_of(rows: Tensor, kind: str) -> Normaliser:
    """The normalisation that training features (N, D) decide."""
    return Normaliser(kind=kind, mean=rows.mean(dim=0) if kind == "centred" else None)


def fit_fewshot(rows: Tensor, labels: Tensor, classes: int, options: FewShotOptions) -> FewShotFit:
    """Choose hyper-parameters and numbers of prototypes inside the given samples, then fit to all of them.

    Args:
        rows: (N, D) features, in any order: the result does not depend on it.
        labels: (N,) classes 0..L-1, each with at least one sample.
        classes: L >= 2.
        options: what may be chosen.

    Raises:
        InputError: one class, a class without samples, features that are not finite or do not differ.
    """
    _check(rows, labels, classes)
    order = _canonical_order(rows, labels)
    rows, labels = rows.double()[order], labels[order]
    counts = (1,) * classes
    choices = [
        Choice(scale=s, alpha=a, anchor=m) for s, a, m in product(options.scales, options.alphas, options.anchors)
    ]
    parts = _folds(rows, labels, options)
    held_out: dict[Choice, tuple[float, float]] = {}
    choice = choices[len(choices) // 2]
    if parts and len(choices) > 1:
        choice, held_out = _choose(parts, classes, counts, choices, options)
    if parts and options.grow:
        grown = _grow(parts, labels, classes, choice, options)
        if grown != counts and len(choices) > 1:
            choice, held_out = _choose(parts, classes, grown, choices, options)
        counts = grown
    normaliser = normaliser_of(rows, options.normalisation)
    task = _Task.of(normaliser(rows), labels, classes)
    model, owner = task.fit(counts, choice, options)
    model, kept = task.without_idle(model, choice, options)
    return FewShotFit(
        model=task.whole(model),
        owner=owner[kept],
        normaliser=normaliser,
        choice=choice,
        objective=objective(model, task.rows, task.labels, _penalty(choice, options)),
        held_out=held_out,
        counts=counts,
        folds=len(parts),
    )


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Samples in coordinates of their span, divided by the root of their mean squared distance from their mean."""

    rows: Tensor
    """(N, r)"""
    labels: Tensor
    classes: int
    axes: Tensor
    """(r, D) orthonormal"""
    unit: float
    """Root mean squared distance from the mean."""

    @classmethod
    def of(cls, rows: Tensor, labels: Tensor, classes: int) -> "_Task":
        _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
        axes = axes[sizes > 1e-10 * sizes[0]]
        unit = math.sqrt(float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())) or 1.0
        return cls(rows=rows @ axes.mT / unit, labels=labels, classes=classes, axes=axes, unit=unit)

    def seen(self, rows: Tensor) -> Tensor:
        """Other samples (N, D) in these coordinates."""
        return rows @ self.axes.mT / self.unit

    def whole(self, model: SoftPrototypes) -> SoftPrototypes:
        """The same model for samples as they were."""
        return replace(
            model,
            prototypes=self.unit * model.prototypes @ self.axes,
            anchors=self.unit * model.anchors @ self.axes,
            scale=model.scale / self.unit**2,
        )

    def fit(self, counts: Sequence[int], choice: Choice, options: FewShotOptions) -> tuple[SoftPrototypes, Tensor]:
        """The model with a number of prototypes for each class, and their classes."""
        starts, owner = [], []
        for c in range(self.classes):
            found = part_means(self.rows[self.labels == c], counts[c])
            starts.append(found)
            owner += [c] * len(found)
        start = torch.cat(starts)
        model = SoftPrototypes(
            prototypes=start,
            anchors=start,
            weights=start.new_zeros(self.classes, len(start)),
            scale=choice.scale,
        )
        penalty = _penalty(choice, options)
        model, _ = estimate(model, self.rows, self.labels, penalty, rounds=options.rounds)
        if options.steps:
            model = refine(model, self.rows, self.labels, penalty, steps=options.steps)
        return model, torch.tensor(owner)

    def without_idle(
        self, model: SoftPrototypes, choice: Choice, options: FewShotOptions
    ) -> tuple[SoftPrototypes, Tensor]:
        """Remove prototypes one by one as long as the objective rises by no more than the price."""
        penalty = _penalty(choice, options)
        kept = torch.arange(len(model.prototypes))
        value = objective(model, self.rows, self.labels, penalty)
        while len(kept) > self.classes:
            tried = []
            for j in range(len(kept)):
                rest = torch.cat([torch.arange(j), torch.arange(j + 1, len(kept))])
                less = replace(model, prototypes=model.prototypes[rest], anchors=model.anchors[rest])
                matched = matches(self.rows, less.prototypes, less.scale)
                weights, _ = fit_weights(matched, self.labels, self.classes, penalty)
                less = replace(less, weights=weights)
                tried.append((objective(less, self.rows, self.labels, penalty), j, less, rest))
            least, _, less, rest = min(tried, key=lambda one: one[:2])
            if least > value + options.price:
                break
            model, kept, value = less, kept[rest], min(value, least)
        return model, kept


def _penalty(choice: Choice, options: FewShotOptions) -> Penalty:
    return Penalty(norm=options.norm, alpha=choice.alpha, anchor=choice.anchor)


def part_means(rows: Tensor, count: int) -> Tensor:
    """(k, D) means of the parts of samples (n, D) by Ward's method, k = min(count, n); one part is the mean."""
    count = min(count, len(rows))
    if count == 1:
        return rows.mean(dim=0, keepdim=True)
    parts = torch.from_numpy(AgglomerativeClustering(count).fit(rows.numpy()).labels_)
    means = torch.stack([rows[parts == k].mean(dim=0) for k in range(count)])
    return means[np.lexsort(means.numpy().T[::-1])]


# -- cross-validation ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fold:
    task: _Task
    rows: Tensor
    """Held out, in the task's coordinates."""
    labels: Tensor


def _folds(rows: Tensor, labels: Tensor, options: FewShotOptions) -> list[_Fold]:
    """Samples of every class in turn; a class of one sample is never held out."""
    numbers = fold_numbers(labels, options.folds, options.seed)
    classes = int(labels.max()) + 1
    found = []
    for k in range(int(numbers.max()) + 1):
        apart = numbers == k
        normaliser = normaliser_of(rows[~apart], options.normalisation)
        task = _Task.of(normaliser(rows[~apart]), labels[~apart], classes)
        found.append(_Fold(task=task, rows=task.seen(normaliser(rows[apart])), labels=labels[apart]))
    return found


def fold_numbers(labels: Tensor, folds: int, seed: int) -> Tensor:
    """(N,) the fold in which a sample is held out, by class; -1: never, because its class has no other sample.

    >>> fold_numbers(torch.tensor([0, 0, 0, 1, 1, 2]), 5, 0).tolist()[-1]
    -1
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.full((len(labels),), -1)
    for c in labels.unique():
        own = (labels == c).nonzero()[:, 0]
        if len(own) > 1:
            numbers[own[torch.randperm(len(own), generator=generator)]] = torch.arange(len(own)) % folds
    return numbers


def _held_out(
    parts: Sequence[_Fold], classes: int, counts: Sequence[int], choice: Choice, options: FewShotOptions
) -> tuple[float, Tensor]:
    """Accuracy, and the sum of the losses of each class's held-out samples (L,)."""
    right, count, losses = 0, 0, torch.zeros(classes, dtype=torch.float64)
    for part in parts:
        model, _ = part.task.fit(counts, choice, options)
        logits = model.logits(part.rows)
        right += int((logits.argmax(dim=1) == part.labels).sum())
        count += len(part.labels)
        losses.index_add_(0, part.labels, functional.cross_entropy(logits, part.labels, reduction="none"))
    return right / count, losses


def _choose(
    parts: Sequence[_Fold], classes: int, counts: Sequence[int], choices: Sequence[Choice], options: FewShotOptions
) -> tuple[Choice, dict[Choice, tuple[float, float]]]:
    """The choice with the highest held-out accuracy; of equals the one with the least loss."""
    size = sum(len(part.labels) for part in parts)
    found = {}
    for choice in choices:
        accuracy, losses = _held_out(parts, classes, counts, choice, options)
        found[choice] = (accuracy, float(losses.sum()) / size)
    return max(choices, key=lambda one: (found[one][0], -found[one][1])), found


def _grow(
    parts: Sequence[_Fold], labels: Tensor, classes: int, choice: Choice, options: FewShotOptions
) -> tuple[int, ...]:
    """Give classes further prototypes, the worst explained first, as long as the held-out loss falls by the price."""
    counts = [1] * classes
    sizes = labels.bincount(minlength=classes).tolist()
    size = sum(len(part.labels) for part in parts)
    _, losses = _held_out(parts, classes, counts, choice, options)
    closed = {c for c in range(classes) if sizes[c] < 3}
    while len(closed) < classes:
        c = max(set(range(classes)) - closed, key=lambda k: float(losses[k]))
        if float(losses[c]) / size <= options.price:
            break
        tried = [n + (k == c) for k, n in enumerate(counts)]
        _, after = _held_out(parts, classes, tried, choice, options)
        if float(losses.sum() - after.sum()) / size > options.price:
            counts, losses = tried, after
            if counts[c] + 1 >= sizes[c]:
                closed.add(c)
        else:
            closed.add(c)
    return tuple(counts)


# -- samples ---------------------------------------------------------------------------------------------------


def _canonical_order(rows: Tensor, labels: Tensor) -> Tensor:
    """By class, then by the features' values: what follows sees the samples in one order whatever was given."""
    keys = np.concatenate([rows.double().numpy().T[::-1], labels.numpy()[None]])
    return torch.from_numpy(np.lexsort(keys))


def _check(rows: Tensor, labels: Tensor, classes: int) -> None:
    if classes < 2:
        raise InputError("a few-shot model needs at least two classes.")
    empty = classes - len(labels.unique())
    if empty:
        raise InputError(f"{empty} of {classes} classes have no images.")
    if not bool(rows.isfinite().all()):
        raise InputError("features of some images are not finite; another --dtype or network may help.")
    if bool((rows == rows[0]).all()):
        raise InputError("all images have the same features: nothing can be told apart.")
