"""What a few-shot model says of its prototypes, its classes and its training images, and where an image lies in it.

Reference: "Using prototypes to improve convolutional networks interpretability" (2017): prototypes with no, one or
several classes, scattered classes, singletons, mean and covariance of a prototype's samples.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.principal_axes import Spread, spread_of
from protonmf_cli.maths.soft_prototypes import matches
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.soft_matching import SoftMatch

Kind = Literal["pure", "ambiguous", "unused"]
CLOSE = 0.5
"""A second class with at least this share of the first one's probability makes a prototype, or an image, ambiguous."""
DIRECTIONS = 3


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One principal direction of a prototype's samples, and the training images at its ends."""

    share: float
    """Of the variance."""
    low: int
    high: int
    """Numbers of training images."""


@dataclass(frozen=True, kw_only=True)
class PrototypeFacts:
    """One prototype: what it stands for and what it is made of."""

    prototype: int
    """Row in the model."""
    probabilities: tuple[float, ...]
    """(C,) of the classes for an image that matches it alone."""
    entropy: float
    """Of these, in nats."""
    kind: Kind
    """unused: no training image matches it more than any other prototype, or all its weights are zero; ambiguous: a
    second class has at least half the probability of the first; else pure."""
    members: tuple[int, ...]
    """Training images that match it most, the best match first."""
    matches: tuple[float, ...]
    """Of the members."""
    spread: Spread
    """Of its members' normalised features; of all, weighted by their match, where it has none."""
    directions: tuple[Direction, ...]

    @property
    def is_singleton(self) -> bool:
        """Whether it stands for a single training image."""
        return len(self.members) == 1

    def classes(self) -> list[int]:
        """Classes it speaks for: those with at least half the probability of the first, best first; none if unused."""
        if self.kind == "unused":
            return []
        order = sorted(range(len(self.probabilities)), key=lambda c: -self.probabilities[c])
        return [c for c in order if self.probabilities[c] >= CLOSE * self.probabilities[order[0]]]


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """A training image, and the two classes that meet there."""

    sample: int
    """Number of the training image."""
    label: int
    classes: tuple[int, int]
    """The two most probable ones."""
    probabilities: tuple[float, float]

    @property
    def margin(self) -> float:
        """Difference of the two."""
        return self.probabilities[0] - self.probabilities[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interpretation:
    """A few-shot model in words and numbers."""

    model: PrototypeModel
    prototypes: tuple[PrototypeFacts, ...]
    scattered: dict[int, tuple[int, ...]]
    """class -> its pure prototypes, where there are several."""
    meetings: tuple[Meeting, ...]
    """All training images, the smallest margin first."""

    @property
    def sources(self) -> tuple[ImageSource, ...]:
        """The training images."""
        return matching_of(self.model).samples.sources

    def of_kind(self, kind: Kind) -> list[int]:
        """Prototypes of one kind."""
        return [facts.prototype for facts in self.prototypes if facts.kind == kind]

    @property
    def singletons(self) -> list[int]:
        """Prototypes that stand for a single training image."""
        return [facts.prototype for facts in self.prototypes if facts.is_singleton]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training image near another one."""

    source: ImageSource
    label: int
    distance: float
    """Between normalised features."""


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where one image lies among prototypes and training images."""

    logits: Tensor
    """(C,)"""
    matches: Tensor
    """(P,)"""
    entropy: float
    """Of the class probabilities, in nats: 0 is certain, log C is no idea."""
    neighbours: tuple[Neighbour, ...]
    """The nearest training images."""
    typical: float
    """Share of the training images that are at least as far from their nearest neighbour as this image is from its
    own; 0: it is unlike any of them."""

    @property
    def is_ambiguous(self) -> bool:
        """Whether a second class is at least half as probable as the first."""
        first, second = self.logits.softmax(dim=0).topk(2).values.tolist()
        return bool(second >= CLOSE * first)


def matching_of(model: PrototypeModel) -> SoftMatch:
    """How a few-shot model matches images.

    Raises:
        InputError: it is a model of another method.
    """
    if not isinstance(model.evidence, SoftMatch):
        raise InputError(
            f"this is a model of the method {model.card.method}, not a few-shot model. Make one with "
            "`protonmf fewshot fit`."
        )
    return model.evidence


def interpretation_of(model: PrototypeModel) -> Interpretation | None:
    """As `interpret`; None for a model of another method."""
    return interpret(model) if isinstance(model.evidence, SoftMatch) else None


def interpret(model: PrototypeModel) -> Interpretation:
    """Look at every prototype, class and training image of a few-shot model.

    Raises:
        InputError: it is a model of another method.
    """
    matching = matching_of(model)
    rows = matching.known
    matched = matches(rows, model.prototypes.double(), matching.scale)
    head = model.dense_weights.double().mT
    facts = tuple(_prototype_facts(j, head[:, j], rows, matched) for j in range(len(model.prototypes)))
    scattered: dict[int, tuple[int, ...]] = {}
    for c in range(len(head)):
        own = tuple(f.prototype for f in facts if f.kind == "pure" and int(model.owner[f.prototype]) == c)
        if len(own) > 1:
            scattered[c] = own
    meetings = _meetings(matched @ head.mT, matching.samples.labels)
    return Interpretation(model=model, prototypes=facts, scattered=scattered, meetings=tuple(meetings))


def _prototype_facts(prototype: int, weights: Tensor, rows: Tensor, matched: Tensor) -> PrototypeFacts:
    probabilities = weights.softmax(dim=0)
    own = (matched.argmax(dim=1) == prototype).nonzero()[:, 0]
    own = own[matched[own, prototype].argsort(descending=True, stable=True)]
    best, second = probabilities.topk(2).values.tolist()
    unused = not len(own) or not bool(weights.any())
    spread = spread_of(rows[own]) if len(own) else spread_of(rows, matched[:, prototype].clamp_min(1e-300))
    return PrototypeFacts(
        prototype=prototype,
        probabilities=tuple(probabilities.tolist()),
        entropy=entropy_of(probabilities),
        kind="unused" if unused else "ambiguous" if second >= CLOSE * best else "pure",
        members=tuple(own.tolist()),
        matches=tuple(matched[own, prototype].tolist()),
        spread=spread,
        directions=_directions(spread, rows, own),
    )


def _directions(spread: Spread, rows: Tensor, members: Tensor) -> tuple[Direction, ...]:
    """The first principal directions with the members at their ends; none where there are fewer than two members."""
    if len(members) < 2 or not len(spread.variances):
        return ()
    places = spread.positions(rows[members])
    return tuple(
        Direction(
            share=float(spread.variances[k]) / spread.total,
            low=int(members[places[:, k].argmin()]),
            high=int(members[places[:, k].argmax()]),
        )
        for k in range(min(DIRECTIONS, len(spread.variances)))
    )


def _meetings(logits: Tensor, labels: Tensor) -> list[Meeting]:
    best = logits.softmax(dim=1).topk(2, dim=1)
    found = [
        Meeting(sample=n, label=label, classes=(classes[0], classes[1]), probabilities=(shares[0], shares[1]))
        for n, (label, classes, shares) in enumerate(
            zip(labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True)
        )
    ]
    return sorted(found, key=lambda meeting: meeting.margin)


def entropy_of(probabilities: Tensor) -> float:
    """In nats; 0 log 0 is 0.

    >>> entropy_of(torch.tensor([1.0, 0.0])), round(entropy_of(torch.tensor([0.5, 0.5])), 4)
    (0.0, 0.6931)
    """
    return float(torch.special.entr(probabilities).sum())


def position_of(model: PrototypeModel, rows: Tensor, *, count: int = 5) -> Position:
    """Where one image lies.

    Args:
        model: a few-shot model.
        rows: (T, D) of the image.
        count: neighbours.

    Raises:
        InputError: it is a model of another method.
    """
    matching = matching_of(model)
    samples = matching.samples
    feature = rows.double().mean(dim=0, keepdim=True)
    matched = matching.of_features(feature, model.prototypes.double())
    logits = (matched @ model.dense_weights.double())[0]
    away = torch.cdist(matching.normaliser(feature), matching.known)[0]
    return Position(
        logits=logits,
        matches=matched[0],
        entropy=entropy_of(logits.softmax(dim=0)),
        neighbours=tuple(
            Neighbour(source=samples.sources[n], label=int(samples.labels[n]), distance=float(away[n]))
            for n in away.argsort(stable=True).tolist()[:count]
        ),
        typical=float((matching.apart >= away.min()).double().mean()),
    )
