"""The gallery of a model: what is known of every class and prototype, and why to look at some prototypes twice."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from protonmf_cli.models.card import ClassFigures
from protonmf_cli.models.page import Gallery, GalleryClass, GalleryPrototype
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.pipelines.auditing.signs import Decode, Signs
from protonmf_cli.pipelines.explaining.explanation import example_views
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, PrototypeFacts


def gallery_of(
    model: PrototypeModel,
    evaluation: Mapping[str, Any] | None,
    decode: Decode,
    shown: Collection[int] | None = None,
    interpretation: Interpretation | None = None,
    *,
    kept: Sequence[int] | None = None,
    head: Tensor | None = None,
) -> Gallery:
    """Facts about the classes that have prototypes.

    Args:
        model: of any kind.
        evaluation: `protonmf.evaluation/1` of this model, whose accuracy of each class goes before that on the
            training images.
        decode: reads the pictures of the training patches.
        shown: prototypes that are looked at; the others are named only. All if None.
        interpretation: of a few-shot model, where it is known already.
        kept: prototypes that are named, beside those that the ones looked at are like. All if None.
        head: (C, D) rows of the head of an additive model, where they are known.
    """
    everything = range(len(model.prototypes))
    looked_at = everything if shown is None else sorted(shown)
    signs = Signs(model, decode, interpretation, among=looked_at, head=head)
    named = everything if kept is None else sorted({*kept, *(n.prototype_id for j in looked_at for n in signs.near[j])})
    prototypes = []
    for j in named:
        owner, number = int(model.owner[j]), model.number(j)
        if shown is not None and j not in shown:
            prototypes.append(_named_only(model, j, number, signs.users[j]))
            continue
        examples = tuple(example_views(model, j))
        prototypes.append(
            GalleryPrototype(
                prototype_id=j,
                number=number,
                owner_index=owner,
                stability=model.stability(j),
                examples=examples,
                near=signs.near[j],
                users=signs.users[j],
                signs=signs.of(j, examples),
                facts=_facts(signs.facts[j]) if signs.facts else (),
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
    own: dict[int, list[GalleryPrototype]] = {}
    for prototype in prototypes:
        own.setdefault(prototype.owner_index, []).append(prototype)
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
