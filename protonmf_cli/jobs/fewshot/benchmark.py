"""N-way accuracy from K images per class, against three baselines."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from protonmf_cli.errors import UsageError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.work.cached_features import CachedSamples, default_folder
from protonmf_cli.files.work.folder import digest_of_facts
from protonmf_cli.jobs.fewshot.data import LAST_LAYER, images_by_folder, open_features
from protonmf_cli.jobs.images import SkipWatch
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.jobs.machine import threads_of, workers_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.options import FewShotOptions, ImageWords, Machine, NetworkWords, Output, without_secrets
from protonmf_cli.output.records.fewshot import benchmark_json
from protonmf_cli.pipelines.fewshot.benchmark import Task, draw_tasks, run_tasks, summary
from protonmf_cli.pipelines.fewshot.features import read_samples, readout_of
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.versions import installed_versions


@dataclass(frozen=True, kw_only=True)
class FewShotBenchmark:
    """How the few-shot model and its baselines do."""

    network: str
    """As it was named."""
    data: str
    classes: int
    """Of the data."""
    images: int
    """That were read."""
    input_size: tuple[int, int, int]
    layers: tuple[int, ...]
    options: FewShotOptions
    rows: list[dict[str, Any]]
    """Of `summary`: one for each method and number of classes."""
    seconds: Mapping[str, float]
    """By stage: features, fitting."""


@dataclass(frozen=True, kw_only=True)
class _Features:
    """Tasks, and features of the classes that they need."""

    tasks: list[Task]
    of_class: dict[int, Tensor]

    @property
    def images(self) -> int:
        return sum(len(rows) for rows in self.of_class.values())


def benchmark_fewshot(
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: FewShotOptions | None = None,
    *,
    ways: Sequence[int] = (2, 5, 20),
    shots: int = 5,
    subsets: int = 10,
    images: int = 100,
    layers: Sequence[int] = LAST_LAYER,
    cache: str | PathLike[str] | None = None,
    output: str | PathLike[str] | Output | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> FewShotBenchmark:
    """Compare the few-shot model with class means, a linear softmax and nearest neighbours on random sets of classes.

    Args:
        model: timm name, hf-hub:org/name, local-dir:PATH, or more words about the network; its classifier is not used.
        data: images; their folders are the classes (the split train where there are two).
        options: of the few-shot model, with the seed of everything that is drawn; `FewShotOptions()` if None.
        ways: numbers of classes N.
        shots: images per class K for everything that is fitted or chosen.
        subsets: random sets of classes for each N.
        images: most images of a class, half of them for each fold.
        layers: whose features are joined, counted from the end.
        cache: folder for the features of each class; the user's cache folder if None.
        output: file for `protonmf.fewshot_benchmark/1`.
        machine: where and how to compute; its threads are the processes that fit, one per core, at most 8, if None.
        progress: is told stages and notes.

    Raises:
        UsageError: the network is unknown, or `images` are too few for the shots.
        InputError: data, network or output cannot be used, or too few classes have enough images.
        GateError: too many images could not be read.
    """
    options, machine = options or FewShotOptions(), machine or Machine()
    network, words = NetworkWords.of(model), ImageWords.of(data, split="train")
    target = None if output is None else Output.of(output)
    if target is not None:
        check_writable(target.path, target.force)
    if images < 2 * shots:
        raise UsageError(
            f"--images {images} leaves less than --shots {shots} for each of two folds; give {2 * shots} or more."
        )
    with threads_of(machine):
        progress.stage("loading the network")
        classes, found = images_by_folder(words, progress)
        found = found.limited(images, options.seed)
        draw = partial(draw_tasks, ways=sorted(set(ways)), shots=shots, subsets=subsets, seed=options.seed)
        draw(found.counts)  # refused before anything is read
        backbone = open_features(network, classes, layers, machine, progress)
        began = time.monotonic()
        folder = default_folder() if cache is None else Path(cache)
        features = _read(draw, backbone, found, folder, words.max_skipped, machine, progress)
        read = time.monotonic()
        scores = run_tasks(
            features.tasks,
            features.of_class,
            options,
            blocks=readout_of(backbone).blocks,
            processes=machine.threads or workers_of(Machine()),
            progress=progress,
        )
    benchmark = FewShotBenchmark(
        network=network.name,
        data=without_secrets(str(words.data)),
        classes=len(classes),
        images=features.images,
        input_size=backbone.preprocessing.input_size,
        layers=tuple(layers),
        options=options,
        rows=summary(scores, shots),
        seconds={"features": read - began, "fitting": time.monotonic() - read},
    )
    if target is not None:
        write_atomically(target.path, json.dumps(benchmark_json(benchmark), indent=1).encode())
        progress.note(f"wrote {target.path}")
    return benchmark


def _read(
    draw: Callable[[Mapping[int, int]], list[Task]],
    backbone: Backbone,
    images: LabelledImages,
    cache: Path,
    max_skipped: float,
    machine: Machine,
    progress: Progress,
) -> _Features:
    """Tasks, and features of the classes that they need, each image read once and kept on disk.

    A class that loses unreadable images may become too small: then the tasks are drawn anew.
    """
    kept = CachedSamples(cache, _digest(backbone, images))
    progress.note(f"features are kept in {kept.folder}")
    reader = image_reader(backbone.preprocessing, batch_size=machine.batch_size, workers=workers_of(machine))
    counts, watch = dict(images.counts), SkipWatch()
    features: dict[int, Tensor] = {}
    while True:
        tasks = draw(counts)
        missing = sorted({c for task in tasks for c in task.shots} - features.keys())
        if not missing:
            found = _Features(tasks=tasks, of_class=features)
            watch.check(max_skipped, found.images, progress)
            return found
        progress.stage("features", sum(counts[c] for c in missing))
        for c in missing:
            if c not in kept:
                kept[c] = read_samples(backbone, reader.batches(images.of([c])), progress)
            else:
                progress.advance(counts[c])
            samples, skipped = kept[c]
            features[c], counts[c] = samples.features, len(samples)
            watch.skipped += skipped


def _digest(backbone: Backbone, images: LabelledImages) -> str:
    """Of everything that decides the features."""
    facts = {
        "network": backbone.source.digest,
        "preprocessing": asdict(backbone.preprocessing),
        "layers": list(readout_of(backbone).joined),
        "images": images.fingerprint(),
        "number": [str(backbone.dtype), backbone.device.type],
        "versions": installed_versions(("protonmf", "torch", "timm")),
    }
    return digest_of_facts(facts)
