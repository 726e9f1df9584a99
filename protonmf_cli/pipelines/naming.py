"""What prototypes may be called: the word whose text vector is nearest to the vectors of their training patches.

Reference: Radford et al. 2021, "Learning transferable visual models from natural language supervision" (CLIP), whose
two towers these are; Oikarinen and Weng 2023, "CLIP-Dissect", name units of a network by them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.models.card.names import PrototypeName
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.progress import SILENT, Progress

WORD = "{word}"
"""Where a word goes in a template."""
TEMPLATE = "a photo of a {word}"
LEAST_SIDE = 32
"""Pixels of the side of the smallest patch that is cut out: less is a smear to an image tower."""
RATIO = 3.0
"""How many times as probable as the second word the best one is at least, by the towers' own softmax, to be a name.
Chosen with a classifier's features and head as towers, see tests/benchmarks/naming_margin.py: of the best words 36 %
were right, of those with this ratio 69 %."""
AT_ONCE = 256
"""Patches that are held at once."""


class Towers(Protocol):
    """An image and a text tower whose vectors can be compared."""

    @property
    def scale(self) -> float:
        """By which cosines are multiplied before a softmax over texts."""

    def see(self, patches: Sequence[Tensor]) -> Tensor:
        """(n, D) unit vectors of uint8 patches (channels, height, width)."""

    def read(self, sentences: Sequence[str]) -> Tensor:
        """(n, D) unit vectors of sentences."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well words fit one prototype."""

    prototype_id: int
    nearest: PrototypeName | None
    """The best word with its figures; None where the prototype has no patches."""
    named: bool
    """Whether its margin makes the word a name."""


def least_margin(scale: float) -> float:
    """The usual least margin of a name: that of a best word `RATIO` times as probable as the second, see `RATIO`.

    >>> round(least_margin(100.0), 4)
    0.011
    """
    return float(torch.tensor(RATIO).log()) / scale


def cut_patch(picture: Tensor, box: Sequence[int]) -> Tensor:
    """A square around a box, as far as the picture goes; a view.

    Args:
        picture: (channels, height, width)
        box: left, top, right, bottom in pixels of it.

    >>> cut_patch(torch.zeros(3, 100, 100), (0, 40, 60, 60)).shape
    torch.Size([3, 60, 60])
    """
    left, top, right, bottom = box
    side = max(right - left, bottom - top, LEAST_SIDE)
    spans = []
    for low, high, end in ((top, bottom, picture.shape[1]), (left, right, picture.shape[2])):
        start = min(max((low + high - side) // 2, 0), max(end - side, 0))
        spans.append(slice(start, min(start + side, end)))
    return picture[:, spans[0], spans[1]]


def fits(
    model: PrototypeModel,
    decode: Callable[[int], Tensor],
    words: Sequence[str],
    towers: Towers,
    *,
    template: str = TEMPLATE,
    min_margin: float | None = None,
    progress: Progress = SILENT,
) -> tuple[list[Fit], float]:
    """The best word for each prototype, by the mean cosine of its stored training patches and the sentence of a word.

    Args:
        model: with training patches.
        decode: number of an example -> its picture, uint8 (channels, height, width).
        words: two or more different ones.
        towers: compare pictures and sentences.
        template: sentence of a word.
        min_margin: of a name; None: see `least_margin`.
        progress: is told patches.

    Returns:
        One fit per prototype that is no class as a whole, in their order, and the least margin that was asked for.

    Raises:
        InputError: the towers give no finite numbers.
    """
    examples = model.examples
    least = least_margin(towers.scale) if min_margin is None else min_margin
    of_parts = (~model.wholes[examples.prototype]).nonzero()[:, 0]  # a class as a whole has its name
    progress.stage("words and patches", len(of_parts))
    texts = towers.read([template.replace(WORD, word) for word in words]).double()
    cosines = torch.zeros(len(model.prototypes), len(words), dtype=torch.float64)
    for chosen in of_parts.split(AT_ONCE):
        patches = [cut_patch(decode(n), examples.box[n].tolist()) for n in chosen.tolist()]
        cosines.index_add_(0, examples.prototype[chosen], towers.see(patches).double() @ texts.mT)
        progress.advance(len(chosen))
    if not bool(cosines.isfinite().all()):
        raise InputError("the towers give vectors that are no finite numbers: their weights are damaged.")
    counts = torch.bincount(examples.prototype, minlength=len(cosines)).tolist()
    found = [
        Fit(prototype_id=j, nearest=None, named=False)
        if not counts[j]
        else _fit(j, cosines[j] / counts[j], words, towers.scale, counts[j], least)
        for j in model.parts
    ]
    return found, least


def _fit(prototype: int, cosines: Tensor, words: Sequence[str], scale: float, patches: int, least: float) -> Fit:
    """Of mean cosines (V,)."""
    (best, second), (first, next_one) = (values.tolist() for values in cosines.topk(2))
    nearest = PrototypeName(
        word=words[first], score=best, second=words[next_one], margin=best - second,
        share=float((scale * cosines).softmax(dim=0)[first]), patches=patches,
    )  # fmt: skip
    return Fit(prototype_id=prototype, nearest=nearest, named=best - second >= least)


def names_of(found: Sequence[Fit]) -> Mapping[str, PrototypeName]:
    """What a card stores of fits: the names alone."""
    return {str(fit.prototype_id): fit.nearest for fit in found if fit.named and fit.nearest is not None}
