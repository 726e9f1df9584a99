"""From a network and a handful of images per class to a few-shot model."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from protonmf_cli.errors import InputError, ProtonmfError, UsageError
from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.reader import ImageFile, ImageReader, encode_jpeg
from protonmf_cli.files.images.sources.source import listed
from protonmf_cli.files.images.training_images import TrainingImages
from protonmf_cli.files.store import save_model
from protonmf_cli.files.work.folder import digest_of_facts
from protonmf_cli.files.work.locks import claiming
from protonmf_cli.files.work.training_folder import TrainingFolder
from protonmf_cli.jobs.early import check
from protonmf_cli.jobs.fewshot.data import LAST_LAYER, drawn, find_test, images_by_folder, open_features
from protonmf_cli.jobs.fewshot.interpretation import draw_plane
from protonmf_cli.jobs.images import SkipWatch, check_overlap
from protonmf_cli.jobs.loaded import Loaded, image_reader
from protonmf_cli.jobs.machine import threads_of, workers_of
from protonmf_cli.jobs.networks import check_kept
from protonmf_cli.models.backbone import Backbone, ClassName
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.image_batches import Skipped, digest_of_images
from protonmf_cli.models.protopnet.training_state import TrainingState
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.soft_matching import Samples
from protonmf_cli.options import FewShotOptions, FineTuneOptions, ImageWords, Machine, NetworkWords, Output
from protonmf_cli.pipelines.fewshot.features import read_samples, readout_of
from protonmf_cli.pipelines.fewshot.finetuning import FineTuner
from protonmf_cli.pipelines.fewshot.fitting import PrototypeFit, fit_prototypes
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, interpret
from protonmf_cli.pipelines.fewshot.model import fewshot_model, matching_examples
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.versions import installed_versions

MOST = 1e6
"""Of a weight or a rate that still means something."""
EXAMPLES = 5
"""Training images kept with each prototype."""


@dataclass(frozen=True, kw_only=True)
class FewShotFit:
    """A finished few-shot model."""

    loaded: Loaded
    """The model and its network."""
    network: str
    """As it was named."""
    interpretation: Interpretation
    """What its prototypes are."""
    bytes: int
    """Of the file."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What is fitted to: a network, and images of its classes."""

    backbone: Backbone
    images: LabelledImages
    test: LabelledImages | None
    reader: ImageReader
    max_skipped: float
    options: FewShotOptions

    @property
    def files(self) -> list[ImageFile]:
        """Training images, class after class."""
        return self.images.of(self.images.files)


@dataclass(frozen=True, kw_only=True)
class _Fitted:
    """A fit to the features as the network gives them."""

    samples: Samples
    test: Samples | None
    skipped: Sequence[Skipped]
    fit: PrototypeFit

    @property
    def test_accuracy(self) -> float | None:
        """Share of the test images that get their class, where there are any."""
        if self.test is None or not len(self.test):
            return None
        return float((self.fit.logits(self.test.features).argmax(dim=1) == self.test.labels).double().mean())


@dataclass(frozen=True, kw_only=True)
class _Tuned:
    """A network that was readjusted."""

    backbone: Backbone
    measured: Mapping[str, Any]
    """Log of the epochs, and the options."""
    folder: TrainingFolder
    """To be removed once the result is safe."""


@claiming()
def fit_fewshot(
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: FewShotOptions | None = None,
    fine_tune: FineTuneOptions | None = None,
    *,
    layers: Sequence[int] = LAST_LAYER,
    shots: int | None = None,
    val: str | PathLike[str] | ImageWords | None = None,
    output: str | PathLike[str] | Output = "fewshot.safetensors",
    figure: str | PathLike[str] | None = None,
    embed: bool = True,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> FewShotFit:
    """Fit soft prototypes and class weights; scale, weights and number of prototypes are chosen inside the images.

    A fine-tuning that is killed and called again goes on where it stopped.

    Args:
        model: timm name, hf-hub:org/name, local-dir:PATH, or more words about the network; its classifier is not used.
        data: images; their folders are the classes (the split train where there are two).
        options: `FewShotOptions()` if None.
        fine_tune: whether and how the network is readjusted; it is not if None.
        layers: whose features are joined, counted from the end.
        shots: images per class, drawn with the seed of the options; all if None.
        val: test images; those beside train, where the data has both, if None.
        output: file to write.
        figure: of samples and prototypes, a file .png, .svg or .pdf, replaced where the output may be.
        embed: keep the network's weights in the file.
        machine: where and how to compute.
        progress: is told stages and notes.

    Raises:
        UsageError: the network is unknown, or the options do not fit.
        InputError: data, network or output cannot be used.
        GateError: too many images could not be read.
    """
    started = time.monotonic()
    options, tuning, machine = options or FewShotOptions(), fine_tune or FineTuneOptions(), machine or Machine()
    network, words, target = NetworkWords.of(model), ImageWords.of(data, split="train"), Output.of(output)
    _check_options(options, tuning, embed)
    check_kept(network, embed)
    drawn_to = None if figure is None else Output(path=Path(figure), force=target.force, option="--figure")
    check(outputs=[target], figures=[drawn_to])
    with threads_of(machine):
        progress.stage("loading the network")
        classes, images = images_by_folder(words, progress)
        test = find_test(words, val, classes)
        images = drawn(images, classes, shots, options.seed)
        backbone = open_features(network, classes, layers, machine, progress)
        given = _Given(
            backbone=backbone, images=images, test=test, max_skipped=words.max_skipped, options=options,
            reader=image_reader(backbone.preprocessing, batch_size=machine.batch_size, workers=workers_of(machine)),
        )  # fmt: skip
        fitted = _fitted(given, progress)
        _note_small_classes(fitted.samples, classes, progress)
        tuned = None
        if tuning.stages != "none":
            tuned = _fine_tuned(given, fitted, tuning, target.path, progress)
            given = replace(given, backbone=tuned.backbone)
            fitted = _fitted(given, progress)
        found = _finished(given, fitted, tuned, progress)
        size = save_model(target.path, found, given.backbone.weights() if embed else None)
        interpretation = interpret(found)
        if drawn_to is not None:
            draw_plane(interpretation, drawn_to.path, progress)
        if tuned is not None:
            tuned.folder.discard()
    loaded = Loaded(path=target.path, model=found, backbone=given.backbone, reader=given.reader, embedded=embed)
    return FewShotFit(
        loaded=loaded, network=network.name, interpretation=interpretation, bytes=size,
        seconds=time.monotonic() - started,
    )  # fmt: skip


def _check_options(options: FewShotOptions, tuning: FineTuneOptions, embed: bool) -> None:
    anchors = [("--anchor", anchor) for anchor in (*options.anchors, *options.dense_anchors)]
    for name, value in (*anchors, ("--rate", tuning.rate), ("--pull", tuning.pull)):
        if not 0 <= value < MOST:
            raise UsageError(f"{name} {value:g} is not a number from 0 to {MOST:g}.")
    if tuning.stages != "none" and not embed:
        raise UsageError("--finetune changes the network, so that its weights must be inside the file.")


def _fitted(given: _Given, progress: Progress) -> _Fitted:
    """Read all images as the network is now, and fit to them."""
    classes = given.backbone.classes
    samples, skipped = _read(given, given.images, "features", progress)
    missing = sorted(set(given.images.files) - set(samples.labels.tolist()))
    if missing:
        names = ", ".join(classes[c].label for c in missing[:5])
        raise InputError(f"no image of {names} could be read. Repair the images or remove the class.")
    test = None
    if given.test is not None:
        test, _ = _read(given, given.test, "test images", progress)
        check_overlap(*({s.sha256: s.path for s in part.sources} for part in (samples, test)))
    blocks = readout_of(given.backbone).blocks
    fit = fit_prototypes(
        samples.features, samples.labels, len(classes), given.options, blocks=blocks, progress=progress
    )
    return _Fitted(samples=samples, test=test, skipped=skipped, fit=fit)


def _read(given: _Given, images: LabelledImages, stage: str, progress: Progress) -> tuple[Samples, Sequence[Skipped]]:
    """Features of labelled images."""
    files = images.of(images.files)
    progress.stage(stage, len(files))
    samples, skipped = read_samples(given.backbone, given.reader.batches(files), progress)
    SkipWatch(list(skipped)).check(given.max_skipped, len(samples), progress)
    return samples, skipped


def _note_small_classes(samples: Samples, classes: Sequence[ClassName], progress: Progress) -> None:
    """What is good to know of classes of one image."""
    counts = samples.labels.bincount().tolist()
    single = [classes[c].label for c, count in enumerate(counts) if count == 1]
    if len(single) == len(counts):
        progress.note(
            "every class has one image: nothing can be held out, scale and weights are the middle of what is tried"
        )
    elif single:
        progress.note(f"classes of one image are never held out in the cross-validation: {listed(single)}")


def _fine_tuned(given: _Given, fitted: _Fitted, tuning: FineTuneOptions, output: Path, progress: Progress) -> _Tuned:
    """Readjust the network, going on where an interrupted run stopped."""
    backbone = given.backbone
    readable = {source.path for source in fitted.samples.sources}
    images = TrainingImages(
        files=[file for file in given.files if file.name in readable],
        reader=given.reader,
        augmentation=tuning.augmentation,
        batch_size=tuning.batch_size,
        seed=tuning.seed,
    )
    facts = _facts_of(given, fitted.samples, tuning)
    folder = TrainingFolder(output, digest_of_facts(facts))

    def keep(state: TrainingState) -> None:
        folder.save(state)
        row = state.log[-1]
        progress.log(
            f"epoch {row['epoch']:3d}  cross entropy {row['cross_entropy']:.3f}  pull {row['pull']:.3f}  "
            f"train {row['accuracy']:6.1%}  {row['seconds']:.0f} s"
        )

    with folder:
        folder.describe(facts)
        state = folder.load()
        if state.done:
            progress.note(f"goes on after epoch {state.done} of the fine-tuning")
        tuner = FineTuner(backbone, fitted.fit, images, given.options, tuning, progress=progress)
        try:
            tuner.run(state, keep)
        except ProtonmfError:
            if not state.done:  # nothing to go on with
                folder.discard()
            raise
    digest = digest_of_tensors(backbone.weights())
    epochs = [{key: value for key, value in row.items() if key != "seconds"} for row in state.log]
    return _Tuned(
        backbone=replace(backbone, source=replace(backbone.source, digest=digest)),
        measured={"epochs": epochs, "options": asdict(tuning)},
        folder=folder,
    )


def _facts_of(given: _Given, samples: Samples, tuning: FineTuneOptions) -> dict[str, Any]:
    """Everything that decides what a fine-tuning gives."""
    backbone = given.backbone
    return {
        "network": backbone.source.digest,
        "size": list(backbone.preprocessing.input_size),
        "layers": list(readout_of(backbone).joined),
        "images": digest_of_images(samples.sources),
        "classes": [name.label for name in backbone.classes],
        "labels": samples.labels.tolist(),
        "device": backbone.device.type,
        "versions": installed_versions(("protonmf", "torch", "timm")),
        "fit": json.loads(json.dumps(asdict(given.options))),
        "fine-tuning": json.loads(json.dumps(asdict(tuning))),
    }


def _finished(given: _Given, fitted: _Fitted, tuned: _Tuned | None, progress: Progress) -> PrototypeModel:
    """The model with its pictures and what was measured."""
    facts = DataFacts(split="train", skipped=tuple(fitted.skipped))
    model = fewshot_model(fitted.fit, given.backbone, fitted.samples, given.options, facts)
    of_name = {file.name: file for file in given.files}
    progress.stage("pictures of every prototype")
    examples = matching_examples(
        given.backbone,
        model,
        lambda images: given.reader.batches([of_name[image.path] for image in images]),
        encode_jpeg,
        count=EXAMPLES,
        progress=progress,
    )
    model = replace(model, examples=examples)
    measured = model.card.fewshot
    assert measured is not None
    return model.measured_as(
        replace(
            measured,
            accuracy={**measured.accuracy, "test": fitted.test_accuracy},
            finetuning=None if tuned is None else dict(tuned.measured),
        )
    )
