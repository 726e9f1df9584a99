"""Explanations and interventions in words."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from protonmf_cli.models.stability import is_unstable
from protonmf_cli.models.wording import part_name, rounded, shortened, shortened_path, usual_words
from protonmf_cli.output.text.blocks import Block, Row, TextTable

if TYPE_CHECKING:
    from protonmf_cli.models.results import Contrast, Contribution, Explanation, Outcome

MOST_NAME = 20
"""Characters of an owner's name."""
MOST_CAPTION = 32
"""The same of what a prototype was named."""
MOST_SOURCE = 36
"""Last characters of a training image's path."""


def explanation_blocks(
    explanation: "Explanation", top: int, contrast: "Contrast | None" = None, *, wide: bool
) -> Iterator[Block]:
    """Prediction, ledger, residual share, and a comparison.

    Args:
        explanation: of one image.
        top: rows that are listed one by one.
        contrast: the same class against another.
        wide: whether there is room for where each prototype comes from.
    """
    yield _answer_block(explanation)
    if explanation.class_index != explanation.predictions[0].class_index:
        why = "? the best of the classes with prototypes" if explanation.among == "prototypes" else "?"
        yield "why ", (explanation.name, "bold"), f" {explanation.probability:.1%}{why}"
    if explanation.without_prototypes:
        yield (without_prototypes_words(explanation),)
    if explanation.own_against:
        yield (own_against_words(explanation.name, explanation.own_against, explanation.own),)
    yield ledger_table(explanation, top, wide=wide)
    if explanation.form == "augmented" and not explanation.residual:
        yield (("augmented prototypes: each carries its share of the residual", "dim"),)
    yield ((f"{_unit_words(explanation)}   ledger error {explanation.ledger_error:.1e}", "dim"),)
    if explanation.unlike is not None:
        yield (f"unlike: {explanation.unlike.said}",)
    if explanation.names_note:
        yield ((explanation.names_note, "dim"),)
    if contrast is not None:
        yield from _contrast_blocks(contrast, top)


def _answer_block(explanation: "Explanation") -> Block:
    """The class, or the labels, that the model says, and the best two others."""
    told, every = explanation.said, explanation.predictions
    others = ", ".join(f"{p.name} {p.probability:.1%}" for p in every[len(told) : len(told) + 2])
    words: list[str | tuple[str, str]] = []
    for n, p in enumerate(told):
        words += [", " if n else "", (p.name, "bold"), f" {p.probability:.1%}"]
    then = "   then" if told else explanation.first_is
    return (*words, (f"{then} {others}" if others else "", "dim"), f"   {explanation.image}")


def _unit_words(explanation: "Explanation") -> str:
    """In which unit the numbers are."""
    share = explanation.residual_share
    alone = explanation.reads_amounts and explanation.form == "plain"
    unit = "amount 1: as much as usual in images of the prototype's own class; " if alone else ""
    return explanation.kind.said or f"{unit}residual share {'not defined' if share is None else rounded(share)}"


def without_prototypes_words(explanation: "Explanation") -> str:
    """What it means that the explained class has no prototypes of its own, and which class to ask for instead."""
    nearest = explanation.best_with_prototypes
    hint = (
        f" The best class with prototypes is {nearest.name} ({nearest.probability:.1%}): --class {nearest.class_index}."
        if nearest
        else ""
    )
    if not explanation.kind.adds_up:
        left = "its logit is always zero"
    elif explanation.contributions:
        left = "its rows are of other classes, and more of its logit is residual"
    else:
        left = "its logit is all residual"
    return f"{explanation.name} has no prototypes of its own in this model: {left}.{hint}"


def own_against_words(name: str, against: "Sequence[int]", own: int) -> str:
    """What it means that some of a class's own prototypes have a negative weight for it.

    Args:
        name: of the class.
        against: numbers of these prototypes, from 1.
        own: prototypes of the class.

    >>> own_against_words("tench", (2,), 3)
    'own prototype 2 of tench has a negative weight for it: its images hold that part, and it speaks against tench.'
    """
    numbers = ", ".join(map(str, against))
    if len(against) == own:
        return f"none of {name}'s own prototypes ({numbers}) speaks for it: all have negative weights."
    if len(against) == 1:
        return f"own prototype {numbers} of {name} has a negative weight for it: its images hold that part, and it speaks against {name}."
    return f"own prototypes {numbers} of {name} have negative weights for it: its images hold those parts, and they speak against {name}."


def ledger_table(explanation: "Explanation", top: int, *, wide: bool) -> TextTable:
    """One row per prototype, the largest first, then what has no place, residual, bias and their sum."""
    amounts = explanation.reads_amounts
    numbers = ("amount", "usual", "weight") if amounts else ("weight", "evidence")
    rows = [_prototype_row(explanation, c) for c in explanation.contributions[:top]]
    rows += [_sum_row(name, value, style, len(numbers)) for name, value, style in _sums(explanation, top)]
    return TextTable(
        headings=("", *numbers, "logit"),
        rows=tuple(rows),
        scale=max(abs(row.bar or 0.0) for row in rows) or 1.0,
        last="seen most in" if wide else None,
    )


def _sums(explanation: "Explanation", top: int) -> Iterator[tuple[str, float, str]]:
    """Names, values and styles of what stands below the prototypes."""
    rest = explanation.contributions[top:]
    if rest:
        yield f"{len(rest)} more", sum(c.contribution for c in rest), ""
    if explanation.unplaced is not None:
        yield "no place", explanation.unplaced, "grey50"
    if explanation.has_residual:
        yield "residual", explanation.residual, "grey50"
    if explanation.kind.adds_up:
        yield "bias", explanation.bias, "grey50"
    yield "= logit", explanation.logit, "bold"


def _sum_row(name: str, value: float, style: str, numbers: int) -> Row:
    return Row(cells=(name, *([""] * numbers), f"{value:+.2f}"), bar=value, style=style)


def _prototype_row(explanation: "Explanation", c: "Contribution") -> Row:
    borrowed = c.owner_index != explanation.class_index
    name = part_name(c.prototype, shortened(c.owner_name, MOST_NAME) if borrowed else "")
    name += f" ({shortened(c.caption, MOST_CAPTION)})" if c.caption else ""
    name += f" ({shortened(c.network, MOST_NAME)})" if c.network else ""
    name += " (unstable)" if is_unstable(c.stability) else ""
    if explanation.reads_amounts:
        numbers: tuple[str, ...] = f"{c.evidence:.2f}", range_words(c), f"{c.weight:+.2f}"
    else:
        numbers = f"{c.weight:+.3f}", f"{c.evidence:.2f}"
    source = shortened_path(c.examples[0].path, MOST_SOURCE) if c.examples else ""
    return Row(cells=(name, *numbers, f"{c.contribution:+.2f}"), bar=c.contribution, last=source)


def range_words(contribution: "Contribution") -> str:
    """The usual amounts of a prototype, e.g. "0.7 to 1.2"; empty where evidence is no amount."""
    return "" if contribution.usual is None else usual_words(contribution.usual)


def _contrast_blocks(contrast: "Contrast", top: int) -> Iterator[Block]:
    """Why one class and not the other, the largest differences first."""
    first, second = (shortened(name, MOST_NAME) for name in contrast.names)
    yield ("",)
    yield ((f"why {first} and not {second}?", "bold"),)
    pairs = {"no place": contrast.unplaced, "residual": contrast.residual, "bias": contrast.bias}
    others = {name: pair for name, pair in pairs.items() if any(pair)}
    rows = [
        Row(
            cells=(
                part_name(row.prototype, shortened(row.owner_name, MOST_NAME)),
                f"{row.amount:.2f}",
                *(f"{weight:+.2f}" for weight in row.weights),
                f"{row.difference:+.2f}",
            ),
            bar=row.difference,
        )
        for row in contrast.rows[:top]
    ]
    if hidden := contrast.rows[top:]:
        rest = sum(row.difference for row in hidden)
        rows.append(Row(cells=(f"{len(hidden)} more", "", "", "", f"{rest:+.2f}"), bar=rest))
    for name, (one, two) in others.items():
        cells = (name, "", f"{one:+.2f}", f"{two:+.2f}", f"{one - two:+.2f}")
        rows.append(Row(cells=cells, bar=one - two, style="grey50"))
    sizes = [abs(row.difference) for row in contrast.rows] + [abs(a - b) for a, b in others.values()]
    whole = (("= difference of the logits", "bold"), "", "", "", f"{contrast.difference:+.2f}")
    yield TextTable(
        headings=("", "amount", f"weight {first}", f"weight {second}", "difference"),
        rows=(*rows, Row(cells=whole)),
        scale=max(sizes) or 1.0,
    )
    yield (("amounts here are of the prototypes of both classes, read together; above, of one class alone", "dim"),)


def outcome_blocks(outcomes: "Sequence[tuple[Outcome, Outcome]]", edits: Sequence[str]) -> Iterator[Block]:
    """What was edited, then before and after side by side, of one or more classes."""
    yield (("; ".join(edits), "bold"),)
    before, after = outcomes[0]
    first, second = before.predictions[0], after.predictions[0]
    changed = {p.class_index for p in before.said} ^ {p.class_index for p in after.said}
    flipped = ("flipped", "bold red") if changed else ""
    rows = [
        Row(cells=(f"logit of {one.name}", f"{one.logit:.2f}", f"{two.logit:.2f}", f"{two.logit - one.logit:+.2f}"))
        for one, two in outcomes
    ]
    names = [f"{best.name} {best.probability:.1%}" for best in (first, second)]
    rows.append(Row(cells=("prediction", *names, flipped)))
    for rank in range(1, min(3, len(before.predictions))):
        p, q = before.predictions[rank], after.predictions[rank]
        cells = ("then" if rank == 1 else "", f"{p.name} {p.probability:.1%}", f"{q.name} {q.probability:.1%}", "")
        rows.append(Row(cells=cells))
    yield TextTable(headings=("", "before", "after", "change"), rows=tuple(rows))
