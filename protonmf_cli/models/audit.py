"""What an audit finds: for every prototype what its patches do to other images, and whether its class needs it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

PICTURED = 24
"""Prototypes that are shown with pictures, the most suspicious first; and every one that looks like a shortcut."""

SignKind = Literal[
    "border", "background", "same spot", "one image", "unstable", "shared", "twin", "ambiguous", "unused"
]


@dataclass(frozen=True, kw_only=True)
class Sign:
    """A reason to look at a prototype twice: it may not mean what its class is about."""

    kind: SignKind
    words: str
    """For the reader, with the figure."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """So many of so many, with the 95 % interval of the share (Wilson 1927)."""

    hits: int
    trials: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """In [0, 1]; 0 where nothing was tried."""
        return self.hits / self.trials if self.trials else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Pasted:
    """One image of another class, before and after a patch was pasted into it."""

    path: str
    target: int
    """Its true class."""
    before: int
    """Predicted class without the patch."""
    after: int
    """With it."""
    host: np.ndarray
    """(height, width, channels) uint8"""
    changed: np.ndarray
    """The same with the patch."""


@dataclass(frozen=True, kw_only=True)
class Transplant:
    """Shares of images of other classes that go to the prototype's class."""

    flips: Share
    """With its patches pasted in at their own place."""
    elsewhere: Share
    """Baseline: as large pieces of the same pictures from other places, pasted in there."""
    siblings: Share
    """Baseline: patches of the class's other prototypes."""
    left: Share
    """Of the images with its patches, when the prototype is taken out."""
    recoloured: Share
    """Images that have taken over the colours (means and spreads of the channels) of its pictures."""
    recoloured_left: Share
    """Of these, when the prototype is taken out."""
    carries_colours: bool
    """Whether of all prototypes of its class it takes the most of the recoloured images along when it is taken out."""

    @property
    def caused(self) -> float:
        """Share of images that follow its patches with it, and not without it."""
        return self.flips.value - self.left.value

    @property
    def by_colours(self) -> bool:
        """Whether colours alone take more images along than its patches do by it."""
        return self.carries_colours and self.recoloured.value > self.caused


@dataclass(frozen=True, kw_only=True)
class Need:
    """What the classifier loses when a prototype is taken out, on the images of the audit."""

    own: tuple[float, float]
    """Accuracy of the class before and after."""
    probability: tuple[float, float]
    """Mean probability of the class on its own images."""
    everything: tuple[float, float]
    """Accuracy of all images."""
    images: int
    """Of the class."""
    worst_group: tuple[float, float] | None = None
    """Least accuracy of a group; None without groups."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One prototype and what speaks for its being a shortcut."""

    prototype_id: int
    number: int
    """Within its class, from 1."""
    class_index: int
    transplant: Transplant | None
    """None where a prototype has no maps, or nothing to paste into."""
    need: Need | None
    """None without images of its class."""
    outside: float | None
    """Share of its maps outside the objects' masks or boxes; None without any."""
    signs: tuple[Sign, ...]
    """What its maps and its weights tell."""
    score: float
    """In [0, 1]: the ranking goes by it."""
    is_shortcut: bool
    """Whether it looks like one."""
    reason: str
    """In words."""
    pasted: tuple[Pasted, ...] = ()
    """Some images that its patches flip; of `Audit.pictured` alone."""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Every prototype of a model, the most suspicious first."""

    images: int
    accuracy: float
    groups: dict[str, tuple[int, float]] | None
    """Group -> images and accuracy; None without groups."""
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    """What could not be tried, and why."""

    @property
    def shortcuts(self) -> tuple[Candidate, ...]:
        """Those that look like one."""
        return tuple(candidate for candidate in self.candidates if candidate.is_shortcut)

    @property
    def pictured(self) -> tuple[Candidate, ...]:
        """Those that are shown with pictures."""
        return tuple(each for rank, each in enumerate(self.candidates) if rank < PICTURED or each.is_shortcut)
