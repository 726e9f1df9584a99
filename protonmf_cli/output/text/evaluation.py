"""An evaluation in words."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protonmf_cli.output.records.evaluation import NAMES
from protonmf_cli.output.text.blocks import Block, Row, TextTable
from protonmf_cli.output.text.tables import table_blocks

if TYPE_CHECKING:
    from protonmf_cli.jobs.evaluation import Evaluation
    from protonmf_cli.models.results import UnlikeFigures


def evaluation_blocks(evaluation: "Evaluation") -> Iterator[Block]:
    """Accuracy and agreement, what the prototypes carry, and the further tables."""
    yield _scores_table(evaluation)
    for line in _scores_lines(evaluation):
        yield (line,)
    for table in evaluation.tables.values():
        yield ("",)
        yield from table_blocks(table)


def _scores_table(evaluation: "Evaluation") -> TextTable:
    """Accuracy and agreement of each way to answer; also among the classes present where some are not."""
    scores = evaluation.scores
    headings = [f"{scores.images} images", "accuracy", "(95 %)", "agreement"]
    if evaluation.is_partial:
        headings += [f"accuracy of {scores.classes}", f"agreement of {scores.classes}"]
    rows = []
    for key in (key for key in NAMES if key in scores.accuracy):
        low, high = scores.intervals["accuracy"][key]
        row = [NAMES[key], _percent(scores.accuracy[key]), f"{low:.1%}-{high:.1%}", _percent(scores.agreement.get(key))]
        if evaluation.is_partial:
            among = scores.restricted
            row += [_percent(among["accuracy"][key]), _percent(among["agreement"].get(key))]
        rows.append(Row(cells=tuple(row)))
    return TextTable(headings=tuple(headings), rows=tuple(rows))


def _scores_lines(evaluation: "Evaluation") -> Iterator[str]:
    """What stands below the table: logit share, exactness, and among which classes was counted."""
    scores = evaluation.scores
    if scores.logit_share is not None:
        whose = "logit of an image's first label" if scores.multi_label else "true class's logit"
        yield f"the prototypes carry {scores.logit_share:.0%} of the {whose} (median), the residual the rest"
    if scores.max_abs_logit_difference is not None:
        yield f"largest difference of a logit from the black box: {scores.max_abs_logit_difference:.1e}"
    if scores.multi_label:
        least = min(row["agreement"] for row in scores.per_class.values())
        yield f"agreement per label: the same answer for {least:.2%} of the images at least, for each of {scores.classes} labels"
        yield "accuracy and agreement are of sets of labels: those in both of those in either (Jaccard), per image"
    if scores.unlike is not None:
        yield from _unlike_lines(scores.unlike)
    if evaluation.is_partial:
        yield (
            f'accuracy is among all {evaluation.classes} classes; "of {scores.classes}" only among the classes present'
        )


def _unlike_lines(unlike: "UnlikeFigures") -> Iterator[str]:
    """How usual the images are for their predicted classes."""
    if unlike.share is not None:
        middle, most = unlike.quantiles["0.5"], unlike.quantiles["0.95"]
        yield (
            f"unlike: {unlike.share:.1%} of the images are less usual for their predicted class than nineteen in twenty "
            f"training images (score above 1; median {middle:.2f}, nineteen in twenty below {most:.2f})"
        )
    if unlike.unknown:
        yield f"unlike: not known of {unlike.unknown} images, whose predicted class has no training images in this model"


def bare_classes_note(evaluation: "Evaluation") -> str | None:
    """How to read the figures of a part of the model where classes have no prototypes; None where all have some."""
    model = evaluation.loaded.model
    bare = evaluation.classes - len(model.active_classes)
    if not bare or not model.adds_up:
        return None
    return (
        f"{bare} classes have no prototypes: with the prototypes alone they answer with their bias, and with the "
        f"residual alone they have their whole logit. Compare those two rows among the {evaluation.scores.classes} "
        "classes."
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
