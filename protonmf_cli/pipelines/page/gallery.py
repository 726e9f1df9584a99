"""The gallery of a model: what is known of every class and prototype, and which prototypes look suspicious."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.models.card import ClassFigures
from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.page import Gallery, GalleryClass, GalleryPrototype, Near, Sign
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import ExampleView
from protonmf_cli.models.stability import is_unstable
from protonmf_cli.models.wording import rounded
from protonmf_cli.pipelines.explaining.explanation import example_views
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
CHUNK = 1024
"""Prototypes compared with all others at a time."""


Decode = Callable[[bytes], Tensor]
"""A JPEG file -> uint8 (channels, height, width)."""


def gallery_of(
    model: PrototypeModel,
    evaluation: Mapping[str, Any] | None,
    decode: Decode,
    shown: Collection[int] | None = None,
    interpretation: Interpretation | None = None,
) -> Gallery:
    """Facts about every class that has prototypes.

    Args:
        model: of any kind.
        evaluation: `protonmf.evaluation/1` of this model, whose accuracy of each class goes before that on the
            training images.
        decode: reads the pictures of the training patches.
        shown: prototypes that are looked at; the others are named only. All if None.
        interpretation: of a few-shot model, where it is known already.
    """
    near = list(_nearest_of_others(model))
    users = _users(model)
    related = _relatedness(model)
    found = interpretation or interpretation_of(model)
    facts = None if found is None else found.prototypes
    prototypes = []
    for j, number in enumerate(_numbers(model)):
        owner = int(model.owner[j])
        if shown is not None and j not in shown:
            prototypes.append(_named_only(model, j, number, users[j]))
            continue
        examples = tuple(example_views(model, j))
        prototypes.append(
            GalleryPrototype(
                prototype_id=j,
                number=number,
                owner_index=owner,
                stability=model.stability(j),
                examples=examples,
                near=near[j],
                users=users[j],
                signs=(
                    *_signs_of_maps(model, examples, decode),
                    *_signs(model, j, examples, near[j], users[j], related, facts[j] if facts else None),
                ),
                facts=_facts(facts[j]) if facts else (),
            )
        )
    return Gallery(
        classes=tuple(_classes(model, prototypes, evaluation)),
        prototypes=tuple(prototypes),
        measured_on="the images evaluated" if evaluation else "the training images",
    )


def _named_only(
    model: PrototypeModel, prototype: int, number: int, users: tuple[tuple[int, float], ...]
) -> GalleryPrototype:
    return GalleryPrototype(
        prototype_id=prototype, number=number, owner_index=int(model.owner[prototype]),
        stability=model.stability(prototype), examples=(), near=(), users=users, signs=(),
    )  # fmt: skip


def _numbers(model: PrototypeModel) -> list[int]:
    """Number of each prototype within its owner; owners come in rising order."""
    owner = model.owner.tolist()
    numbers: list[int] = []
    for j, c in enumerate(owner):
        numbers.append(numbers[-1] + 1 if j and owner[j - 1] == c else 1)
    return numbers


def _nearest_of_others(model: PrototypeModel) -> Iterator[tuple[Near, ...]]:
    """For each prototype the most similar ones of other classes, within its network.

    Patches of a ProtoPNet lie far from zero in nearly one direction: they are compared by what sets them apart.
    """
    vectors = model.exact.prototypes.clone()
    member = torch.zeros_like(model.owner)
    if isinstance(model.evidence, NearestPatch):
        for number in range(len(model.spaces)):
            own = model.of_member(number)
            vectors[own] -= vectors[own].mean(dim=0)
            member[own] = number
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    for start in range(0, len(vectors), CHUNK):
        part = slice(start, start + CHUNK)
        cosine = vectors[part] @ vectors.mT
        apart = (model.owner[part, None] != model.owner) & (member[part, None] == member)
        best = cosine.masked_fill(~apart, -torch.inf).topk(min(NEAREST, len(vectors)), dim=1)
        for values, numbers in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            pairs = zip(values, numbers, strict=True)
            yield tuple(Near(prototype_id=j, cosine=value) for value, j in pairs if value > -2)


def _users(model: PrototypeModel) -> list[tuple[tuple[int, float], ...]]:
    """Classes other than the owner with a weight, for each prototype; of amounts, with half the owner's at least."""
    found: list[list[tuple[int, float]]] = [[] for _ in range(len(model.prototypes))]
    weights = model.weights
    owner = model.owner.tolist()
    pairs = list(zip(weights.class_index.tolist(), weights.prototype.tolist(), weights.value.tolist(), strict=True))
    least = {j: LIKE_OWN * abs(value) for c, j, value in pairs if c == owner[j]} if model.amounts is not None else {}
    for c, j, value in pairs:
        if c != owner[j] and value != 0 and abs(value) >= least.get(j, 0.0):
            found[j].append((c, value))
    return [tuple(sorted(each, key=lambda use: -abs(use[1]))) for each in found]


def _relatedness(model: PrototypeModel) -> Tensor | None:
    """(C, C) cosine of the head's rows, less their mean over the classes with prototypes; of additive models."""
    if not model.adds_up or len(model.active_classes) < 3:
        return None
    rows = model.head_vectors()
    rows = rows - rows[model.active_classes].mean(dim=0)
    rows = torch.nn.functional.normalize(rows, dim=1)
    found = torch.zeros(len(rows), len(rows), dtype=rows.dtype)
    active = model.active_classes
    found[active[:, None], active] = rows[active] @ rows[active].mT
    return found


def _signs(
    model: PrototypeModel,
    prototype: int,
    examples: Sequence[ExampleView],
    near: Sequence[Near],
    users: Sequence[tuple[int, float]],
    related: Tensor | None,
    facts: PrototypeFacts | None,
) -> Iterator[Sign]:
    classes = model.card.classes
    stability = model.stability(prototype)
    if stability is not None and is_unstable(stability):
        yield Sign(kind="unstable", words=f"unstable: cosine {stability:.2f} between two halves of the images")
    if model.adds_up and _stands_on_one_image(examples):  # others are patches, or means, of images
        yield Sign(
            kind="one image", words="stands on one training image: the next one shows less than half as much of it"
        )
    owner = int(model.owner[prototype])
    strangers = [c for c, weight in users if weight > 0 and related is not None and related[owner, c] < 0]
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


def _signs_of_maps(model: PrototypeModel, examples: Sequence[ExampleView], decode: Decode) -> Iterator[Sign]:
    """What the maps on the training patches tell."""
    seen = [(view.map, view.jpeg) for view in examples if view.map is not None and view.map.any()]
    if model.evidence.kind.is_of_patches or not seen or min(seen[0][0].shape) < SMALLEST_GRID:
        return  # similarities have no zero of their own
    border = float(np.mean([border_share(grid) for grid, _ in seen]))
    if border > BORDER * border_share(np.ones_like(seen[0][0])):
        yield Sign(kind="border", words=f"{rounded(border)} of it lies on the border of the pictures")
    plain = float(np.mean([plain_share(grid, decode(jpeg)) for grid, jpeg in seen]))
    if plain > BACKGROUND:
        yield Sign(kind="background", words=f"{rounded(plain)} of it lies on plain background")


SMALLEST_GRID = 5
"""Places of a map's side from which it has a border and a middle."""


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


def _facts(facts: PrototypeFacts) -> tuple[str, ...]:
    """What a few-shot model says of one prototype."""
    members = f"{len(facts.members)} training images" if len(facts.members) != 1 else "a single training image"
    return (
        facts.kind,
        f"matched most by {members}",
        f"variance {facts.spread.total:.3f}",
        f"entropy {facts.entropy:.2f}",
    )


def _classes(
    model: PrototypeModel, prototypes: Sequence[GalleryPrototype], evaluation: Mapping[str, Any] | None
) -> Iterator[GalleryClass]:
    # the card's figures are those of the model before it was edited
    figures = None if model.card.edits else model.card.conversion
    measured = {} if figures is None else figures.per_class
    evaluated = {row["class_index"]: row for row in (evaluation or {}).get("per_class", ())}
    images = model.card.data.images_per_class
    own: dict[int, list[GalleryPrototype]] = {c: [] for c in model.active_classes.tolist()}
    for prototype in prototypes:
        own[prototype.owner_index].append(prototype)
    for c, mine in own.items():
        here = measured.get(str(c), ClassFigures())
        known = [p.stability for p in mine if p.stability is not None]
        accuracy = evaluated.get(c, {}).get("prototype_model") if evaluation else here.accuracy
        yield GalleryClass(
            class_index=c,
            images=images.get(str(c)),
            residual_share=here.residual_share,
            accuracy=accuracy,
            stability=min(known, default=None),
        )
