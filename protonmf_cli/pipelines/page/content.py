"""Everything that a report shows of a model and of some images."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from protonmf_cli.models.audit import Audit
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, Skipped
from protonmf_cli.models.page import Case, Report
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import Among, Form
from protonmf_cli.pipelines.auditing.signs import Decode
from protonmf_cli.pipelines.explaining.explanation import chosen_form, connections, head_of
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation
from protonmf_cli.pipelines.fewshot.plane import plane_of
from protonmf_cli.pipelines.page.audited import audit_part
from protonmf_cli.pipelines.page.cases import bias_of, cases_of
from protonmf_cli.pipelines.page.gallery import gallery_of
from protonmf_cli.pipelines.progress import SILENT, Progress


def report_of(
    backbone: Backbone,
    model: PrototypeModel,
    batches: Iterable[ImageBatch],
    *,
    file: str,
    decode: Decode,
    form: Form | None = None,
    evaluation: Mapping[str, Any] | None = None,
    class_index: int | None = None,
    among: Among | None = None,
    explained_only: bool = False,
    interpretation: Interpretation | None = None,
    audit: Audit | None = None,
    audit_data: Sequence[str] = ("--data", "DIR"),
    progress: Progress = SILENT,
) -> Report:
    """Explain images, gather the gallery, and show an audit.

    Args:
        backbone, model: the network and its prototypes.
        batches: images to explain; `class_index` is the true class, -1 where it is unknown.
        file: name of the model file.
        decode: reads the pictures of the training patches.
        form: plain or augmented; as the model is stored if None.
        evaluation: `protonmf.evaluation/1` of this model.
        class_index: a class that is explained first, instead of the best one.
        among: of which classes that is the best, see `chosen_among`.
        explained_only: show only the classes that are explained.
        interpretation: of a few-shot model.
        audit: of the model.
        audit_data: words of a command that name the images of the audit.
        progress: advanced by the images.

    Raises:
        InputError: the augmented form is asked for, but the model has none.
    """
    form = chosen_form(model, form)
    unreadable: list[Skipped] = []

    def watched() -> Iterable[ImageBatch]:
        for batch in batches:
            unreadable.extend(batch.skipped)
            yield batch

    cases = tuple(
        cases_of(
            backbone, model, watched(), model_name=file, form=form, class_index=class_index, among=among,
            progress=progress,
        )
    )  # fmt: skip
    explained = {explanation.class_index for case in cases for explanation in case.explanations}
    listed = _listed(model, explained, audit, fills=not explained_only)
    kept = _kept(model, listed)
    shown = _shown(model, cases) if explained_only else frozenset(kept)
    gallery = gallery_of(
        model,
        evaluation,
        decode,
        shown,
        interpretation,
        kept=kept,
        head=head_of(backbone, model) if model.adds_up else None,
    )
    facts = explained if explained_only else listed
    gallery = replace(gallery, classes=tuple(fact for fact in gallery.classes if fact.class_index in facts))
    return Report(
        model=model,
        file=file,
        form=form,
        bias=bias_of(backbone, model, form),
        gallery=gallery,
        cases=cases,
        plane=None if interpretation is None else plane_of(model, interpretation),
        evaluation=evaluation,
        unreadable=tuple(unreadable),
        shown=shown,
        listed=listed,
        left_out=() if explained_only else _left_out(model, listed),
        audit=None if audit is None else audit_part(audit, audit_data, gallery, model.evidence.kind),
    )


MOST_CLASSES = 1000
"""Classes with prototypes that a page has rows of; of more, those that are explained and those that are like them."""
MOST_PROTOTYPES = 4000
"""That a page of so many classes names before classes are left out that nothing explained needs."""


def _narrows(model: PrototypeModel) -> bool:
    return model.adds_up and len(model.active_classes) > MOST_CLASSES


def _listed(model: PrototypeModel, explained: Collection[int], audit: Audit | None, *, fills: bool) -> tuple[int, ...]:
    """Classes that a page has rows of, rising; with others up to `MOST_CLASSES` if it fills up."""
    found = set(explained)
    active = model.active_classes.tolist()
    if audit is not None:
        found.update(int(model.owner[one.prototype_id]) for one in audit.candidates)
    if not _narrows(model):
        return tuple(sorted(found.union(active)))
    like = {int(model.owner[j]) for c in explained for j in connections(model, c)}
    named = _named(model, found)
    for c in (*sorted(like), *(active if fills else ())):
        named |= _named(model, (c,))
        if len(found) >= MOST_CLASSES or len(named) > MOST_PROTOTYPES:
            break
        found.add(c)
    return tuple(sorted(found))


def _left_out(model: PrototypeModel, listed: Sequence[int]) -> tuple[str, ...]:
    if not _narrows(model):
        return ()
    return (
        f"The page has rows of {len(listed)} of {len(model.active_classes)} classes: those explained, those that "
        "are like them, and the first of the others.",
    )


def _kept(model: PrototypeModel, listed: Sequence[int]) -> tuple[int, ...]:
    """Prototypes that a page knows, rising."""
    return tuple(sorted(_named(model, listed)) if _narrows(model) else range(len(model.prototypes)))


def _named(model: PrototypeModel, classes: Iterable[int]) -> set[int]:
    """Prototypes that classes are connected to, and all own ones of those classes and of the owners."""
    owners, used = set(classes), set[int]()
    for c in tuple(owners):
        used.update(connections(model, c))
    owners.update(int(model.owner[j]) for j in used)
    return used.union(j for c in owners for j in model.own(c))


def _shown(model: PrototypeModel, cases: Iterable[Case]) -> frozenset[int]:
    """Prototypes that the explanations name, and all own ones of the classes explained."""
    found: set[int] = set()
    for case in cases:
        found.update(c.prototype_id for c in case.similar)
        for explanation in case.explanations:
            found.update(model.own(explanation.class_index), connections(model, explanation.class_index))
    return frozenset(found)
