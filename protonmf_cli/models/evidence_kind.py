"""What evidence is, apart from any tensor: what it is called, and what texts and pictures make of that."""

from enum import Enum
from typing import TYPE_CHECKING, Literal, assert_never

if TYPE_CHECKING:
    import numpy as np


class EvidenceKind(Enum):
    """What evidence is; the value is what JSON calls it. `models.evidence` holds what is computed with."""

    PROJECTIONS = "projections"
    AMOUNTS = "amounts"
    SIMILARITIES = "similarities"
    MATCHES = "matches"

    @classmethod
    def of_card(cls, pooling: str, similarity: str) -> "EvidenceKind":
        """The kind that a card speaks of.

        Raises:
            ValueError: there is none.
        """
        match pooling:
            case "sum":
                return cls.AMOUNTS if similarity == "dual" else cls.PROJECTIONS
            case "max":
                return cls.SIMILARITIES
            case "soft":
                return cls.MATCHES
        raise ValueError(f"pooling is {pooling!r}, expected sum, max or soft")

    @property
    def pooling(self) -> Literal["sum", "max", "soft"]:
        """How files call what is made of places: their sum, the best one alone, or one match of the whole image."""
        match self:
            case EvidenceKind.PROJECTIONS | EvidenceKind.AMOUNTS:
                return "sum"
            case EvidenceKind.SIMILARITIES:
                return "max"
            case EvidenceKind.MATCHES:
                return "soft"
            case _:
                assert_never(self)

    @property
    def adds_up(self) -> bool:
        """Whether evidence is a sum over rows, so that logits are linear in them: with residual and bias."""
        return self.pooling == "sum"

    @property
    def is_of_patches(self) -> bool:
        """Whether a prototype is one training patch, which the most similar patch of an image is held against."""
        return self is EvidenceKind.SIMILARITIES

    @property
    def said(self) -> str:
        """What evidence is, in a line; empty where nothing need be said."""
        match self:
            case EvidenceKind.PROJECTIONS | EvidenceKind.AMOUNTS:
                return ""
            case EvidenceKind.SIMILARITIES:
                return "evidence: similarity of the most similar patch"
            case EvidenceKind.MATCHES:
                return "evidence: how much the image matches the prototype (all matches add up to 1)"
            case _:
                assert_never(self)

    @property
    def map_name(self) -> str:
        """What the map of presence is called."""
        match self:
            case EvidenceKind.AMOUNTS:
                return "amount map"
            case EvidenceKind.SIMILARITIES:
                return "activation map"
            case EvidenceKind.PROJECTIONS | EvidenceKind.MATCHES:
                return "presence map"
            case _:
                assert_never(self)

    def drawn(self, grid: "np.ndarray") -> "np.ndarray":
        """A map as it is drawn: similarities, which have no zero of their own, begin at their least value."""
        return grid - grid.min() if self is EvidenceKind.SIMILARITIES else grid

    @property
    def composite_floor(self) -> float:
        """Share of a map's maximum from which a picture of many colours it: similarities are high nearly everywhere."""
        return 0.6 if self is EvidenceKind.SIMILARITIES else 0.25
