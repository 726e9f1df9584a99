"""How good a ProtoPNet is, what its prototypes are like, and what one image is like."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.images.reader import encode_jpeg
from protonmf_cli.jobs.early import make_folder
from protonmf_cli.jobs.images import SkipWatch, images_of_model
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.jobs.protopnet.edits import OpenedProtoPNet, load_protopnet, open_protopnet
from protonmf_cli.jobs.tables import part_quality_of
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import ExampleView
from protonmf_cli.options import ImageWords, Machine
from protonmf_cli.output.figures.rendering import rendered
from protonmf_cli.output.figures.strips import gallery_figure
from protonmf_cli.pipelines.explaining.explanation import example_views
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.pipelines.protopnet.activations import Activations, read_activations
from protonmf_cli.pipelines.protopnet.analyses import (
    LOCAL_HEADINGS,
    LocalAnalysis,
    analyse_image,
    global_strips,
    local_strips,
)
from protonmf_cli.pipelines.protopnet.model import nearest_examples
from protonmf_cli.pipelines.protopnet.push import last_layer_path
from protonmf_cli.pipelines.protopnet.quality import NEAREST, quality


@dataclass(frozen=True, kw_only=True)
class NearestPatches:
    """The global analysis of one prototype."""

    prototype: int
    """Its place among all prototypes."""
    number: int
    """Within its class, from 1."""
    owner_label: str
    train: tuple[ExampleView, ...]
    """Nearest training patches, its own one first."""
    here: tuple[ExampleView, ...]
    """Nearest patches of the images of the evaluation."""


@dataclass(frozen=True, kw_only=True)
class ProtoPNetEvaluation:
    """How good a ProtoPNet is on labelled images."""

    file: Path
    quality: Mapping[str, Any]
    """images, accuracy and its interval, sparsity, prototypes, purity."""
    near: int
    """Nearest images of a prototype that purity is about."""
    part_quality: Sequence[Mapping[str, Any]]
    """Consistency and stability."""
    l1_path: Sequence[Mapping[str, Any]] | None
    """Last layers for several weights of the L1 term."""
    nearest: tuple[NearestPatches, ...]
    """Of every prototype."""


def evaluate_protopnet(
    file: Loaded | str | PathLike[str],
    data: str | PathLike[str] | ImageWords,
    *,
    parts: str | PathLike[str] | None = None,
    figures: str | PathLike[str] | None = None,
    l1_path: bool = False,
    seed: int = 0,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> ProtoPNetEvaluation:
    """Accuracy, sparsity, unique prototypes and consistency; the global analysis as pictures.

    Args:
        file: a ProtoPNet, or one that is loaded.
        data: labelled images (the split val where there are two).
        parts: part annotations: folder or zip of CUB-200-2011's text files.
        figures: folder for a picture per class with each prototype's nearest patches.
        l1_path: fit the last layer to the split train of the same data for several weights of the L1 term.
        seed: of the intervals.
        machine: where to compute; it is done in float32.
        progress: is told stages, notes and warnings.

    Raises:
        ModelFileError: the file holds no single ProtoPNet.
        InputError: the images cannot be used.
        GateError: too many images could not be read.
    """
    folder = None if figures is None else Path(figures)
    if folder is not None:
        make_folder(folder)
    machine = machine or Machine()
    with threads_of(machine):
        opened = open_protopnet(file, ImageWords.of(data, split="val"), machine, progress)
        progress.stage("reading the images", opened.count)
        found = read_activations(opened.net, opened.loaded.backbone, opened.batches(), progress=progress)
        SkipWatch(list(found.skipped)).check(opened.words.max_skipped, len(found.images), progress)
        annotations = None if parts is None else Path(parts)
        evaluation = ProtoPNetEvaluation(
            file=opened.loaded.path,
            quality=quality(opened.net, opened.model, found, seed),
            near=NEAREST,
            part_quality=part_quality_of(opened.loaded, opened.images, annotations, seed, progress).rows,
            l1_path=_l1_path(opened, found, progress) if l1_path else None,
            nearest=_nearest(opened, found),
        )
        if folder is not None:
            _draw_global(opened.model, evaluation.nearest, folder, progress)
    return evaluation


def local_analysis(
    file: Loaded | str | PathLike[str],
    image: str | PathLike[str],
    *,
    top: int = 10,
    classes: int = 3,
    figures: str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> LocalAnalysis:
    """The prototypes most similar to an image, and its evidence class by class.

    Args:
        file: a ProtoPNet, or several combined; a file or what is loaded.
        image: path of a file.
        top: most similar prototypes of all classes.
        classes: best classes, looked at one by one.
        figures: folder for a picture of the most similar prototypes and of each class.
        machine: where to compute; it is done in float32.
        progress: is told what was drawn.

    Raises:
        ModelFileError: the file holds no ProtoPNet.
        InputError: the image cannot be read.
    """
    folder = None if figures is None else Path(figures)
    if folder is not None:
        make_folder(folder)
    machine = machine or Machine()
    with threads_of(machine):
        loaded = load_protopnet(file, machine, progress)
        crop = loaded.crop(image)
        found = analyse_image(loaded.backbone, loaded.model, crop, top=top, classes=classes)
        if folder is not None:
            picture = loaded.backbone.pictures(crop)[0].permute(1, 2, 0).numpy()
            _draw_local(found, picture, folder, progress)
    return found


def _l1_path(opened: OpenedProtoPNet, test: Activations, progress: Progress) -> list[dict[str, Any]]:
    """Last layers over several L1 weights, fitted to the training images."""
    images = images_of_model(replace(opened.words, split="train"), opened.model.card)
    progress.stage("reading the training images", sum(images.counts.values()))
    batches = opened.loaded.reader.batches(images.of(images.files))
    train = read_activations(opened.net, opened.loaded.backbone, batches, progress=progress)
    return last_layer_path(opened.net, train, test, opened.options)


def _nearest(opened: OpenedProtoPNet, found: Activations) -> tuple[NearestPatches, ...]:
    """For each prototype the nearest patches of the training images and of these."""
    of_name = {file.name: file for file in opened.images.of(opened.images.files)}
    model, reader = opened.model, opened.loaded.reader
    examples, _ = nearest_examples(
        opened.net, opened.loaded.backbone, found, [None] * len(opened.net.prototypes),
        lambda images: reader.batches([of_name[image.path] for image in images]), encode_jpeg, count=NEAREST,
    )  # fmt: skip
    here = replace(model, examples=examples)
    return tuple(
        NearestPatches(
            prototype=j,
            number=model.number(j),
            owner_label=model.card.classes[int(model.owner[j])].label,
            train=tuple(example_views(model, j)),
            here=tuple(example_views(here, j)),
        )
        for j in range(len(model.prototypes))
    )


def _draw_global(model: PrototypeModel, nearest: Sequence[NearestPatches], folder: Path, progress: Progress) -> None:
    views = {patches.prototype: patches.here for patches in nearest}
    for c in model.active_classes.tolist():
        strips, headings = global_strips(model, c, views)
        name = model.card.classes[c]
        path = folder / f"prototypes-{file_name(name.label)}.png"
        figure = gallery_figure(f"the prototypes of {name.shown}", strips, headings)
        write_atomically(path, rendered(figure, path.name))
    progress.note(f"wrote {len(model.active_classes)} pictures to {folder}")


def _draw_local(found: LocalAnalysis, crop: np.ndarray, folder: Path, progress: Progress) -> None:
    best = found.predictions[0]
    title = f"{best.name} {best.probability:.1%}: the most similar prototypes"
    strips = local_strips(found.similar, crop, -1)
    path = folder / "most-similar.png"
    write_atomically(path, rendered(gallery_figure(title, strips, LOCAL_HEADINGS), path.name))
    for rank, (prediction, contributions) in enumerate(zip(found.predictions, found.by_class, strict=True), start=1):
        if not contributions:
            continue
        strips = local_strips(contributions, crop, prediction.class_index)
        title = f"{rank}. {prediction.name}: logit {prediction.logit:.2f}, {prediction.probability:.1%}"
        path = folder / f"class-{rank}-{file_name(prediction.label)}.png"
        write_atomically(path, rendered(gallery_figure(title, strips, LOCAL_HEADINGS), path.name))
    progress.note(f"wrote {1 + len(found.by_class)} pictures to {folder}")


def file_name(label: str) -> str:
    """A label as part of a file's name.

    >>> file_name("n01 a/b")
    'n01-a-b'
    """
    return re.sub(r"[^\w.-]+", "-", label)
