"""ProtoPNet's two analyses: which prototypes an image is like, and which patches each prototype is like.

Reference: Chen et al. 2019, sections 3.2 and 3.3 (local and global analysis).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contribution, ExampleView, Prediction
from protonmf_cli.models.sheets import Cell, Strip
from protonmf_cli.models.wording import shortened_path
from protonmf_cli.pipelines.explaining.by_similarity import similarity_contributions
from protonmf_cli.pipelines.explaining.explanation import Answer, answers_of, connections, example_views, predictions

OWN_PATCH = ("its patch", "where it was found")


@dataclass(frozen=True, kw_only=True)
class LocalAnalysis:
    """One image: its most similar prototypes of any class, and the evidence for the best classes."""

    predictions: tuple[Prediction, ...]
    """The best classes, as many as were asked for."""
    similar: tuple[Contribution, ...]
    """The most similar prototypes of all classes, with their weight to the predicted class."""
    by_class: tuple[tuple[Contribution, ...], ...]
    """For each of the best classes all its own prototypes, most similar first."""


def analyse_image(backbone: Backbone, model: PrototypeModel, crop: Tensor, *, top: int, classes: int) -> LocalAnalysis:
    """The local analysis of one image.

    Args:
        backbone, model: a ProtoPNet, or several combined.
        crop: uint8, what the network sees.
        top: most similar prototypes; all where there are fewer.
        classes: best classes looked at one by one; all where there are fewer.
    """
    (answer,) = answers_of(backbone, model, crop[None])
    best = predictions(model, answer.logits, classes)
    order = most_similar(answer)
    return LocalAnalysis(
        predictions=best,
        similar=contributions_of(backbone, model, answer, order[:top], best[0].class_index),
        by_class=tuple(
            contributions_of(
                backbone, model, answer, [j for j in order if int(model.owner[j]) == p.class_index], p.class_index
            )
            for p in best
        ),
    )


def most_similar(answer: Answer) -> list[int]:
    """All prototypes, the most similar first, of a model whose evidence is similarity."""
    assert answer.response is not None
    return answer.response.evidence[0].argsort(descending=True, stable=True).tolist()


def contributions_of(
    backbone: Backbone, model: PrototypeModel, answer: Answer, prototypes: Sequence[int], class_index: int
) -> tuple[Contribution, ...]:
    """Some prototypes in one image, with their weight to one class: zero where it does not use them."""
    assert answer.response is not None
    known = connections(model, class_index)
    weights = {j: known.get(j, 0.0) for j in prototypes}
    views = {j: tuple(example_views(model, j)) for j in prototypes}
    return similarity_contributions(backbone, model.exact, answer.response, answer.crop, weights, views)


def local_strips(found: Sequence[Contribution], crop: np.ndarray, class_index: int) -> list[Strip]:
    """This image's patch beside the prototype that it looks like."""
    return [
        Strip(
            title=f"prototype {c.prototype}",
            words=(
                *([f"of {c.owner_name}"] if c.owner_index != class_index else []),
                *filter(None, [c.caption]),
                f"similarity {c.evidence:.3f}",
                f"weight {c.weight:+.3f}",
                f"= {c.contribution:+.2f}",
                *([shortened_path(c.network, 26)] if c.network else []),
            ),
            cells=(
                Cell(crop=_seen(c, crop), box=c.box, cut=True),
                Cell(crop=_seen(c, crop), map=EvidenceKind.SIMILARITIES.drawn(c.maps["presence"]), box=c.box),
                *(_own_patch(c.examples[0]) if c.examples else ()),
            ),
            number=c.prototype,
        )
        for c in found
    ]


LOCAL_HEADINGS = ("this patch of the image", "activation map", "looks like that", "where it was found")


def global_strips(
    model: PrototypeModel, class_index: int, others: Mapping[int, Sequence[ExampleView]] | None = None
) -> tuple[list[Strip], tuple[str, ...]]:
    """All own prototypes of a class: patch, source, nearest training patches and those of other images.

    Args:
        model: of any kind.
        class_index: the class.
        others: prototype -> nearest patches of other images, e.g. of val.

    Returns:
        Strips, and the headings of their columns.
    """
    kind = model.evidence.kind
    strips, most = [], 0
    for j in model.own(class_index):
        views = example_views(model, j)
        most = max(most, len(views))
        patched = kind is not EvidenceKind.MATCHES  # a soft prototype is a mean feature and no patch
        near = [_whole(view, kind) for view in views[patched:]]
        far = [_whole(view, kind) for view in (others or {}).get(j, ())]
        strips.append(
            Strip(
                title=f"prototype {model.number(j)}",
                words=_strip_words(model, j, views),
                cells=(*(_own_patch(views[0], kind) if views and patched else ()), *near, *far),
                number=model.number(j),
            )
        )
    if kind is EvidenceKind.MATCHES:
        return strips, ("training images that match it most",)
    apart = ("nearest training patches", *[""] * max(0, most - 2)) if most > 1 else ()
    return strips, (*OWN_PATCH, *apart, *(("nearest patches of the other images",) if others else ()))


def _strip_words(model: PrototypeModel, prototype: int, views: Sequence[ExampleView]) -> tuple[str, ...]:
    owner = int(model.owner[prototype])
    weight = connections(model, owner).get(prototype, 0.0)
    words = (model.caption(prototype), f"weight {weight:+.3f}", shortened_path(views[0].path, 26) if views else "")
    return tuple(filter(None, words))


def _own_patch(view: ExampleView, kind: EvidenceKind = EvidenceKind.SIMILARITIES) -> tuple[Cell, Cell]:
    return Cell(crop=view.jpeg, box=view.box, cut=True), _whole(view, kind)


def _whole(view: ExampleView, kind: EvidenceKind) -> Cell:
    grid = None if view.map is None else kind.drawn(view.map)
    return Cell(crop=view.jpeg, map=grid, box=view.box)


def _seen(contribution: Contribution, crop: np.ndarray) -> np.ndarray:
    return crop if contribution.crop is None else contribution.crop
