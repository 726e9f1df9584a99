"""From a few-shot fit to a prototype model, and the training images that stand for its prototypes."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace

import torch
from torch import Tensor

from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.maths.soft_prototypes import matches
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import DataFacts, FewShotFigures
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.prototype import Examples, PrototypeModel, model_of_head
from protonmf_cli.models.soft_matching import Samples, SoftMatch
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.explaining.by_similarity import presence
from protonmf_cli.pipelines.fewshot.features import readout_of
from protonmf_cli.pipelines.fewshot.fitting import PrototypeFit
from protonmf_cli.pipelines.model_cards import bare_card, data_facts, readout_facts
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.training_examples import FoundExamples, first_different, gathered_examples, wanted_of

METHOD = "fewshot"


def fewshot_model(
    fit: PrototypeFit, backbone: Backbone, samples: Samples, options: FewShotOptions, data: DataFacts
) -> PrototypeModel:
    """The fitted model as the noun that every command takes, still without pictures.

    Prototypes are sorted by the class they speak for most (where they started, if they speak for none), then as they
    were fitted. Weights that are zero are no connections.
    """
    readout = readout_of(backbone)
    most = fit.model.weights.max(dim=0)
    winner = torch.where(most.values > 0, most.indices, fit.owner)
    order = winner.argsort(stable=True)
    head = fit.model.weights[:, order].float()
    card = bare_card(
        backbone,
        options,
        method=METHOD,
        similarity="soft",
        pooling="soft",
        readout=replace(
            readout_facts(backbone),
            layers=tuple(readout.joined),
            blocks=tuple(readout.blocks),
            normalisation=fit.normaliser.kind,
        ),
        data=data_facts(samples.labels, samples.sources, data),
    )
    measured = FewShotFigures(
        chosen=asdict(fit.choice),
        folds=fit.folds,
        held_out=None
        if not fit.held_out
        else dict(zip(("accuracy", "loss"), map(_said, fit.held_out[fit.choice]), strict=True)),
        objective=_said(fit.objective),
        parts=tuple(fit.counts),
        accuracy={"train": float((fit.logits(samples.features).argmax(dim=1) == samples.labels).double().mean())},
    )
    model = model_of_head(
        fit.model.prototypes[order],
        winner[order],
        head,
        head != 0,
        examples=no_examples(),
        card=card,
        evidence=SoftMatch(scale=fit.model.scale, normaliser=fit.normaliser, samples=samples),
    )
    return model.measured_as(measured)


def _said(figure: float) -> float:
    """Nine digits: the last ones of a sum depend on where its numbers lie in memory, which equal files must not."""
    return float(f"{figure:.9g}")


def no_examples() -> Examples:
    """What a model holds before its pictures are gathered."""
    return gathered_examples({}, [], [])


def matching_examples(
    backbone: Backbone,
    model: PrototypeModel,
    read: Callable[[Sequence[ImageSource]], Iterable[ImageBatch]],
    encode: Callable[[Tensor], bytes],
    *,
    count: int,
    progress: Progress = SILENT,
) -> Examples:
    """The training images that match each prototype most, with what each place adds to the match.

    Args:
        backbone: the network that the samples were read with.
        model: of `fewshot_model`.
        read: batches of the given images, in that order.
        encode: crop -> JPEG file.
        count: examples per prototype.
    """
    matching = model.evidence
    assert isinstance(matching, SoftMatch)
    matched = matches(matching.known, model.prototypes.double(), matching.scale)
    ranked, sources = matched.argsort(dim=0, descending=True, stable=True), matching.samples.sources
    chosen = [first_different(column, sources, count) for column in ranked.T]
    wanted = wanted_of([[sources[n] for n in each] for each in chosen])
    order = [image for image in dict.fromkeys(sources) if image in wanted]
    size = (backbone.preprocessing.input_size[1], backbone.preprocessing.input_size[2])
    found: FoundExamples = {}
    crops: list[bytes] = []
    for batch in read(order):
        progress.advance(len(batch.sources))
        if not batch.sources:
            continue
        rows = backbone.read(batch.crops).rows.cpu().double()
        answers, maps = matching.of_rows(rows, model.prototypes.double())
        for place, image in enumerate(batch.sources):
            for rank, j in wanted[image]:
                grid = presence(maps[place, :, j], backbone.readout.grid).float()
                found[j, rank] = (float(answers[place, j]), peak_box(grid, size), grid, len(crops))
            crops.append(encode(batch.crops[place]))
    return gathered_examples(found, crops, order)
