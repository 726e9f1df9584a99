"""What a report shows: the gallery of a model's classes and prototypes, and explained images with all their numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from protonmf_cli.models.audit import Audit, Sign
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, Contribution, ExampleView, Explanation, Plane


@dataclass(frozen=True, kw_only=True)
class Near:
    """A prototype of another class that is like one of this class."""

    prototype_id: int
    cosine: float
    """In [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class GalleryPrototype:
    """One prototype with everything that is known of it without an image."""

    prototype_id: int
    number: int
    """Within its owner, from 1."""
    owner_index: int
    stability: float | None
    examples: tuple[ExampleView, ...]
    near: tuple[Near, ...]
    """Nearest prototypes of other classes, nearest first."""
    users: tuple[tuple[int, float], ...]
    """Other classes that use it and their weights, the largest by size first."""
    signs: tuple[Sign, ...]
    facts: tuple[str, ...] = ()
    """What else its method says of it."""


@dataclass(frozen=True, kw_only=True)
class GalleryClass:
    """One class that has prototypes; figures are None where they are not known."""

    class_index: int
    images: int | None
    """Training images."""
    residual_share: float | None
    """Median over them; 1 - logit share."""
    accuracy: float | None
    """Of the prototype model, on the images of `Gallery.accuracy_of`."""
    stability: float | None
    """The least of its own prototypes."""


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All classes that have prototypes."""

    classes: tuple[GalleryClass, ...]
    prototypes: tuple[GalleryPrototype, ...]
    """All that the page knows, in the order of the model."""
    measured_on: str
    """What the figures of the classes were measured on."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Where an image lies among the training images of a few-shot model."""

    place: tuple[float, float]
    """On the axes of the report's plane."""
    nearest: tuple[tuple[str, str, float], ...]
    """Path, class and distance of the nearest training images."""
    typical: float
    """Share of the training images that are at least as far from their nearest neighbour."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image: the explanations that are drawn, and the numbers from which every other one follows.

    Contribution of prototype j to class c: a_cj evidence_j + beta_cj reach_c with `PrototypeModel.carried_share` beta.
    Where evidence is an amount, it follows from the projections: (mixing_c evidence)_j over the class's connections.
    """

    explanations: tuple[Explanation, ...]
    """Of the predicted class, the runner-up, the best other class with prototypes, and the true one: each class once.
    Only the largest contributions, without training patches: the gallery has them."""
    crops: tuple[np.ndarray, ...]
    """(height, width, channels) uint8 what each network saw."""
    evidence: np.ndarray
    """(P,); of models that read amounts the projections x . b_j of the rows that they read."""
    beside: np.ndarray | None
    """(P,) the same of the rows without a place, less their mean: what an edit takes from "no place"; None where there
    are none."""
    logits: np.ndarray
    """(C,) of the model."""
    unplaced: np.ndarray | None
    """(C,) "no place"; None where prototypes read all rows."""
    reach: np.ndarray
    """(C,) what augmented prototypes share; zeros in plain form."""
    beside_reach: np.ndarray | None
    """(C,) the same of the rows without a place; None in plain form or where there are none."""
    top: int
    """Class of the largest logit."""
    probability: float
    """Of this class."""
    targets: tuple[int, ...]
    """The true classes where they are known."""
    contrasts: tuple[Contrast, ...]
    """Of the first explained class with every other one, where evidence is an amount."""
    similar: tuple[Contribution, ...]
    """The most similar prototypes of all classes (ProtoPNet's local analysis)."""
    neighbours: Neighbours | None
    """Of few-shot models."""

    @property
    def image(self) -> str:
        return self.explanations[0].image


@dataclass(frozen=True, kw_only=True)
class AuditPart:
    """An audit of the model, with what the page says beside it."""

    audit: Audit
    data: tuple[str, ...]
    """Words of a command that name the images of the audit."""
    regions: Mapping[int, tuple[tuple[int, ...], ...]]
    """Prototypes that are shown with pictures -> of each training patch the places of its map that are pasted, numbered
    row by row."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything on the page."""

    model: PrototypeModel
    file: str
    """The model's, as the user gave it."""
    form: str
    """plain or augmented"""
    bias: np.ndarray
    """(C,) in the form that is shown: b + delta, or b."""
    gallery: Gallery
    cases: tuple[Case, ...]
    plane: Plane | None
    """Of few-shot models."""
    evaluation: Mapping[str, Any] | None
    """`protonmf.evaluation/1` of this model."""
    unreadable: tuple[Skipped, ...]
    """Images that were asked for."""
    shown: frozenset[int]
    """Prototypes whose pictures are on the page."""
    listed: tuple[int, ...]
    """Classes that the page has rows of, rising: all with prototypes, or of very many some, and all explained ones."""
    left_out: tuple[str, ...] = ()
    """What is not on the page."""
    audit: AuditPart | None = None


@dataclass(frozen=True, kw_only=True)
class Badge:
    """The first thing a reader sees of a model's exactness."""

    kind: Literal["exact", "edited", "trained"]
    title: str
    words: str


@dataclass(frozen=True, kw_only=True)
class WordTable:
    """A table whose cells are written already."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PageWords:
    """The texts of a page."""

    title: str
    subtitle: str
    about: str
    """What the page is, in a sentence."""
    badge: Badge
    lines: Mapping[str, str]
    """What `inspect` says of the model."""
    tables: tuple[WordTable, ...]
    skipped: tuple[Skipped, ...]
    provenance: Mapping[str, str]
    glossary: Mapping[str, str]
    version: str
    evidence: str
    """What evidence means where there is no residual."""
    nameless: bool
    """No command can name what was explained: images in an archive, or cut to boxes."""
