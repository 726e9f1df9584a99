"""protonmf fewshot fit: from a network and a handful of images per class to a few-shot model."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import InputError, ProtonmfError, UsageError
from protonmf_cli.jobs.fewshot.data import DEFAULT_MODEL, NetworkWords, find_labelled, open_features
from protonmf_cli.options import FewShotOptions, FineTuned, FineTuneOptions, Normalisation, TrainingMode, WeightNorm

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.files.images.reader import ImageFile, ImageReader
    from protonmf_cli.files.work.training_folder import TrainingFolder
    from protonmf_cli.models.backbone import Backbone, ClassName
    from protonmf_cli.models.image_batches import Skipped
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.soft_matching import Samples
    from protonmf_cli.models.training_state import TrainingState
    from protonmf_cli.pipelines.fewshot.fitting import FewShotFit

DEFAULTS = FewShotOptions()
TUNING = FineTuneOptions()
MOST = 1e6
"""Of a weight or a rate that still means something."""
EXAMPLES = 5
"""Training images kept with each prototype."""

ModelName = Annotated[
    str, typer.Argument(help="timm name, hf-hub:org/name or local-dir:PATH; its classifier is not used.")
]
Layers = Annotated[
    str, typer.Option("--layers", help="Layers whose features are joined, counted from the end, e.g. -1,-2.")
]
NormalisationOption = Annotated[
    Normalisation,
    typer.Option(
        "--normalisation",
        help="Features as they are, of length one, or of length one after the training mean is taken off.",
    ),
]


def fit(
    model: ModelName,
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Prototype model to write.")] = DEFAULT_MODEL,
    shots: Annotated[int | None, typer.Option("--shots", min=1, show_default="all", help="Images per class, drawn with the seed.")] = None,
    norm: Annotated[WeightNorm, typer.Option("--norm", help="Of the class weights; l1 leaves few of them.")] = DEFAULTS.norm,
    prototypes: Annotated[int | None, typer.Option("--prototypes", "-p", min=1, show_default="by the data", help="Per class.")] = None,
    normalisation: NormalisationOption = DEFAULTS.normalisation,
    anchor: Annotated[
        float | None,
        typer.Option(
            "--anchor",
            min=0,
            show_default="by cross-validation",
            help="Pull of prototypes to the means of their images: 1 keeps them there, 1e-5 lets them move far.",
        ),
    ] = None,
    layers: Layers = "-1",
    finetune: Annotated[FineTuned, typer.Option("--finetune", help="Readjust the network: its last stage, or all of it.")] = "none",
    mode: Annotated[TrainingMode, typer.Option("--mode", help="Fine-tune on batches with the model's own loss, or in episodes.")] = TUNING.mode,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the images while fine-tuning.")] = TUNING.epochs,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Learning rate of the network while fine-tuning.")] = TUNING.rate,
    pull: Annotated[float, typer.Option("--pull", min=0, help="Weight of the term that draws prototypes of one class together and others apart.")] = TUNING.pull,
    png: Annotated[Path | None, typer.Option("--png", help="Picture of samples and prototypes on their two principal axes.")] = None,
    weights: arguments.Weights = None,
    model_arg: arguments.ModelArg = None,
    img_size: arguments.ImgSize = None,
    embed: Annotated[bool, typer.Option("--embed-backbone/--no-embed-backbone", help="Keep the network's weights inside the file.")] = True,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    seed: arguments.Seed = DEFAULTS.seed,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Fit soft prototypes and class weights; scale, weights and number of prototypes are chosen inside the images."""
    started = time.monotonic()
    options = replace(DEFAULTS, norm=norm, prototypes=prototypes, normalisation=normalisation, seed=seed)
    if anchor is not None:
        options = replace(options, anchors=(anchor,), dense_anchors=(anchor,))
    tuning = FineTuneOptions(stages=finetune, mode=mode, epochs=epochs, rate=rate, pull=pull, seed=seed)
    for name, value in (("--anchor", anchor), ("--rate", rate), ("--pull", pull)):
        if value is not None and not 0 <= value < MOST:
            raise UsageError(f"{name} {value:g} is not a number from 0 to {MOST:g}.")
    if finetune != "none" and not embed:
        raise UsageError("--finetune changes the network, so that its weights must be inside the file.")
    arguments.check_kept(weights, embed)
    from protonmf_cli.cli import machine
    from protonmf_cli.files.atomic import check_writable

    for target in (output, png):
        if target is not None:
            check_writable(target, force)
    shown = Shown(quiet=quiet)
    machine.set_threads(threads)
    place = machine.choose_device(device)
    with shown.progress() as bars:
        bars.stage("loading the network")
        classes, images = find_labelled(data, "train", shown)
        val = _find_val(data, classes)
        images = images if shots is None else _drawn(images, classes, shots, seed)
        words = NetworkWords(
            name=model, weights=weights, model_args=model_arg or [], img_size=img_size, layers=layers, offline=offline
        )
        backbone = open_features(words, classes, place, shown)
        job = _Job(
            backbone=backbone, images=images, val=val, options=options, tuning=tuning, output=output,
            max_skipped=max_skipped, batch_size=batch_size, workers=machine.worker_count(workers), shown=shown, bars=bars,
        )  # fmt: skip
        found, report = job.run()
        from protonmf_cli.files.store import save_model

        save_model(output, found, job.backbone.weights() if embed else None)
        job.discard()
    if png is not None:
        draw_plane(found, png, shown)
    report |= {"model": model, "output": str(output), "seconds": time.monotonic() - started}
    if as_json:
        shown.json(report)
    else:
        from protonmf_cli.output.text.fewshot import show_fit

        show_fit(report, found, output, shown)


def _find_val(data: Path, classes: "tuple[ClassName, ...]") -> "LabelledImages | None":
    """The test images, where the data has them beside train; their classes must be those of train."""
    from protonmf_cli.files.images.datasets import ClassMapping, find_images, splits_of

    if splits_of(data) != ["train", "val"]:
        return None
    return find_images(data, "val", classes, ClassMapping())


def _drawn(images: "LabelledImages", classes: "tuple[ClassName, ...]", shots: int, seed: int) -> "LabelledImages":
    """So many images of every class.

    Raises:
        InputError: a class has fewer.
    """
    from protonmf_cli.files.images.datasets import listed

    few = [f"{classes[c].label} ({count})" for c, count in images.counts.items() if count < shots]
    if few:
        raise InputError(
            f"--shots {shots} needs {shots} images of every class, but {listed(few)} have fewer. Give a smaller number, "
            "or leave --shots out."
        )
    return images.limited(shots, seed)


@dataclass(kw_only=True)
class _Job:
    """One fit: read, fit, fine-tune if asked for, fit again, gather pictures."""

    backbone: "Backbone"
    images: "LabelledImages"
    val: "LabelledImages | None"
    """The test, where the data has it beside train."""
    options: FewShotOptions
    tuning: FineTuneOptions
    output: Path
    max_skipped: float
    batch_size: int
    workers: int
    shown: Shown
    bars: Bars
    test: "Samples | None" = None
    folder: "TrainingFolder | None" = None
    """Of the fine-tuning, until the result is safe."""

    @property
    def files(self) -> "list[ImageFile]":
        """Training images, class after class."""
        return self.images.of(self.images.files)

    @cached_property
    def reader(self) -> "ImageReader":
        """Of images as the network wants them."""
        from protonmf_cli.jobs.loaded import image_reader

        return image_reader(self.backbone.preprocessing, batch_size=self.batch_size, workers=self.workers)

    def run(self) -> "tuple[PrototypeModel, dict[str, Any]]":
        """The model with its pictures, and what there is to say of it."""
        from protonmf_cli.files.images.reader import encode_jpeg
        from protonmf_cli.pipelines.fewshot.model import fewshot_model, matching_examples

        samples, fit, skipped = self._fit()
        for note in notes_on(samples.labels.bincount().tolist(), self.backbone.classes):
            self.shown.note(note)
        tuned: dict[str, Any] | None = None
        if self.tuning.stages != "none":
            history = self._finetune(fit, samples)
            samples, fit, _ = self._fit()
            history = [{key: value for key, value in row.items() if key != "seconds"} for row in history]
            tuned = {"epochs": history, "options": asdict(self.tuning)}
        of_name = {file.name: file for file in self.files}
        model = fewshot_model(
            fit, self.backbone, samples, self.options, {"split": "train", "skipped": [asdict(s) for s in skipped]}
        )
        self.bars.stage("pictures of every prototype")
        examples = matching_examples(
            self.backbone,
            model,
            lambda images: self.reader.batches([of_name[image.path] for image in images]),
            encode_jpeg,
            count=EXAMPLES,
            progress=self.bars,
        )
        model = replace(model, examples=examples)
        if tuned is not None:
            model = model.measured_as(finetuning=tuned)
        accuracy = model.card.measured["accuracy"] | {"test": self._test(fit)}
        model = model.measured_as(accuracy=accuracy)
        return model, self._report(model, samples, accuracy)

    def _read(self, stage: str, images: "LabelledImages") -> "tuple[Samples, Sequence[Skipped]]":
        """Features of labelled images as the network is now."""
        from protonmf_cli.jobs.images import SkipWatch
        from protonmf_cli.pipelines.fewshot.features import read_samples

        files = images.of(images.files)
        self.bars.stage(stage, len(files))
        samples, skipped = read_samples(self.backbone, self.reader.batches(files), self.bars)
        SkipWatch(list(skipped)).check(self.max_skipped, len(samples), self.shown)
        return samples, skipped

    def _fit(self) -> "tuple[Samples, FewShotFit, Sequence[Skipped]]":
        from protonmf_cli.jobs.images import check_overlap
        from protonmf_cli.pipelines.fewshot.fitting import fit_fewshot

        samples, skipped = self._read("features", self.images)
        missing = sorted(set(self.images.files) - set(samples.labels.tolist()))
        if missing:
            names = ", ".join(self.backbone.classes[c].label for c in missing[:5])
            raise InputError(f"no image of {names} could be read. Repair the images or remove the class.")
        if self.val is not None:
            self.test, _ = self._read("test images", self.val)
            check_overlap(*({s.sha256: s.path for s in part.sources} for part in (samples, self.test)))
        blocks = self.backbone.readout.blocks  # type: ignore[attr-defined]
        fit = fit_fewshot(
            samples.features,
            samples.labels,
            len(self.backbone.classes),
            self.options,
            blocks=blocks,
            progress=self.bars,
        )
        return samples, fit, skipped

    def _finetune(self, fit: "FewShotFit", samples: "Samples") -> list[dict[str, Any]]:
        """Readjust the network, going on where an interrupted run stopped; the log of its epochs."""
        from protonmf_cli.files.atomic import digest_of_tensors
        from protonmf_cli.files.images.training_images import TrainingImages
        from protonmf_cli.files.work.folder import digest_of_facts
        from protonmf_cli.files.work.training_folder import TrainingFolder
        from protonmf_cli.models.image_batches import digest_of_images
        from protonmf_cli.pipelines.fewshot.finetuning import FineTuner
        from protonmf_cli.versions import installed_versions

        readable = {source.path for source in samples.sources}
        images = TrainingImages(
            files=[file for file in self.files if file.name in readable],
            reader=self.reader,
            augmentation=self.tuning.augmentation,
            batch_size=self.tuning.batch_size,
            seed=self.tuning.seed,
        )
        facts = {
            "network": self.backbone.source.digest,
            "size": list(self.backbone.preprocessing.input_size),
            "layers": list(self.backbone.readout.joined),  # type: ignore[attr-defined]
            "images": digest_of_images(samples.sources),
            "classes": [name.label for name in self.backbone.classes],
            "labels": samples.labels.tolist(),
            "device": self.backbone.device.type,
            "versions": installed_versions(("protonmf", "torch", "timm")),
            "fit": json.loads(json.dumps(asdict(self.options))),
            "fine-tuning": json.loads(json.dumps(asdict(self.tuning))),
        }
        folder = TrainingFolder(self.output, digest_of_facts(facts))
        self.folder = folder
        with folder:
            folder.describe(facts)
            state = folder.load()
            if state.done:
                self.shown.note(f"goes on after epoch {state.done} of the fine-tuning")
            tuner = FineTuner(self.backbone, fit, images, self.options, self.tuning, progress=self.bars)
            try:
                tuner.run(state, lambda now: self._after_epoch(now, folder))
            except ProtonmfError:
                if not state.done:  # nothing to go on with
                    folder.discard()
                raise
        digest = digest_of_tensors(self.backbone.weights())
        self.backbone = replace(self.backbone, source=replace(self.backbone.source, digest=digest))
        return state.log

    def _after_epoch(self, state: "TrainingState", folder: "TrainingFolder") -> None:
        folder.save(state)
        row = state.log[-1]
        self.shown.log(
            f"epoch {row['epoch']:3d}  cross entropy {row['cross_entropy']:.3f}  pull {row['pull']:.3f}  "
            f"train {row['accuracy']:6.1%}  {row['seconds']:.0f} s"
        )

    def discard(self) -> None:
        """Remove the state of a fine-tuning whose result is safe."""
        if self.folder is not None:
            self.folder.discard()

    def _test(self, fit: "FewShotFit") -> float | None:
        """Accuracy on the test images, where there are any."""
        if self.test is None or not len(self.test):
            return None
        return float((fit.logits(self.test.features).argmax(dim=1) == self.test.labels).double().mean())

    def _report(self, model: "PrototypeModel", samples: "Samples", accuracy: dict[str, Any]) -> dict[str, Any]:
        from protonmf_cli.output.text.fewshot import interpretation_json

        measured = model.card.measured
        return {
            "schema": "protonmf.fewshot_fit/1",
            "classes": len(model.card.classes),
            "images": len(samples),
            "prototypes": len(model.prototypes),
            "norm": self.options.norm,
            "zero_weights": 1 - len(model.weights.value) / model.dense_weights.numel(),
            "chosen": measured["chosen"],
            "held_out": measured["held_out"],
            "folds": measured["folds"],
            "objective": measured["objective"],
            "accuracy": accuracy,
            "finetuning": measured.get("finetuning"),
            "skipped": model.card.data["skipped"],
            "interpretation": interpretation_json(model),
        }


def notes_on(counts: Sequence[int], classes: "Sequence[ClassName]") -> list[str]:
    """What is good to know of few or unequal images per class."""
    from protonmf_cli.files.images.datasets import listed

    single = [classes[c].label for c, count in enumerate(counts) if count == 1]
    if len(single) == len(counts):
        return ["every class has one image: nothing can be held out, scale and weights are the middle of what is tried"]
    notes = []
    if single:
        notes.append(f"classes of one image are never held out in the cross-validation: {listed(single)}")
    return notes


def draw_plane(model: "PrototypeModel", png: Path, shown: Shown) -> None:
    """Samples and prototypes on the two principal axes."""
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.plane import plane_png
    from protonmf_cli.pipelines.fewshot.plane import plane_of

    write_atomically(png, plane_png(plane_of(model)))
    shown.note(f"wrote {png}")
