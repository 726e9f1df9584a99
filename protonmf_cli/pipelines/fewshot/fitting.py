"""The few-shot prototype model on features: what cross-validation chooses, and the fit with it.

A class begins with one prototype at its mean, or, where its samples lie in remote clusters, with one at the mean of
each part (Ward's method): held-out samples say whether they do. Of two parts of different classes that lie no further
apart than the noise of their means, one goes: a cluster that two classes share has one prototype for both.

L1 chooses which class weights stay; how large they are is then fitted again, see `refitting.py`.

Reference: "Using prototypes to improve convolutional networks interpretability" (2017).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.maths.normalisation import Normaliser, normaliser_of
from protonmf_cli.maths.soft_prototypes import (
    Penalty,
    SoftPrototypes,
    estimate,
    objective,
    refine,
)
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot.folds import fold_numbers
from protonmf_cli.pipelines.fewshot.refitting import refitted
from protonmf_cli.pipelines.fewshot.starts import (
    number_of_parts,
    part_means,
    scatter_of,
    span_of,
    split_in_parts,
    without_shared,
)
from protonmf_cli.pipelines.progress import SILENT, Progress

MANY = 100
"""Classes beyond which L1 gets weaker, as the share of each in the mean loss, which it pulls at, does."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One set of hyper-parameters, in the units of `FewShotOptions`."""

    scale: float
    alpha: float
    anchor: float
    refit: float | None = None
    """Weight of the L2 norm with which the class weights that L1 left are fitted again; None: they are not."""


@dataclass(frozen=True, kw_only=True)
class PrototypeFit:
    """A fitted model and how it was chosen."""

    model: SoftPrototypes
    owner: Tensor
    """(J,) class in whose samples a prototype started"""
    normaliser: Normaliser
    choice: Choice
    objective: float
    """Of what was minimised last: with the L2 norm where class weights were fitted again."""
    held_out: dict[Choice, tuple[float, float]]
    """Accuracy and loss over the folds of every set tried; empty where nothing could be held out."""
    counts: tuple[int, ...]
    """Parts of each class, before shared ones were joined."""
    folds: int
    """0 where nothing could be held out"""

    def logits(self, rows: Tensor) -> Tensor:
        """(N, L) class logits of features (N, D)."""
        return self.model.logits(self.normaliser(rows.double()))


def fit_prototypes(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    options: FewShotOptions,
    *,
    blocks: tuple[int, ...] | None = None,
    progress: Progress = SILENT,
) -> PrototypeFit:
    """Choose hyper-parameters and numbers of prototypes inside the given samples, then fit to all of them.

    Args:
        rows: (N, D) features, in any order: the result does not depend on it.
        labels: (N,) classes 0..L-1, each with at least one sample.
        classes: L >= 2.
        options: what may be chosen.
        blocks: widths of joined layers, each normalised by itself; one of width D if None.
        progress: told of every set of hyper-parameters that was tried.

    Raises:
        InputError: one class, a class without samples or with fewer samples than prototypes, features that are not
            finite or do not differ.
    """
    _check(rows, labels, classes, options)
    with threadpool_limits(limits=1):  # the problems are small: two threads made them twenty times slower
        return _fitted(rows, labels, classes, options, blocks, progress)


def _fitted(
    rows: Tensor,
    labels: Tensor,
    classes: int,
    options: FewShotOptions,
    blocks: tuple[int, ...] | None,
    progress: Progress,
) -> PrototypeFit:
    order = canonical_order(rows, labels)
    rows, labels = rows.double()[order], labels[order]
    search = _Search.of(rows, labels, classes, options, blocks, progress)
    counts = search.numbers() if options.prototypes is None else (options.prototypes,) * classes
    normaliser = normaliser_of(rows, options.normalisation, blocks)
    task = _Task.of(normaliser(rows), labels, classes)
    held_out: dict[Choice, tuple[float, float]] = {}
    choice = _middle(search.choices)
    if search.folds and len(search.choices) > 1:
        choice, held_out = search.choose(counts)
    if options.norm == "l1":
        choice = search.sparsest(counts, choice, held_out, task)
    if options.norm == "l1" and search.refits:
        choice, again = search.choose_refit(counts, choice)
        held_out |= again
    model, owner = task.fit(counts, choice, options)
    return PrototypeFit(
        model=task.whole(model),
        owner=owner,
        normaliser=normaliser,
        choice=choice,
        objective=objective(model, task.rows, task.labels, _last_penalty(choice, options)),
        held_out=held_out,
        counts=counts,
        folds=len(search.folds),
    )


def _middle(choices: Sequence[Choice]) -> Choice:
    """What is taken where nothing can be held out."""
    return choices[len(choices) // 2]


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
        axes = span_of(rows)
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

    def starts(self, counts: Sequence[int], *, shared: bool) -> tuple[Tensor, Tensor]:
        """(J, r) where prototypes start, and their classes (J,).

        Args:
            counts: parts of each class.
            shared: whether a class whose samples have several parts gives one up where another class has its mean too.
        """
        parts = [split_in_parts(self.rows[self.labels == c], counts[c]) for c in range(self.classes)]
        means = torch.cat([torch.stack([part.mean(dim=0) for part in own]) for own in parts])
        owner = torch.tensor([c for c, own in enumerate(parts) for _ in own])
        if not shared or len(owner) == self.classes:
            return means, owner
        sizes = torch.tensor([len(part) for own in parts for part in own], dtype=means.dtype)
        return without_shared(means, owner, sizes, scatter_of(parts))

    def fit(self, counts: Sequence[int], choice: Choice, options: FewShotOptions) -> tuple[SoftPrototypes, Tensor]:
        """The model with a number of parts for each class, and the classes of its prototypes."""
        start, owner = self.starts(counts, shared=options.prototypes is None)
        model = SoftPrototypes(
            prototypes=start,
            anchors=start,
            weights=start.new_zeros(self.classes, len(start)),
            scale=choice.scale,
        )
        penalty = _penalty(choice, options)
        joint = options.steps > 0 and options.norm == "l2"
        model, _ = estimate(model, self.rows, self.labels, penalty, rounds=1 if joint else options.rounds)
        if options.steps:
            model = refine(model, self.rows, self.labels, penalty, steps=options.steps)
        if choice.refit is not None:
            model = refitted(model, self.rows, self.labels, choice.refit)
        return model, owner

    def right(self, counts: Sequence[int], choice: Choice, options: FewShotOptions) -> int:
        """Samples to which the fit gives their own class."""
        model, _ = self.fit(counts, choice, options)
        return int((model.logits(self.rows).argmax(dim=1) == self.labels).sum())


def _penalty(choice: Choice, options: FewShotOptions) -> Penalty:
    return Penalty(norm=options.norm, alpha=choice.alpha, anchor=choice.anchor)


def _last_penalty(choice: Choice, options: FewShotOptions) -> Penalty:
    """What the class weights were fitted with in the end."""
    if choice.refit is None:
        return _penalty(choice, options)
    return Penalty(norm="l2", alpha=choice.refit, anchor=choice.anchor)


# -- cross-validation ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Fold:
    task: _Task
    rows: Tensor
    """Held out, in the task's coordinates."""
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class _Search:
    """The folds of a cross-validation, and what may be chosen by it."""

    folds: Sequence[_Fold]
    choices: Sequence[Choice]
    refits: Sequence[float]
    """L2 norms with which weights that L1 left may be fitted again."""
    sizes: Sequence[int]
    """Samples of each class."""
    dense: bool
    """Whether samples outnumber the dimensions that they span."""
    options: FewShotOptions
    progress: Progress

    @classmethod
    def of(
        cls,
        rows: Tensor,
        labels: Tensor,
        classes: int,
        options: FewShotOptions,
        blocks: tuple[int, ...] | None,
        progress: Progress,
    ) -> "_Search":
        """Samples of every class in turn are held out; a class of one sample never is."""
        numbers = fold_numbers(labels, options.folds, options.seed)
        folds = []
        for k in range(int(numbers.max()) + 1):
            apart = numbers == k
            normaliser = normaliser_of(rows[~apart], options.normalisation, blocks)
            task = _Task.of(normaliser(rows[~apart]), labels[~apart], classes)
            folds.append(_Fold(task=task, rows=task.seen(normaliser(rows[apart])), labels=labels[apart]))
        dense = len(span_of(normaliser_of(rows, options.normalisation, blocks)(rows))) < len(rows) - 1
        share = min(1.0, MANY / classes)
        alphas = [share * alpha for alpha in options.sparse_alphas] if options.norm == "l1" else options.alphas
        sets = product(options.scales, alphas, options.dense_anchors if dense else options.anchors)
        return cls(
            folds=folds,
            choices=[Choice(scale=s, alpha=a, anchor=m) for s, a, m in sets],
            refits=[share * alpha for alpha in options.refits],
            sizes=labels.bincount(minlength=classes).tolist(),
            dense=dense,
            options=options,
            progress=progress,
        )

    def held_out(self, counts: Sequence[int], choice: Choice) -> tuple[float, Tensor]:
        """Accuracy, and the loss of every held-out sample, fold after fold."""
        found = self._measured([fold.task.fit(counts, choice, self.options)[0] for fold in self.folds])
        self.progress.advance()
        return found

    def _measured(self, models: Sequence[SoftPrototypes]) -> tuple[float, Tensor]:
        """The same of the folds' models."""
        right, losses = 0, []
        for fold, model in zip(self.folds, models, strict=True):
            logits = model.logits(fold.rows)
            right += int((logits.argmax(dim=1) == fold.labels).sum())
            losses.append(functional.cross_entropy(logits, fold.labels, reduction="none"))
        found = torch.cat(losses)
        return right / len(found), found

    def choose(self, counts: Sequence[int]) -> tuple[Choice, dict[Choice, tuple[float, float]]]:
        """The choice with the least held-out loss, and accuracy and loss of each.

        Where samples outnumber dimensions, the one with the strongest anchor of those whose loss is above the least by
        no more than its standard error or `negligible`.
        """
        self.progress.stage("choosing scale and weights", len(self.choices))
        found, losses = {}, {}
        for choice in self.choices:
            accuracy, losses[choice] = self.held_out(counts, choice)
            found[choice] = (accuracy, float(losses[choice].mean()))
        chosen = min(self.choices, key=lambda one: found[one][1])
        if self.dense:
            near = [c for c in self.choices if self._costs_nothing(losses[c] - losses[chosen])]
            chosen = max(near, key=lambda one: (one.anchor, -found[one][1]))
        return chosen, found

    def sparsest(
        self, counts: Sequence[int], chosen: Choice, found: dict[Choice, tuple[float, float]], task: _Task
    ) -> Choice:
        """The strongest L1 norm that adds no mistake (the paper's rule), neither held out nor among all samples.

        A norm that is just weak enough for the folds can leave nothing at all of the fit to all samples.

        Args:
            counts: parts of each class.
            chosen: by its held-out loss; the weakest norm stands for it where nothing was held out.
            found: accuracy and loss of every choice, of `choose`; empty where nothing was held out.
            task: all samples.
        """
        alike = [c for c in self.choices if (c.scale, c.anchor) == (chosen.scale, chosen.anchor)]
        if found:
            alike = [c for c in alike if found[c][0] >= found[chosen][0]]
        else:
            chosen = min(alike, key=lambda one: one.alpha)
        stronger = sorted((c for c in alike if c.alpha > chosen.alpha), key=lambda one: -one.alpha)
        least = task.right(counts, chosen, self.options) if stronger else 0
        return next((c for c in stronger if task.right(counts, c, self.options) >= least), chosen)

    def choose_refit(self, counts: Sequence[int], choice: Choice) -> tuple[Choice, dict[Choice, tuple[float, float]]]:
        """The choice with how its class weights are fitted again, and accuracy and loss of each way tried.

        Of those that add no held-out mistake (of all, where each adds one) the strongest norm whose loss is above the
        least by no more than `negligible`. The middle one where nothing can be held out.
        """
        tried = {alpha: replace(choice, refit=alpha) for alpha in self.refits}
        if not self.folds:
            return _middle(list(tried.values())), {}
        models = [fold.task.fit(counts, choice, self.options)[0] for fold in self.folds]
        before, _ = self._measured(models)
        found = {}
        for alpha, one in tried.items():
            pairs = zip(self.folds, models, strict=True)
            accuracy, losses = self._measured([refitted(m, f.task.rows, f.task.labels, alpha) for f, m in pairs])
            found[one] = (accuracy, float(losses.mean()))
        harmless = [alpha for alpha, one in tried.items() if found[one][0] >= before] or list(tried)
        least = min(found[tried[alpha]][1] for alpha in harmless)
        near = [alpha for alpha in harmless if found[tried[alpha]][1] <= least + self.options.negligible]
        return tried[max(near)], found

    def _costs_nothing(self, over: Tensor) -> bool:
        """Whether the mean of differences of losses (N,) is within its standard error or `negligible`."""
        error = float(over.std()) / math.sqrt(len(over)) if len(over) > 1 else 0.0
        return float(over.mean()) <= max(error, self.options.negligible)

    def numbers(self) -> tuple[int, ...]:
        """How many prototypes each class begins with, see `number_of_parts`."""
        return tuple(self._number(c, size) for c, size in enumerate(self.sizes))

    def _number(self, c: int, size: int) -> int:
        seen = [(fold.task.rows[fold.task.labels == c], fold.rows[fold.labels == c]) for fold in self.folds]
        held = [pair for pair in seen if len(pair[1])]
        most = min([self.options.most, *(len(train) - 1 for train, _ in held)]) if held else 1
        if size < 4 or most < 2:
            return 1
        distances = [
            torch.cat([torch.cdist(apart, part_means(train, n)).amin(dim=1).square() for train, apart in held])
            for n in range(1, most + 1)
        ]
        means = [float(one.mean()) for one in distances]
        return number_of_parts(means, held[0][0].shape[1], self.options.remote)


# -- samples ---------------------------------------------------------------------------------------------------


def canonical_order(rows: Tensor, labels: Tensor) -> Tensor:
    """By class, then by the features' values: what follows sees the samples in one order whatever was given."""
    keys = np.concatenate([rows.double().numpy().T[::-1], labels.numpy()[None]])
    return torch.from_numpy(np.lexsort(keys))


def _check(rows: Tensor, labels: Tensor, classes: int, options: FewShotOptions) -> None:
    if classes < 2:
        raise InputError("a few-shot model needs at least two classes.")
    empty = classes - len(labels.unique())
    if empty:
        raise InputError(f"{empty} of {classes} classes have no images.")
    fewest = int(labels.bincount(minlength=classes).min())
    if options.prototypes is not None and options.prototypes > fewest:
        raise InputError(
            f"{options.prototypes} prototypes per class need as many images, but a class has {fewest}. Give fewer "
            "prototypes, or none to let the data decide."
        )
    if not bool(rows.isfinite().all()):
        raise InputError("features of some images are not finite; another --dtype or network may help.")
    if bool((rows == rows[0]).all()):
        raise InputError("all images have the same features: nothing can be told apart.")
