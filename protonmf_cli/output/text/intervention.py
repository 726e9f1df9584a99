"""Interventions in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protonmf_cli.models.wording import part_name
from protonmf_cli.output.text.blocks import Block, Row, TextTable
from protonmf_cli.output.text.explanation import outcome_blocks

if TYPE_CHECKING:
    from protonmf_cli.jobs.intervention import Intervention
    from protonmf_cli.models.results import HeldOut, InterventionOnData, Refit

SHOWN_FLIPS = 12


def intervention_blocks(found: "Intervention") -> Iterator[Block]:
    """The edits, the refit of the last layer, and what they change: on an image, or over labelled images."""
    said = edits_in_words(found)
    if found.outcomes is not None:
        yield from outcome_blocks([found.outcomes, *found.also], said)
    elif found.on_data is not None or found.refit is not None:
        yield (("; ".join(said), "bold"),)
    if found.refit is not None:
        yield from _refit_blocks(found, found.refit)
    if found.on_data is not None:
        yield from _data_blocks(found, found.on_data)


def _refit_blocks(found: "Intervention", refit: "Refit") -> Iterator[Block]:
    """What the step was chosen by; nothing where none could be tried, which is said when it happens."""
    names = [c.shown for c in found.loaded.model.card.classes]
    if refit.ridge is not None:
        yield (f"last layer refitted on {refit.images} images of {refit.classes} classes, ridge {refit.ridge:g}",)
    elif refit.whole.refitted is not None:
        yield ("last layer as the edit left it; the best step that was tried:",)
    if refit.whole.refitted is not None:
        shown = [("all classes", refit.whole), *((names[c], figures) for c, figures in refit.per_class.items())]
        yield TextTable(
            headings=("held-out images right", "before", "edit alone", "refitted", "of"),
            rows=tuple(Row(cells=(name, *_shares(figures), f"{figures.images}")) for name, figures in shown),
        )
        along = [(_name_of(found, j), figures) for j, figures in refit.taken_along.items()]
        if along:
            yield TextTable(
                headings=("others taken along by a patch of", "before", "edit alone", "refitted", "of"),
                rows=tuple(Row(cells=(name, *_shares(figures), f"{figures.images}")) for name, figures in along),
            )


def _name_of(found: "Intervention", prototype: int) -> str:
    model = found.loaded.model
    return part_name(model.number(prototype), model.card.classes[int(model.owner[prototype])].shown)


def _shares(figures: "HeldOut") -> list[str]:
    return [f"{right / figures.images:.1%}" for right in (figures.before, figures.edited, figures.refitted or 0)]


def _data_blocks(found: "Intervention", result: "InterventionOnData") -> Iterator[Block]:
    names = [c.shown for c in found.loaded.model.card.classes]
    alone = "" if result.accuracy_unrefitted is None else f" ({result.accuracy_unrefitted:.1%} with the edit alone)"
    yield (
        f"all classes: {result.accuracy_before:.1%} -> {result.accuracy_after:.1%}{alone} of {result.images} "
        f"{'labels found' if found.loaded.model.multi_label else 'images right'}, {len(result.flips)} flipped",
    )
    for c, (count, before, after) in result.per_class.items():
        yield (f"  {names[c]}: {before / count:.1%} -> {after / count:.1%} of {count}",)
    for flip in result.flips[:SHOWN_FLIPS]:
        first, second = (f"not {names[flip.target]}" if c < 0 else names[c] for c in (flip.before, flip.after))
        yield (f"  {flip.path}: {first} -> {second}",)
    if len(result.flips) > SHOWN_FLIPS:
        yield (f"  and {len(result.flips) - SHOWN_FLIPS} more (--json lists all)",)


def edits_in_words(found: "Intervention") -> list[str]:
    """Edits class by class: "flamingo: zero prototype 2"."""
    model = found.loaded.model
    said: dict[str, list[str]] = {}
    for edit in found.edits:
        owner = int(model.owner[edit.prototype_id])
        where = "every class" if edit.everywhere else model.card.classes[edit.class_index].shown
        borrowed = owner != edit.class_index
        what = part_name(model.number(edit.prototype_id), model.card.classes[owner].shown if borrowed else "")
        said.setdefault(where, []).append(f"zero {what}" if edit.factor == 0 else f"{what} x {edit.factor:g}")
    return [f"{where}: {', '.join(words)}" for where, words in said.items()]
