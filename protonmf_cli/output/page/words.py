"""The texts of a report: badge, tables, where the model comes from, and a glossary."""

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from protonmf_cli import __version__
from protonmf_cli.models.backbone import Preprocessing
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.page import Badge, PageWords, Report, WordTable
from protonmf_cli.models.sheets import Column
from protonmf_cli.models.wording import known
from protonmf_cli.output.records.evaluation import NAMES
from protonmf_cli.output.text.tables import written_cell

METHODS = {"protonmf": "prototypes after the fact", "protopnet": "ProtoPNet", "fewshot": "few-shot prototypes"}
GLOSSARY = {
    "prototype": "A direction in the network's features that stands for a part of a class, shown by the training patches where it is strongest.",
    "evidence": "How much of a prototype an image holds.",
    "weight": "What one unit of evidence adds to a class's logit. Below zero it speaks against the class.",
    "contribution": "Weight × evidence: what a prototype adds to the logit.",
    "logit": "The score of a class: the sum of all rows. The class with the largest one is the answer.",
    "probability": "The share of a class when the scores of all classes are made to add up to 100 % (softmax). It says how far a class is ahead, not how often such an answer is right.",
    "map": "Where in the picture the prototype is: the more colour, the more of it. “What each place adds” shows the same in points of the logit: red for the class, blue against it.",
    "nearest": "Prototypes of other classes that are most like this one; in brackets the cosine, 1 for the same direction and 0 for nothing in common.",
    "accuracy": "The share of images whose true class is the answer.",
    "agreement": "The share of images for which the prototypes and the classifier they were made of answer the same.",
    "95 %": "Where the true value lies with a probability of 95 %: the fewer the images, the wider.",
}
LABELS = {
    "logit": "The score of a label: the sum of all rows. Above 0 the label is said.",
    "probability": "How sure the classifier is that the image has this label, each label by itself (sigmoid): above 50 % it is said. Labels do not exclude each other.",
    "accuracy": "Labels that are both said and true, of those that are either, as a mean over the images (Jaccard).",
    "agreement": "Labels that both the prototypes and the classifier they were made of say, of those that either says, as a mean over the images.",
}
"""What is said otherwise where an image may have several labels."""
SUMS = {
    "bias": "What a class gets whatever the image shows.",
    "ledger error": "What the rows and the network's own logit differ by: rounding, when all is well.",
    "exactness": "The largest difference between a logit of the prototypes with all that is left, and the classifier's own.",
    "cancellation": "The sum of the sizes of all rows over the size of their sum: 1 where no row speaks against another.",
    "residual": "What the prototypes leave of the logit. It is always shown and cannot be switched off.",
    "residual share": "What the prototypes do not carry of how far the logit lies above the mean of all classes with prototypes; below 0 where they carry more than all of it. Of a class it is the median over its training images. The residual's own row is of the whole logit, so it may have another sign.",
    "stability": "Cosine of a prototype with its match when it is found in another half of the class's images; below 0.7 other images would give another one.",
    "exact": "Contributions, residual, bias and what has no place add up to the network's own logits; the largest difference was measured.",
}
SIMILARITIES = {"similarity": "Of the most similar patch of the image to the prototype's own training patch."}
MATCHES = {
    "match": "The share of an image that a prototype takes; all matches of an image add up to 1.",
    "ambiguous": "A second class is at least half as probable as the first.",
    "unused": "No training image matches the prototype most.",
}
AMOUNTS = {
    "evidence": "How much of a prototype an image holds: here its amount.",
    "amount": "How much of a prototype an image holds once the other prototypes of the class, and its nearest classes, have explained their share: least squares. 1 is the usual amount in training images of the prototype's own class; a negative amount says less than none. The map beside it adds up to it, and full colour is what is usual at the strongest place.",
    "usual": "The amounts that most training images of the prototype's own class hold: one in twenty holds less, one in twenty more.",
    "weight": "What an amount of 1 adds to a class's logit: the classifier's own weights on that prototype.",
    "contribution": "Amount × weight: what a prototype adds to the logit. Switching it off takes that away, and what it has of “no place”.",
    "unlike": "How far the image is from the training images of the class that was answered: 0 is usual, above 1 it is further off than 95 % of them.",
    "no place": "What parts of the network without a place in the picture (a class token's start, biases) add beyond their mean.",
}
AUGMENTED = {
    "contribution": "Weight × evidence, and the prototype's share of the residual: what it adds to the logit.",
    "residual": "What the prototypes leave of the head. Here it is shared out: every prototype carries a part of it.",
}
AUDIT = {
    "shortcut": "A feature that a class is told by without being a part of it: a logo, a border, a watermark. The audit tries every prototype; what it finds is a reason to look and to take the prototype out, not a proof.",
    "pasted": "The strongest places of the prototype's training pictures, at most a sixth of each, put at their own place into images of other classes. Beside it stand as large pieces of the same pictures from other places, and the patches of the class's other prototypes.",
    "taken out": "The prototype removed from every class, or from its own class where the model cannot do more.",
    "recoloured": "Images of other classes with the mean and the spread of the colours of the prototype's training pictures.",
    "interval": "Where the true share lies with a probability of 95 % (Wilson): the fewer the images, the wider.",
    "score": "How much a prototype looks like a shortcut, from 0 to 1: the share of other images that follow it, times what its class keeps without it.",
    "outside": "The share of the prototype's maps that lies outside the masks or boxes of the objects.",
}


BEFORE_EDITS = ("exactness", "accuracy", "residual share", "cancellation")
"""Lines of `inspect` that were measured at the conversion."""


def page_words(report: Report, lines: dict[str, str], *, nameless: bool) -> PageWords:
    """All texts of a page.

    Args:
        report: what is shown.
        lines: what `inspect` says of the model, by topic.
        nameless: no command can name what was explained.
    """
    model, card = report.model, report.model.card
    lines = dict(lines)
    for topic in BEFORE_EDITS if card.edits else ():
        if topic in lines:
            lines[topic] = f"before the edits: {lines[topic]}"
    count = f"{len(model.parts)} prototypes of {len(model.active_classes)} classes"
    return PageWords(
        title=" + ".join(each.source.short_name for each in card.members or (card,)),
        subtitle=f"{METHODS.get(card.method, card.method)}: {count}",
        about=_about(report),
        badge=_badge(report),
        lines=lines,
        tables=tuple(evaluation_tables(report.evaluation)) if report.evaluation else (),
        skipped=(*report.unreadable, *(card.data.skipped or ())),
        provenance=_provenance(report),
        glossary={
            **GLOSSARY,
            **_glossary_of(model.evidence.kind),
            **(LABELS if model.multi_label else {}),
            **(AUGMENTED if report.form == "augmented" else {}),
            **({} if report.audit is None else AUDIT),
        },
        version=__version__,
        evidence=model.evidence.kind.said,
        nameless=nameless,
    )


def _about(report: Report) -> str:
    """What the page is, for somebody who has never seen one."""
    card, kind = report.model.card, report.model.evidence.kind
    name = " + ".join(each.source.short_name for each in card.members or (card,))
    if kind.adds_up:
        does = (
            "it looks for prototypes, parts of its classes that training images show, and the score of a class is the sum "
            "of what they add and what they leave unexplained"
        )
    elif kind.is_of_patches:
        does = "it compares an image with training patches, its prototypes, and the score of a class is the sum of what they add"
    else:
        does = "it matches an image with a few prototypes, which stand for training images, and the best match decides"
    named = "" if card.names is None else f" Names in quotation marks behind prototypes: {card.names.source}."
    return f"This page shows how the image classifier {name} decides: {does}.{named} Click a word with a question mark to see what it means."


def _glossary_of(kind: EvidenceKind) -> dict[str, str]:
    match kind:
        case EvidenceKind.PROJECTIONS:
            return SUMS
        case EvidenceKind.AMOUNTS:
            return SUMS | AMOUNTS
        case EvidenceKind.SIMILARITIES:
            return SIMILARITIES
        case EvidenceKind.MATCHES:
            return MATCHES
        case _:
            assert_never(kind)


def _badge(report: Report) -> Badge:
    card = report.model.card
    if card.edits:
        words = (
            f"{len(card.edits)} prototypes were changed by hand: the model no longer answers as its classifier does."
        )
        return Badge(kind="edited", title="Edited", words=words)
    measured, readout = card.conversion, card.readout
    if measured is None:
        trained = card.protopnet or card.fewshot
        figures = {k: v for k, v in trained.accuracy.items() if v is not None} if trained else {}
        accuracy = ", ".join(f"{value:.1%} {name.replace('_', ' ')}" for name, value in figures.items())
        words = "Decisions are made of prototypes alone: contributions add up to the logits."
        return Badge(kind="trained", title="No residual", words=words + (f" Accuracy: {accuracy}." if accuracy else ""))
    words = (
        f"No logit differs from the classifier's own by more than {known(readout.max_abs_logit_difference, '.1e')} on "
        f"{readout.images_checked} images, and {known(measured.agreement, '.2%')} of the decisions agree."
    )
    errors = [explanation.ledger_error for case in report.cases for explanation in case.explanations]
    if errors:
        where = f"the {len(report.cases)} images" if len(report.cases) > 1 else "the image"
        words += f" Measured again on {where} of this page: {max(errors):.1e}."
    return Badge(kind="exact", title="Same decisions", words=words)


def evaluation_tables(evaluation: Mapping[str, Any]) -> list[WordTable]:
    """The tables of `evaluate --json`."""
    return [_accuracy(evaluation)] + [_table(table) for table in evaluation["tables"].values()]


def _accuracy(evaluation: Mapping[str, Any]) -> WordTable:
    def percent(value: float | None) -> str:
        return "" if value is None else f"{value:.1%}"

    intervals = evaluation["intervals"].get("accuracy", {})
    restricted, classes = evaluation["restricted"], evaluation["classes"]
    rows = []
    for key, name in NAMES.items():
        value = evaluation["accuracy"].get(key)
        if value is None:
            continue
        low, high = intervals.get(key, (None, None))
        rows.append(
            (
                name, percent(value), f"{percent(low)} – {percent(high)}" if low is not None else "",
                percent(evaluation["agreement"].get(key)), percent(restricted["accuracy"].get(key)),
                percent(restricted["agreement"].get(key)),
            )
        )  # fmt: skip
    notes = []
    if (largest := evaluation["exactness"]["max_abs_logit_difference"]) is not None:
        notes.append(f"Largest difference of a logit from the black box: {largest:.1e}.")
    if (share := evaluation["logit_share"]["prototypes_only"]) is not None:
        notes.append(f"The prototypes carry {share:.0%} of the true class's logit (median).")
    head = ("", "accuracy", "95 %", "agreement", f"accuracy among {classes} classes", f"agreement among {classes}")
    return WordTable(
        title=f"Evaluation on {evaluation['images']} images", head=head, rows=tuple(rows), notes=tuple(notes)
    )


def _table(table: Mapping[str, Any]) -> WordTable:
    columns = [Column(**column) for column in table["columns"]]
    rows = tuple(tuple(written_cell(column, row, True) for column in columns) for row in table["rows"])
    title, notes = table["title"], table["notes"]
    if not isinstance(title, str) or not isinstance(notes, list):
        raise TypeError("a table has a title and a list of notes")
    return WordTable(
        title=title[:1].upper() + title[1:],
        head=tuple(column.heading for column in columns),
        rows=rows,
        notes=tuple(map(str, notes)),
    )


def _provenance(report: Report) -> dict[str, str]:
    card = report.model.card
    data = card.data
    return {
        "model file": report.file,
        "network": f"{card.source.name} ({card.source.architecture})",
        "weights, sha256": card.source.digest,
        "training data, sha256": data.digest,
        "training images": str(data.images or ""),
        "input": "; ".join(dict.fromkeys(_preprocessing(each.preprocessing) for each in card.members or (card,))),
        "options": ", ".join(_written(card.stored_options)),
        "seed": str(card.seed),
        "versions": ", ".join(f"{name} {version}" for name, version in card.versions.items()),
    }


def _written(options: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """name=value, those of groups as group.name=value."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from _written(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}={value}"


def _preprocessing(used: Preprocessing) -> str:
    size = " × ".join(map(str, used.input_size[1:]))
    return f"{size} pixels, {used.interpolation}, {used.crop_mode} crop of {used.crop_pct:g}"
