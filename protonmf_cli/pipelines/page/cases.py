"""Explained images of a report: what is drawn of each, and the numbers that every intervention follows from."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.models.answers import probabilities
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.page import Case, Neighbours
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, Contribution, Explanation
from protonmf_cli.options import Among, Form
from protonmf_cli.pipelines.explaining.choice import best_class, chosen_among, next_class
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import Answer, answers_of, explain_answer, has_rest, head_times
from protonmf_cli.pipelines.fewshot.interpretation import position_of
from protonmf_cli.pipelines.fewshot.plane import place_of
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.protopnet.analyses import contributions_of, most_similar

DRAWN = 5
"""Prototypes of one explanation whose maps are kept, the largest contributions first."""
SIMILAR = 10
"""Most similar prototypes of all classes, for ProtoPNet's local analysis."""


def cases_of(
    backbone: Backbone,
    model: PrototypeModel,
    batches: Iterable[ImageBatch],
    *,
    model_name: str,
    form: Form,
    class_index: int | None = None,
    among: Among | None = None,
    progress: Progress = SILENT,
) -> Iterator[Case]:
    """Explain the predicted class of every image, the runner-up, the best other class with prototypes, the true class.

    Args:
        backbone, model: the network and its prototypes.
        batches: images; `class_index` is the true class, or one of several, -1 where it is unknown.
        model_name: for the explanations.
        form: plain or augmented, see `chosen_form`.
        class_index: a class that is explained first, instead of the best one.
        among: of which classes that is the best, see `chosen_among`.
        progress: advanced by the images.
    """
    among = chosen_among(model, among)
    for batch in batches:
        if len(batch.sources):
            answers = answers_of(backbone, model, batch.crops)
            for source, answer, targets in zip(batch.sources, answers, _targets(batch), strict=True):
                explained = best_class(model, answer.logits, among) if class_index is None else class_index
                yield _case(backbone, model, answer, source.path, model_name, form, explained, targets)
                progress.advance()
        progress.advance(len(batch.skipped))


def _targets(batch: ImageBatch) -> list[tuple[int, ...]]:
    """The true classes of each image, where they are known."""
    own = () if batch.class_index < 0 else (batch.class_index,)
    return [labels or own for labels in batch.labels or [()] * len(batch.sources)]


MOST_EXPLAINED = 5
"""Labels of an image that are explained because they are said."""


def _case(
    backbone: Backbone,
    model: PrototypeModel,
    answer: Answer,
    image: str,
    model_name: str,
    form: Form,
    explained: int,
    targets: tuple[int, ...],
) -> Case:
    count = MOST_EXPLAINED if model.multi_label else 2
    best = answer.logits.topk(min(count, len(answer.logits))).indices.tolist()
    best = best[:2] + [c for c in best[2:] if answer.logits[c] > 0]
    nearest = next_class(model, answer.logits, explained)
    wanted = list(dict.fromkeys(c for c in (explained, *best, *targets, nearest) if c is not None))
    logits, top = answer.logits, int(answer.logits.argmax())
    contrasts, similar, neighbours = _beyond(backbone, model, answer, wanted, best[0])
    return Case(
        explanations=tuple(
            _bare(
                explain_answer(
                    backbone, model, answer, image=image, model_name=model_name, class_index=c, form=form, most=DRAWN
                )
            )
            for c in wanted
        ),
        crops=tuple(picture.permute(1, 2, 0).numpy() for picture in backbone.pictures(answer.crop)),
        evidence=_evidence(model, answer).numpy(),
        beside=_beside(answer, model, model.prototypes),
        logits=logits.numpy(),
        unplaced=_unplaced(backbone, model, answer),
        reach=_reach(model, answer, form).numpy(),
        beside_reach=None if form == "plain" else _beside(answer, model, model.residual),
        contrasts=contrasts,
        top=top,
        probability=float(probabilities(logits, multi_label=model.multi_label)[top]),
        targets=targets,
        similar=similar,
        neighbours=neighbours,
    )


def _beyond(
    backbone: Backbone, model: PrototypeModel, answer: Answer, wanted: Sequence[int], best: int
) -> tuple[tuple[Contrast, ...], tuple[Contribution, ...], Neighbours | None]:
    """What only models of one kind show beside their explanations: contrasts, most similar prototypes, neighbours."""
    match model.evidence:
        case Projections():
            return (), (), None
        case Amounts():
            return tuple(contrast_of(model, answer, wanted[0], c) for c in wanted[1:]), (), None
        case NearestPatch():
            similar = contributions_of(backbone, model, answer, most_similar(answer)[:SIMILAR], best)
            return (), _without_pictures(similar), None
        case SoftMatch():
            return (), (), _neighbours(model, answer)
        case other:
            assert_never(other)


def _bare(explanation: Explanation) -> Explanation:
    """Without what the gallery and the case hold anyway: a report may explain thousands of images."""
    return replace(explanation, contributions=_without_pictures(explanation.contributions))


def _without_pictures(contributions: tuple[Contribution, ...]) -> tuple[Contribution, ...]:
    return tuple(replace(c, examples=(), crop=None) for c in contributions)


def _evidence(model: PrototypeModel, answer: Answer) -> Tensor:
    """(P,)"""
    if answer.response is not None:
        return answer.response.evidence[0]
    return _times(model.prototypes, answer.read[0, 0])


ROWS_AT_ONCE = 4096


def _times(vectors: Tensor, row: Tensor) -> Tensor:
    """(n,) float64 products of vectors (n, D) with a row (D,) in float64."""
    return torch.cat([some.cpu().double() @ row for some in vectors.split(ROWS_AT_ONCE)])


def _rest(answer: Answer, model: PrototypeModel) -> Tensor | None:
    """(D,) float64 the rows without a place, less their mean; None where there are none."""
    if model.amounts is None or not has_rest(model, answer):
        return None
    return answer.read[0, 1] - model.amounts.unplaced_mean.double()


def _beside(answer: Answer, model: PrototypeModel, vectors: Tensor) -> np.ndarray | None:
    """Projections of the rows without a place, less their mean, on (n, D) vectors: (n,)."""
    rest = _rest(answer, model)
    return None if rest is None else _times(vectors, rest).numpy()


def _unplaced(backbone: Backbone, model: PrototypeModel, answer: Answer) -> np.ndarray | None:
    """(C,) what the rows without a place add to each logit; None where there are none."""
    rest = _rest(answer, model)
    return None if rest is None else head_times(backbone, model, rest).numpy()


def _reach(model: PrototypeModel, answer: Answer, form: Form) -> Tensor:
    """(C,) what augmented prototypes share."""
    if form == "plain":
        return torch.zeros(len(model.bias), dtype=torch.float64)
    return torch.where(model.connected, _times(model.residual, answer.read[0, 0]), 0.0)


def bias_of(backbone: Backbone, model: PrototypeModel, form: Form) -> np.ndarray:
    """(C,) what does not depend on the image, as explanations count it."""
    bias, intercept = model.bias.double(), model.intercept.double()
    whole = bias + intercept
    if model.amounts is not None and model.amounts.unplaced_mean.any():
        whole = bias + head_times(backbone, model, model.amounts.unplaced_mean.double())
    return (whole if form == "plain" else torch.where(model.connected, whole - intercept, whole)).numpy()


def _neighbours(model: PrototypeModel, answer: Answer) -> Neighbours:
    position = position_of(model, answer.rows)
    classes = model.card.classes
    return Neighbours(
        place=place_of(model, answer.rows),
        nearest=tuple((n.source.path, classes[n.label].shown, n.distance) for n in position.neighbours),
        typical=position.typical,
    )
