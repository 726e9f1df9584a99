"""Signs that a prototype may not mean what its class is about, read from its maps, its weights and its relatives."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import scipy
import torch
from torch import Tensor

from protonmf_cli.models.audit import Sign
from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.page import Near
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import ExampleView
from protonmf_cli.models.stability import is_unstable
from protonmf_cli.models.wording import rounded
from protonmf_cli.pipelines.explaining.explanation import example_maps
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, PrototypeFacts, interpretation_of

NEAREST = 3
"""Prototypes of other classes named beside each."""
BORDER = 1.2
"""Share of a prototype's maps in the outermost seventh, relative to that of an even map, above which it is flagged."""
BACKGROUND = 0.5
"""Share of a prototype's maps on plain ground above which it is flagged."""
PLAIN = 0.25
"""Mean gradient of a place, relative to its picture's, below which it is plain ground: sky, a white wall."""
LONELY = 0.5
"""Score of the second training image, relative to the first, below which a prototype stands on one image."""
TWINS = 0.95
"""Cosine above which prototypes of two classes are nearly the same."""
LIKE_OWN = 0.5
"""Weight of another class, relative to the owner's, from which it counts as a user of an amount."""
SMALLEST_GRID = 5
"""Places of a map's side from which it has a border and a middle."""
SPOT = 1 / 7
"""Side of a spot, relative to the picture's: how far the peaks in it are apart at most."""
MOST = 0.8
"""Share of a prototype's training pictures with their peaks in one spot, from which it is flagged."""
CHANCE = 1e-5
"""Probability, were its peaks spread as those of other classes are, below which so many in one spot are no chance."""
ROUNDING = 1e-9
"""Places that are this much apart are the same."""
CHUNK = 512
"""Prototypes compared with all others at a time."""


Decode = Callable[[bytes], Tensor]
"""A JPEG file -> uint8 (channels, height, width)."""


class Signs:
    """Reads the signs of one prototype after the other; what they share is computed once."""

    def __init__(
        self,
        model: PrototypeModel,
        decode: Decode,
        interpretation: Interpretation | None = None,
        *,
        among: Sequence[int] | None = None,
        head: Tensor | None = None,
    ) -> None:
        """Prepare for a model.

        Args:
            model: of any kind.
            decode: reads the pictures of the training patches.
            interpretation: of a few-shot model, where it is known already.
            among: prototypes that will be asked for; all if None.
            head: (C, D) rows of the head of an additive model, where they are known.
        """
        self._model = model
        self._decode = decode
        self._interpretation = interpretation
        self._head = head
        self._among = range(len(model.prototypes)) if among is None else among

    def of(self, prototype: int, examples: Sequence[ExampleView]) -> tuple[Sign, ...]:
        """All signs of a prototype.

        Args:
            prototype: row of the model's prototypes.
            examples: its training patches.
        """
        if self._model.wholes[prototype]:
            return ()
        return (*self._of_maps(prototype, examples), *self._of_weights(prototype, examples))

    @cached_property
    def near(self) -> dict[int, tuple[Near, ...]]:
        """For each prototype the most similar ones of other classes, nearest first."""
        return dict(zip(self._among, _nearest_of_others(self._model, torch.tensor(list(self._among))), strict=True))

    @cached_property
    def users(self) -> tuple[tuple[tuple[int, float], ...], ...]:
        """For each prototype the other classes that count on it and their weights, the largest by size first."""
        parts_of_wholes = _scores_of_parts(self._model, self._all_rows) if self._model.wholes.any() else ()
        return tuple(_users(self._model, parts_of_wholes))

    @cached_property
    def facts(self) -> tuple[PrototypeFacts, ...] | None:
        """Of the prototypes of a few-shot model."""
        found = self._interpretation or interpretation_of(self._model)
        return None if found is None else tuple(found.prototypes)

    @property
    def _all_rows(self) -> Tensor:
        """(C, D) rows of the head of an additive model."""
        return self._model.head_vectors() if self._head is None else self._head

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor] | None:
        """(C, D) rows of the head, and (D,) their mean over the classes with prototypes; of additive models."""
        model = self._model
        if not model.adds_up or len(model.active_classes) < 3:
            return None
        rows = self._all_rows
        total = torch.stack([rows[some].double().sum(dim=0) for some in model.active_classes.split(CHUNK)]).sum(dim=0)
        return rows, total / len(model.active_classes)

    @cached_property
    def _peaks(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, 2) down and right, in [0, 1], of the peaks of all training patches; (n,) class of their prototypes."""
        model, peaks, classes = self._model, [], []
        for j in model.parts:
            found = _distinct_peaks(example_maps(model, j))
            peaks += found
            classes += [int(model.owner[j])] * len(found)
        return np.array(peaks).reshape(-1, 2), np.array(classes, dtype=np.int64)

    def _of_weights(self, prototype: int, examples: Sequence[ExampleView]) -> Iterator[Sign]:
        model, classes = self._model, self._model.card.classes
        near, facts = self.near[prototype], None if self.facts is None else self.facts[prototype]
        stability = model.stability(prototype)
        if stability is not None and is_unstable(stability):
            yield Sign(kind="unstable", words=f"unstable: cosine {stability:.2f} between two halves of the images")
        if model.adds_up and _stands_on_one_image(examples):  # others are patches, or means, of images
            yield Sign(
                kind="one image", words="stands on one training image: the next one shows less than half as much of it"
            )
        strangers = self._strangers(prototype)
        if len(strangers) > 1:
            names = ", ".join(classes[c].shown for c in strangers[:3])
            yield Sign(kind="shared", words=f"speaks for {len(strangers)} classes unlike its own: {names}")
        if near and near[0].cosine > TWINS:
            twin = near[0].prototype_id
            name = f"prototype {model.number(twin)} of {classes[int(model.owner[twin])].shown}"
            yield Sign(kind="twin", words=f"nearly the same as {name} (cosine {near[0].cosine:.2f})")
        if facts is not None and facts.kind == "ambiguous":
            names = " and ".join(classes[c].shown for c in facts.classes())
            yield Sign(kind="ambiguous", words=f"ambiguous: speaks for {names}")
        if facts is not None and facts.kind == "unused":
            yield Sign(kind="unused", words="unused: no training image matches it most")

    def _strangers(self, prototype: int) -> list[int]:
        """Classes unlike its own that it speaks for."""
        if self._rows is None:
            return []
        (rows, mean), active = self._rows, self._model.active_classes
        own = rows[int(self._model.owner[prototype])].double() - mean
        users = [c for c, weight in self.users[prototype] if weight > 0 and bool(torch.isin(c, active))]
        return [c for c in users if float(own @ (rows[c].double() - mean)) < 0]

    def _of_maps(self, prototype: int, examples: Sequence[ExampleView]) -> Iterator[Sign]:
        """What the maps on the training patches tell."""
        seen = [(view.map, view.jpeg) for view in examples if view.map is not None and view.map.any()]
        if not seen or min(seen[0][0].shape) < SMALLEST_GRID:
            return
        yield from self._of_spot(prototype, np.array(peaks_of(examples)))
        if self._model.evidence.kind.is_of_patches:
            return  # similarities have no zero of their own
        border = float(np.mean([border_share(grid) for grid, _ in seen]))
        if border > BORDER * border_share(np.ones_like(seen[0][0])):
            yield Sign(kind="border", words=f"{rounded(border)} of it lies on the border of the pictures")
        plain = float(np.mean([plain_share(grid, self._decode(jpeg)) for grid, jpeg in seen]))
        if plain > BACKGROUND:
            yield Sign(kind="background", words=f"{rounded(plain)} of it lies on plain background")

    def _of_spot(self, prototype: int, peaks: np.ndarray) -> Iterator[Sign]:
        """Whether its peaks (n, 2) are closer together than those of other classes, whose objects are centred too."""
        count, middle = crowded_spot(peaks)
        everywhere, owner = self._peaks
        others = everywhere[owner != int(self._model.owner[prototype])]
        there = int((np.abs(others - middle).max(axis=1) <= SPOT / 2 + ROUNDING).sum())
        expected = (there + 1) / (len(others) + 1)
        if count >= MOST * len(peaks) and scipy.special.bdtrc(count - 1, len(peaks), expected) < CHANCE:
            yield Sign(
                kind="same spot",
                words=f"at the same spot in {count} of {len(peaks)} training pictures, and other classes in "
                f"{rounded(there / max(1, len(others)))} of theirs",
            )


def peaks_of(examples: Sequence[ExampleView]) -> list[tuple[float, float]]:
    """Down and right, in [0, 1], of the strongest place in each training picture, the strongest patch of each."""
    return _distinct_peaks((view.map, view.sha256) for view in examples)


def _distinct_peaks(examples: Iterable[tuple[np.ndarray | None, str]]) -> list[tuple[float, float]]:
    """The same of maps and of what tells their pictures apart."""
    found: dict[str, tuple[float, float]] = {}
    for grid, picture in examples:
        if grid is not None and grid.any() and picture not in found:
            height, width = grid.shape
            down, right = np.unravel_index(int(grid.argmax()), grid.shape)
            found[picture] = ((int(down) + 0.5) / height, (int(right) + 0.5) / width)
    return list(found.values())


def crowded_spot(peaks: np.ndarray) -> tuple[int, np.ndarray]:
    """How many peaks (n, 2) lie in the one spot that holds most of them, and the middle of these.

    >>> crowded_spot(np.array([[0.5, 0.5], [0.6, 0.5], [0.1, 0.9]]))
    (2, array([0.55, 0.5 ]))
    """
    best = peaks[:1]
    for top in peaks[:, 0]:
        for left in peaks[:, 1]:
            away = peaks - (top, left)
            here = peaks[((away > -ROUNDING) & (away < SPOT + ROUNDING)).all(axis=1)]
            best = here if len(here) > len(best) else best
    return len(best), (best.min(axis=0) + best.max(axis=0)) / 2


def _nearest_of_others(model: PrototypeModel, chosen: Tensor) -> Iterator[tuple[Near, ...]]:
    """For each of some prototypes the most similar ones of other classes, within its network.

    Patches of a ProtoPNet lie far from zero in nearly one direction: they are compared by what sets them apart.
    """
    vectors, member = model.prototypes.cpu(), torch.zeros_like(model.owner)
    if isinstance(model.evidence, NearestPatch):
        vectors = vectors.double()
        for number in range(len(model.spaces)):
            own = model.of_member(number)
            vectors[own] -= vectors[own].mean(dim=0)
            member[own] = number
    for part in chosen.split(CHUNK):
        mine = _unit(vectors[part])
        cosine = torch.cat([mine @ _unit(others).mT for others in vectors.split(CHUNK)], dim=1)
        apart = (model.owner[part, None] != model.owner) & (member[part, None] == member)
        apart &= ~model.wholes.to(apart.device)
        best = cosine.masked_fill_(~apart, -torch.inf).topk(min(NEAREST, len(vectors)), dim=1)
        for values, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            pairs = zip(values, numbers, strict=True)
            yield tuple(Near(prototype_id=j, cosine=value) for value, j in pairs if value > -2)


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.double(), dim=1)


def _users(model: PrototypeModel, more: Iterable[tuple[int, int, float]] = ()) -> list[tuple[tuple[int, float], ...]]:
    """Classes other than the owner with a weight, for each prototype; of amounts, with half the owner's at least.

    Args:
        model: of any kind.
        more: class, prototype and weight beyond those that the model holds.
    """
    found: list[list[tuple[int, float]]] = [[] for _ in range(len(model.prototypes))]
    weights = model.weights
    owner = model.owner.tolist()
    pairs = list(zip(weights.class_index.tolist(), weights.prototype.tolist(), weights.value.tolist(), strict=True))
    pairs += more
    least = {j: LIKE_OWN * abs(value) for c, j, value in pairs if c == owner[j]} if model.amounts is not None else {}
    for c, j, value in pairs:
        if c != owner[j] and value != 0 and abs(value) >= least.get(j, 0.0):
            found[j].append((c, value))
    return [tuple(sorted(each, key=lambda use: -abs(use[1]))) for each in found]


def _scores_of_parts(model: PrototypeModel, head: Tensor) -> Iterator[tuple[int, int, float]]:
    """Class, prototype and V_c . b_k of the parts of all classes that a class weighs as wholes."""
    for c in range(len(model.bias)):
        used = model.weights.prototype[model.entries(c)]
        parts = [k for owner in model.owner[used[model.wholes[used]]].tolist() for k in model.own(owner)]
        scores = (model.prototypes[parts].double() @ head[c].double()).tolist()
        yield from zip([c] * len(parts), parts, scores, strict=True)


def border_share(grid: np.ndarray) -> float:
    """Share of a map >= 0 in the outermost seventh of its grid.

    >>> border_share(np.ones((7, 7)))
    0.4897959183673469
    """
    width = max(1, round(min(grid.shape) / 7))
    return float(1 - grid[width:-width, width:-width].sum() / grid.sum())


def plain_share(grid: np.ndarray, pixels: Tensor) -> float:
    """Share of a map >= 0 on plain ground, where the picture has next to no gradient.

    Args:
        grid: (h, w) map.
        pixels: uint8 (channels, height, width) of the picture.

    >>> pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    >>> pixels[:, :4] = 255 * (torch.arange(8) % 2).to(torch.uint8)  # stripes above, plain below
    >>> plain_share(np.array([[1.0, 0.0], [2.0, 1.0]]), pixels)
    0.75
    """
    grey = pixels.double().mean(dim=0)
    gradient = torch.zeros_like(grey)
    gradient[:, :-1] += grey.diff(dim=1).abs()
    gradient[:-1] += grey.diff(dim=0).abs()
    places = torch.nn.functional.adaptive_avg_pool2d(gradient[None], grid.shape)[0]
    return float(grid[(places < PLAIN * gradient.mean()).numpy()].sum() / grid.sum())


def _stands_on_one_image(examples: Sequence[ExampleView]) -> bool:
    """Whether the strongest training image shows far more of a prototype than all others."""
    apart = {view.sha256: view.score for view in reversed(examples)}
    scores = sorted(apart.values(), reverse=True)
    return len(examples) > 1 and (len(scores) == 1 or scores[1] < LONELY * scores[0])
