"""What the verbs return: plain numbers, ready for JSON and for pictures."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protonmf_cli.models.evidence_kind import EvidenceKind


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One of the best classes of an image."""

    class_index: int
    label: str
    name: str
    """The label in words."""
    logit: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class ExampleView:
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


@dataclass(frozen=True, kw_only=True)
class Contribution:
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
    box: tuple[int, int, int, int] | None
    """Around the peak of the chosen map, in pixels of the crop."""
    examples: tuple[ExampleView, ...]
    network: str = ""
    """Name of the network that the prototype belongs to, in a combined model."""
    crop: np.ndarray | None = None
    """What that network saw, in a combined model; else the explanation's own crop."""
    usual: tuple[float, float] | None = None
    """Amounts that are usual in the training images of the prototype's own class; None where evidence is no amount, or
    holds a share of the residual too."""
    peak: float | None = None
    """The usual largest amount at one place: what is drawn at full strength; None: each map's own maximum."""

    @property
    def scale(self) -> dict[str, float | None]:
        """Value drawn at full strength, for each kind of map."""
        return {"presence": self.peak, "contribution": self.peak and self.peak * abs(self.weight)}

    @property
    def is_less_than_none(self) -> bool:
        """Whether the evidence is negative: the image holds the opposite of the part, and looks like none of it."""
        return self.evidence < 0


@dataclass(frozen=True, kw_only=True)
class Explanation:
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

    @property
    def reads_amounts(self) -> bool:
        """Whether evidence is an amount."""
        return self.kind is EvidenceKind.AMOUNTS

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


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An image whose top class changed under an intervention."""

    path: str
    target: int
    before: int
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
    """class -> images, black_box, prototype_model, prototypes_only"""
    intervals: dict[str, Any] = field(default_factory=dict)
    """The keys of the means over images, with [low, high]"""


@dataclass(kw_only=True)
class KeptImages:
    """What tables need of the labelled images of an evaluation: gathered in its one pass."""

    read: list[Any] = field(default_factory=list)
    """What the decision reads, batch by batch: (B, S, D) float32 pooled rows of additive models, or (B, P) evidence."""
    target: list[Any] = field(default_factory=list)
    """(B,) int64 classes."""


@dataclass(frozen=True, kw_only=True)
class Plane:
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
