"""What a model file says its prototypes are called, and by whom."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from protonmf_cli.models.card.stored import Facts


@dataclass(frozen=True, kw_only=True)
class PrototypeName:
    """The word that fits one prototype's training patches best."""

    word: str
    score: float
    """Mean cosine of its patches and the word."""
    second: str
    """The word that comes next."""
    margin: float
    """Score less that of the second word."""
    share: float
    """Of the word in a softmax over the vocabulary, with the towers' own scale."""
    patches: int
    """That were looked at."""


@dataclass(frozen=True, kw_only=True)
class NameFacts(Facts):
    """Names of prototypes, and where they are from."""

    tower: str
    """As it was named."""
    weights: str
    """sha256 of the weights of image and text tower."""
    template: str
    """Sentence in which each word was read."""
    vocabulary: str
    """sha256 of the words, one on each line."""
    words: int
    """In the vocabulary."""
    min_margin: float
    """Least margin of a name."""
    prototypes: Mapping[str, PrototypeName] = field(default_factory=dict)
    """By number of the row; those without a name are left out."""

    def of(self, prototype: int) -> PrototypeName | None:
        """The name of one prototype."""
        return self.prototypes.get(str(prototype))

    def caption(self, prototype: int) -> str:
        """The name in quotation marks with its score; empty where there is none."""
        name = self.of(prototype)
        return "" if name is None else f"“{name.word}” {name.score:.2f}"

    @property
    def source(self) -> str:
        """Who gave the names, in words."""
        return f"named by {self.tower}, the best of {self.words} words for the patches; captions, which decide nothing"
