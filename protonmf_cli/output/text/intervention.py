"""Interventions in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protonmf_cli.output.text.blocks import Block
from protonmf_cli.output.text.explanation import outcome_blocks

if TYPE_CHECKING:
    from protonmf_cli.jobs.intervention import Intervention
    from protonmf_cli.models.results import InterventionOnData

SHOWN_FLIPS = 12


def intervention_blocks(found: "Intervention") -> Iterator[Block]:
    """The edits, and what they change: on an image, or over labelled images."""
    said = edits_in_words(found)
    if found.outcomes is not None:
        yield from outcome_blocks(*found.outcomes, said)
    if found.on_data is not None:
        yield (("; ".join(said), "bold"),)
        yield from _data_blocks(found, found.on_data)


def _data_blocks(found: "Intervention", result: "InterventionOnData") -> Iterator[Block]:
    names = [c.shown for c in found.loaded.model.card.classes]
    yield (
        f"all classes: {result.accuracy_before:.1%} -> {result.accuracy_after:.1%} of {result.images} images right, "
        f"{len(result.flips)} flipped",
    )
    for c, (count, before, after) in result.per_class.items():
        yield (f"  {names[c]}: {before / count:.1%} -> {after / count:.1%} of {count}",)
    for flip in result.flips[:SHOWN_FLIPS]:
        yield (f"  {flip.path}: {names[flip.before]} -> {names[flip.after]}",)
    if len(result.flips) > SHOWN_FLIPS:
        yield (f"  and {len(result.flips) - SHOWN_FLIPS} more (--json lists all)",)


def edits_in_words(found: "Intervention") -> list[str]:
    """Edits class by class: "flamingo: zero prototype 2"."""
    model = found.loaded.model
    said: dict[str, list[str]] = {}
    for edit in found.edits:
        owner = int(model.owner[edit.prototype_id])
        where = "every class" if edit.everywhere else model.card.classes[edit.class_index].shown
        what = f"prototype {model.number(edit.prototype_id)}"
        if owner != edit.class_index:
            what += f" of {model.card.classes[owner].shown}"
        said.setdefault(where, []).append(f"zero {what}" if edit.factor == 0 else f"{what} x {edit.factor:g}")
    return [f"{where}: {', '.join(words)}" for where, words in said.items()]
