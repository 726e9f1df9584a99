"""Cards of the prototypes of a few-shot model: words and training images, ready to be drawn."""

from collections.abc import Sequence

from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.sheets import Cell, Strip
from protonmf_cli.pipelines.explaining.explanation import example_views
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, PrototypeFacts
from protonmf_cli.pipelines.fewshot.virtual_examples import VirtualExample

CARD_HEADINGS = ("training images that match it most",)
VIRTUAL_HEADINGS = ("what it would like best", "training images that match it most")

LEAST = 0.05
"""Match of a training image that stands for a prototype; the others of its best five are not shown."""


def card_strips(found: Interpretation) -> list[Strip]:
    """One strip per prototype: what it stands for, and the training images that match it most."""
    return [_strip(found.model, facts, ()) for facts in found.prototypes]


def virtual_strips(found: Interpretation, examples: Sequence[VirtualExample]) -> list[Strip]:
    """The same, beginning with the picture that the prototype would like best."""
    return [_strip(found.model, found.prototypes[one.prototype], (Cell(crop=one.picture),)) for one in examples]


def _strip(model: PrototypeModel, facts: PrototypeFacts, before: tuple[Cell, ...]) -> Strip:
    j, classes = facts.prototype, model.card.classes
    named = " or ".join(classes[c].shown for c in facts.classes()[:2])
    views = example_views(model, j)
    cells = tuple(Cell(crop=view.jpeg, map=view.map, box=view.box) for view in views if view.score >= LEAST)
    best = max(facts.probabilities)
    return Strip(
        title=f"{classes[int(model.owner[j])].shown} {model.number(j)}",
        words=(
            *filter(None, [model.caption(j)]),
            facts.kind if facts.kind == "pure" else f"{facts.kind}: {named}",
            f"{best:.0%} {classes[int(model.owner[j])].shown}",
            f"{len(facts.members)} training images",
            f"variance {facts.spread.total:.3f}",
            *(f"direction {n}: {d.share:.0%}" for n, d in enumerate(facts.directions[:2], start=1)),
        ),
        cells=(*before, *cells),
        number=j + 1,
    )
