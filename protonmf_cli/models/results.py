"""What the verbs return: plain numbers, ready for JSON and for pictures."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.wording import owned_name, part_name, shortened, shortened_path


class ShortRepr:
    """Says the shape of arrays and the length of the rest that is long, in one line."""

    def __repr__(self) -> str:
        said = (f"{each.name}={_brief(getattr(self, each.name))}" for each in fields(self) if each.repr)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(said)})"


def _signed(value: float) -> str:
    """With its sign and two digits, never "-0.00"."""
    return f"{round(value, 2) + 0.0:+.2f}"


MOST_SAID = 40
"""Characters of one value."""


def _brief(value: object) -> str:
    """A value in few characters.

    >>> _brief(np.zeros((2, 3))), _brief(b"1234"), _brief((1, 2)), _brief(0.123456)
    ('float64 array (2, 3)', '4 bytes', '(1, 2)', '0.1235')
    """
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array {value.shape}"
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict) and any(isinstance(each, np.ndarray) for each in value.values()):
        return "{" + ", ".join(f"{key!r}: {_brief(each)}" for key, each in value.items()) + "}"
    if isinstance(value, tuple | list) and any(isinstance(each, ShortRepr) or hasattr(each, "shape") for each in value):
        return f"{len(value)} of {type(value[0]).__name__}"
    said = repr(value)
    return said if len(said) <= MOST_SAID else f"{said[: MOST_SAID - 1]}…"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One of the best classes of an image."""

    class_index: int
    label: str
    name: str
    """The label in words."""
    logit: float
    probability: float


NONE_SAID = "no label above 50 %; best"
"""Of labels of which none is said, before the one that comes nearest."""


def said_of(predictions: tuple[Prediction, ...], *, multi_label: bool) -> tuple[Prediction, ...]:
    """The answer: of predictions, the best first, the first one, or all labels above 50 %."""
    return tuple(p for p in predictions if p.logit > 0) if multi_label else predictions[:1]


@dataclass(frozen=True, kw_only=True, repr=False)
class ExampleView(ShortRepr):
    """One training patch of a prototype, as stored in the model file."""

    jpeg: bytes
    map: np.ndarray | None
    """(h, w) presence; None when rows have no place."""
    box: tuple[int, int, int, int]
    score: float
    path: str
    sha256: str
    full: float | None = None
    """Value of the map that is drawn at full strength; its own maximum if None."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Contribution(ShortRepr):
    """One prototype's part in one class's logit: weight x evidence = contribution.

    Evidence is an amount where the model reads amounts: 1 is the usual amount of the prototype's own class.
    """

    prototype: int
    """Number within its owner, from 1."""
    prototype_id: int
    """Row in the model."""
    owner_index: int
    owner_label: str
    owner_name: str
    stability: float | None
    """Cosine between two halves of the training images; None where it was not measured."""
    weight: float
    evidence: float
    contribution: float
    localised: float
    """The part of the contribution that the map shows: all of it where evidence is an amount."""
    unlocalised: float
    """The part from rows without a place."""
    maps: dict[str, np.ndarray]
    """"contribution" (adds up to `localised`) and "presence", both (h, w); empty when rows have no place. Presence is
    the amount at each place, which adds up to the evidence, or a non-negative code where evidence is a projection."""
    peak_box: Callable[[], tuple[int, int, int, int]] | None = field(repr=False, compare=False)
    """Finds `box`; None when rows have no place."""
    examples: tuple[ExampleView, ...]
    network: str = ""
    """Name of the network that the prototype belongs to, in a combined model."""
    crop: np.ndarray | None = None
    """What that network saw, in a combined model; else the explanation's own crop."""
    caption: str = ""
    """What the prototype was named, with the score of the name; empty where it was not."""
    usual: tuple[float, float] | None = None
    """Amounts that are usual in the training images of the prototype's own class; None where evidence is no amount, or
    holds a share of the residual too."""
    peak: float | None = None
    """The usual largest amount at one place: what is drawn at full strength; None: each map's own maximum."""

    @cached_property
    def box(self) -> tuple[int, int, int, int] | None:
        """Around the peak of the chosen map, in pixels of the crop; found when it is first asked for."""
        return None if self.peak_box is None else self.peak_box()

    @property
    def scale(self) -> dict[str, float | None]:
        """Value drawn at full strength, for each kind of map."""
        return {"presence": self.peak, "contribution": self.peak and self.peak * abs(self.weight)}

    @property
    def is_less_than_none(self) -> bool:
        """Whether the evidence is negative: the image holds the opposite of the part, and looks like none of it."""
        return self.evidence < 0


@dataclass(frozen=True, kw_only=True)
class UnusualAmount:
    """An amount that is far from what is usual in a class."""

    prototype: int
    """Number within its owner, from 1."""
    prototype_id: int
    owner_index: int
    owner_name: str
    amount: float
    usual: float
    """Mean of the class's training images, in an image as large as this one."""
    deviations: float
    """How many standard deviations, of images of one class, the amount is off; below zero: less than usual."""

    def said(self, class_index: int) -> str:
        """In words, for the class that it is unusual in."""
        name = part_name(self.prototype, "" if self.owner_index == class_index else self.owner_name)
        return f"{name} is {self.amount:.2f}, usually {self.usual + 0.0:.2f}"


SAID = 3
"""Contributions that the line about an explanation names."""
UNUSUAL_REST = 1.25
"""From which what the parts leave is named."""


@dataclass(frozen=True, kw_only=True)
class Unlike:
    """How unlike the training images of the predicted class an image is, see `pipelines.explaining.unlikeness`."""

    class_index: int
    """The predicted class, whichever one is explained."""
    name: str
    score: float | None
    """0 is as usual as the middle training image, and one in twenty of those is above 1; None where the predicted class
    has no training images, so that nobody knows."""
    share: float | None
    """Of the class's training images that are more usual; None where there are none, or one alone."""
    images: int | None
    """Training images of the class, where the file says so."""
    rest: float | None
    """How far what the parts leave of the image is from what they usually leave; 1 on average over training images."""
    amounts: tuple[UnusualAmount, ...]
    """Amounts that stand out, the most unusual first."""

    @property
    def said(self) -> str:
        """In words, with what stands out where the image is unusual."""
        if self.score is None:
            return f"not known, as this model has no training images of {self.name}"
        score = f"{round(self.score, 1) + 0.0:.1f}"
        if self.share is None:
            than = f"{score}, for {self.name}, of which this model has one training image"
        elif self.share == 0:
            than = f"{score}, as usual for {self.name} as its most usual training images"
        else:
            count = f"all {self.images or ''}".strip() if self.share == 1 else f"{min(int(100 * self.share), 99)} %"
            than = f"{score}, less usual for {self.name} than {count} of its training images"
        reasons = [each.said(self.class_index) for each in self.amounts]
        if self.rest is not None and self.rest > UNUSUAL_REST:
            reasons.append(f"what the parts leave is {self.rest:.1f} times as far off as usual")
        return f"{than} ({'; '.join(reasons)})" if self.score > 1 and reasons else than


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation(ShortRepr):
    """The whole ledger of one class's logit for one image."""

    image: str
    model: str
    crop: np.ndarray
    """(height, width, channels) uint8, what the network saw."""
    predictions: tuple[Prediction, ...]
    class_index: int
    label: str
    name: str
    logit: float
    probability: float
    """Of the class that is explained."""
    among: str | None
    """"prototypes" or "all": of which classes it is the best; None where it was named."""
    bias: float
    contributions: tuple[Contribution, ...]
    """The largest by size first."""
    residual: float
    residual_map: np.ndarray | None
    """(h, w) r_n . R. Of amounts it adds up to `residual`; of projections with the rows without a place, less the
    intercept."""
    unplaced: float | None
    """What the rows without a place add to the logit, beyond their mean over the training images; None where the
    prototypes read all rows."""
    intercept: float
    """delta of files of format 1: the mean of the residual over the training images, counted with the bias."""
    residual_codes: np.ndarray | None
    """(h, w) eq. 6: where the residual shows."""
    residual_share: float | None
    """1 - logit share; None when fewer than two classes have prototypes."""
    ledger_error: float
    """|sum of contributions + residual + no place + bias - the network's own logit|"""
    map_kind: str
    form: str
    """"plain", or "augmented": the prototypes carry the residual."""
    kind: EvidenceKind
    """What evidence is. An amount of an augmented prototype also holds its share of the residual."""
    without_prototypes: bool
    """The class has no prototypes of its own: its rows, if any, come from other classes' parts."""
    best_with_prototypes: Prediction | None
    """The best class that has prototypes, when the explained one has none."""
    own_against: tuple[int, ...]
    """Numbers of the class's own prototypes with a negative weight for it, rising."""
    own: int
    """Prototypes of the class."""
    unlike: Unlike | None = None
    """How usual the image is for the predicted class; None where the model does not say."""
    multi_label: bool = False
    """Whether an image may be of several classes: probabilities are of each label by itself, and those above 50 % are
    said."""
    named_by: str = ""
    """Where the captions of the prototypes are from; empty where none of these has one."""

    @property
    def names_note(self) -> str:
        """Where the captions are from, as a line of its own; empty where there are none."""
        return f"names in quotation marks: {self.named_by}" if self.named_by else ""

    def __repr__(self) -> str:
        """The image, its class and what the logit is made of, in two lines."""
        largest = [
            f"{_signed(c.contribution)} {owned_name(shortened(c.owner_name, 20), c.prototype)}"
            for c in self.contributions[:SAID]
        ]
        left = self.contributions[SAID:]
        others = [(f"{len(left)} more", sum(c.contribution for c in left))] if left else []
        others += [("no place", self.unplaced)] if self.unplaced is not None else []
        others += [("residual", self.residual)] if self.has_residual else []
        others += [("bias", self.bias)] if self.kind.adds_up else []
        parts = "  ".join([*largest, *(f"{_signed(value)} {name}" for name, value in others)])
        best = self.predictions[0]
        instead = "" if best.class_index == self.class_index else f", not {best.name}, {best.probability:.1%}"
        if self.multi_label:
            beside = ", ".join(f"{p.name}, {p.probability:.1%}" for p in self.beside)
            instead = beside and f"; also {beside}"
        return (
            f"<{type(self).__name__} of {shortened_path(self.image, 60)}: {self.name}, {self.probability:.1%}"
            f"{instead}\n logit {self.logit:.2f} = {parts}>"
        )

    @property
    def said(self) -> tuple[Prediction, ...]:
        """The answer: the best class, or all labels above 50 %."""
        return said_of(self.predictions, multi_label=self.multi_label)

    @property
    def is_said(self) -> bool:
        """Whether the class that is explained is one of them."""
        return self.logit > 0 if self.multi_label else self.predictions[0].class_index == self.class_index

    @property
    def first_is(self) -> str:
        """What the first of the predictions is, in words."""
        return "predicted" if self.said else NONE_SAID

    @property
    def beside(self) -> tuple[Prediction, ...]:
        """The other labels that are said."""
        return tuple(p for p in self.said if p.class_index != self.class_index) if self.multi_label else ()

    @property
    def reads_amounts(self) -> bool:
        """Whether evidence is an amount."""
        return self.kind is EvidenceKind.AMOUNTS

    def lacks(self, contribution: Contribution) -> bool:
        """Whether an amount is below zero, so that its map, which adds up to it, is drawn with both signs."""
        return self.reads_amounts and contribution.is_less_than_none

    @property
    def has_residual(self) -> bool:
        """Whether something is left outside the prototypes; augmented ones usually carry all of it."""
        return self.kind.adds_up and (self.form == "plain" or self.residual != 0)


@dataclass(frozen=True, kw_only=True)
class ContrastRow:
    """One prototype in the logits of two classes: one amount, two weights."""

    prototype: int
    """Number within its owner, from 1."""
    prototype_id: int
    owner_index: int
    owner_name: str
    amount: float
    weights: tuple[float, float]

    @property
    def difference(self) -> float:
        """What it adds to the first logit beyond what it adds to the second."""
        return self.amount * (self.weights[0] - self.weights[1])


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two logits of one image on the same amounts; rows, residual, no place and bias add up to either."""

    first: int
    second: int
    names: tuple[str, str]
    rows: tuple[ContrastRow, ...]
    """The largest difference by size first."""
    residual: tuple[float, float]
    unplaced: tuple[float, float]
    bias: tuple[float, float]

    @property
    def difference(self) -> float:
        """First logit less the second."""
        other = sum(pair[0] - pair[1] for pair in (self.residual, self.unplaced, self.bias))
        return sum(row.difference for row in self.rows) + other


@dataclass(frozen=True, kw_only=True)
class Edit:
    """Scale the contribution of one prototype to one class, or to every class of the head."""

    class_index: int
    """-1: every class, whether or not its explanations name the prototype."""
    prototype_id: int
    factor: float
    """0 removes it, 1 leaves it."""

    @property
    def everywhere(self) -> bool:
        """Whether every class is edited."""
        return self.class_index < 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Logits of one image under one model, for the class an intervention looks at."""

    class_index: int
    label: str
    name: str
    logit: float
    predictions: tuple[Prediction, ...]
    multi_label: bool = False

    @property
    def said(self) -> tuple[Prediction, ...]:
        """See `Explanation.said`."""
        return said_of(self.predictions, multi_label=self.multi_label)


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An image whose top class changed under an intervention, or one of whose labels is said or not any more."""

    path: str
    target: int
    before: int
    """Class; -1: not its label."""
    after: int


@dataclass(frozen=True, kw_only=True)
class InterventionOnData:
    """An intervention measured on labelled images."""

    images: int
    accuracy_before: float
    accuracy_after: float
    flips: tuple[Flip, ...]
    per_class: dict[int, tuple[int, int, int]]
    """class -> (images, right before, right after), classes with a change and those that were edited."""
    accuracy_unrefitted: float | None = None
    """With the edit alone; None where no last layer was refitted after it."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """How many of the images that a cross-validation holds out once go to a class: their own, unless said otherwise."""

    images: int
    before: int
    edited: int
    """With the edit alone."""
    refitted: int | None
    """With the step, of heads that had not seen the image; None where none could be tried."""


@dataclass(frozen=True, kw_only=True)
class RefitCandidate:
    """A step of the last layer that was tried."""

    ridge: float | None
    """None: no step."""
    loss: float
    """Mean cross-entropy of the images held out, with and without patches, in nats."""
    right: int
    """Of those images, without patches."""


@dataclass(frozen=True, kw_only=True)
class Refit:
    """A step of the last layer after prototypes were taken out of every class: what was tried, and what was taken."""

    images: int
    classes: int
    """That have images; their rows of the head move."""
    removed: tuple[int, ...]
    """Prototypes that no class gives anything for, before and after."""
    ridge: float | None
    """Of the step that was taken; None: the model is that of the edit alone."""
    reason: str
    """Why no step was taken, else empty."""
    candidates: tuple[RefitCandidate, ...]
    whole: HeldOut
    """Of the step taken, or else of the best one tried."""
    per_class: dict[int, HeldOut]
    """The same of the classes whose prototypes were taken out."""
    taken_along: dict[int, HeldOut]
    """Prototype -> how many images of other classes go to its class once one of its training patches is pasted in."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """One pass of a prototype model and its black box over labelled images."""

    images: int
    classes: int
    accuracy: dict[str, float]
    """black_box, prototype_model, prototypes_only, residual_only"""
    agreement: dict[str, float]
    """with the black box: prototype_model, prototypes_only, residual_only"""
    logit_share: float | None
    restricted: dict[str, dict[str, float]]
    """accuracy and agreement among the classes present"""
    max_abs_logit_difference: float | None
    """From the black box; None where there is none."""
    relative_difference: float | None
    per_class: dict[int, dict[str, float]]
    """class -> images, and for which share of them it is said: black_box, prototype_model, prototypes_only; of labels
    also agreement: for which share of all images the model and the black box say the same about it"""
    intervals: dict[str, Any] = field(default_factory=dict)
    """The keys of the means over images, with [low, high]"""
    unlike: "UnlikeFigures | None" = None
    """How usual the images are; None where the model does not say."""
    multi_label: bool = False
    """Whether accuracy and agreement are of sets of labels, see `models.answers.jaccard`."""


@dataclass(frozen=True, kw_only=True)
class UnlikeFigures:
    """How unlike the training images of their predicted classes the images of an evaluation are."""

    share: float | None
    """Of the images above 1, which one in twenty training images is; None where no image has a score."""
    quantiles: dict[str, float]
    """Of the scores, by level: "0.5", "0.9", "0.95" and "0.99"; empty where no image has a score."""
    unknown: int
    """Images whose predicted class has no training images; they are not counted."""


@dataclass(kw_only=True, repr=False)
class KeptImages(ShortRepr):
    """What tables need of the labelled images of an evaluation: gathered in its one pass."""

    read: list[Any] = field(default_factory=list)
    """What the decision reads, batch by batch: (B, S, D) float32 pooled rows of additive models, or (B, P) evidence."""
    target: list[Any] = field(default_factory=list)
    """(B,) int64 classes."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Plane(ShortRepr):
    """Training images and prototypes on two axes."""

    samples: np.ndarray
    """(N, 2)"""
    labels: np.ndarray
    """(N,) classes"""
    prototypes: np.ndarray
    """(P, 2)"""
    means: np.ndarray
    """(P, 2) of the training images that match each prototype most."""
    winners: tuple[int, ...]
    """Class of each prototype."""
    names: tuple[str, ...]
    """Of all classes."""
    shares: tuple[float, float]
    """Of the variance along each axis."""
    flagged: tuple[int, ...]
    """Prototypes that are not pure."""
