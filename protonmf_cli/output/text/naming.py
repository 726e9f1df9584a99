"""Names of prototypes in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protonmf_cli.models.wording import part_name, shortened
from protonmf_cli.output.text.blocks import Block, Row, TextTable

if TYPE_CHECKING:
    from protonmf_cli.jobs.naming import Naming
    from protonmf_cli.pipelines.naming import Fit

MOST_WORD = 28
"""Characters of a word."""
MOST_NAME = 20
"""The same of a class."""


def naming_blocks(naming: "Naming") -> Iterator[Block]:
    """The name of every prototype, and what the names are made of."""
    facts = naming.facts
    if facts is None:
        yield (f"{naming.dropped} name{'s' * (naming.dropped != 1)} taken away",)
        return
    yield TextTable(
        left=frozenset({0, 1, 5}),
        headings=("", "name", "cosine", "margin", "share", "second"),
        rows=tuple(_row(naming, f) for f in naming.fits),
    )
    named, count = len(facts.prototypes), len(naming.fits)
    yield (
        f"{named} of {count} prototypes {'has' if named == 1 else 'have'} a name: its cosine is {facts.min_margin:.4f} or "
        "more before that of the second word",
    )
    yield ((f"{facts.tower}, weights {facts.weights[:12]}, {facts.words} words, {facts.template!r}", "dim"),)
    yield (("captions: no decision of the model and no number of an explanation depends on them", "dim"),)


def _row(naming: "Naming", fit: "Fit") -> Row:
    model, near = naming.model, fit.nearest
    owner = model.card.classes[int(model.owner[fit.prototype_id])].shown
    first = part_name(model.number(fit.prototype_id), shortened(owner, MOST_NAME))
    if near is None:
        return Row(cells=(first, "no patches", "", "", "", ""), style="grey50")
    return Row(
        cells=(
            first,
            shortened(near.word, MOST_WORD) if fit.named else f"no name ({shortened(near.word, MOST_WORD)})",
            f"{near.score:.3f}",
            f"{near.margin:.4f}",
            f"{near.share:.0%}",
            shortened(near.second, MOST_WORD),
        ),
        style="" if fit.named else "grey50",
    )
