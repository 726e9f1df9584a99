"""The class of images, how sure it is, and what is near."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from protonmf_cli.errors import printable
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.models.results import Prediction
from protonmf_cli.options import Machine
from protonmf_cli.pipelines.explaining.explanation import predictions
from protonmf_cli.pipelines.fewshot.interpretation import Position, matching_of, position_of
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class FewShotPrediction:
    """What one image is."""

    image: str
    loaded: Loaded
    predictions: tuple[Prediction, ...]
    """All classes, the most probable one first."""
    position: Position
    """Matches, ambiguity and the nearest training images."""


def predict(
    model: Loaded | str | PathLike[str],
    images: str | PathLike[str] | Iterable[str | PathLike[str]],
    *,
    neighbours: int = 5,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Iterator[FewShotPrediction | Skipped]:
    """Say what images are: classes, matching prototypes, ambiguity, nearest training images.

    Args:
        model: a few-shot model's file, or one that is loaded.
        images: files; they are asked for and read one after the other, as the results are taken.
        neighbours: training images that are named for each image.
        machine: where and how to compute.
        progress: is told notes on the file.

    Returns:
        One result for each image in turn; for one that cannot be read, why.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        InputError: it is a model of another method, or the only image cannot be read.
    """
    paths = [images] if isinstance(images, str | PathLike) else images
    machine = machine or Machine()
    with threads_of(machine):
        loaded = loaded_from(model, machine, progress)
    matching_of(loaded.model)
    return _predictions(loaded, paths, neighbours, machine)


def _predictions(
    loaded: Loaded, paths: Iterable[str | PathLike[str]], neighbours: int, machine: Machine
) -> Iterator[FewShotPrediction | Skipped]:
    alone = isinstance(paths, Sequence) and len(paths) == 1
    for path in map(str, paths):
        with threads_of(machine):
            crop = loaded.crop_or_why((path, Path(path)), alone=alone)
            found = crop if isinstance(crop, Skipped) else _predicted(loaded, path, crop, neighbours)
        yield found


def _predicted(loaded: Loaded, path: str, crop: Tensor, neighbours: int) -> FewShotPrediction:
    model = loaded.model
    rows = loaded.backbone.read(crop[None]).rows[0].cpu()
    position = position_of(model, rows, count=neighbours)
    if not position.logits.isfinite().all():
        raise loaded.backbone.no_numbers("logits")
    return FewShotPrediction(
        image=printable(path),
        loaded=loaded,
        predictions=predictions(model, position.logits, len(model.card.classes)),
        position=position,
    )
