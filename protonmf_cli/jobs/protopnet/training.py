"""From a pretrained network and class folders to a ProtoPNet: begun or gone on with, measured and saved."""

import copy
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from protonmf_cli.errors import InputError, ProtonmfError, UsageError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.reader import ImageFile
from protonmf_cli.files.images.training_images import TrainingData, TrainingImages, folds
from protonmf_cli.files.networks.backbones import load_features
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.store import save_model
from protonmf_cli.files.work.folder import digest_of_facts
from protonmf_cli.files.work.locks import claiming
from protonmf_cli.files.work.training_folder import TrainingFolder
from protonmf_cli.jobs.early import make_folder
from protonmf_cli.jobs.images import check_data
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.jobs.machine import processes_of, threads_of, workers_of
from protonmf_cli.jobs.networks import check_weights, request_of
from protonmf_cli.jobs.protopnet.finished import Trained, figures_of, finished_model, save_finished
from protonmf_cli.jobs.protopnet.images import (
    TrainingSet,
    TrainingWords,
    per_class_counts,
    read_training_set,
    squashed,
)
from protonmf_cli.models.backbone import Source
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.protopnet.training_state import TrainingState
from protonmf_cli.models.readouts.readout import Network
from protonmf_cli.options import (
    FROM_SCRATCH,
    PROTOPNET_RECIPES,
    ImageWords,
    Machine,
    NetworkWords,
    Output,
    ProtoPNetOptions,
    Recipe,
)
from protonmf_cli.output.figures.formats import format_of
from protonmf_cli.output.figures.rendering import rendered
from protonmf_cli.output.figures.training import training_figure
from protonmf_cli.output.records.protopnet import training_json
from protonmf_cli.output.text.protopnet import epoch_line
from protonmf_cli.pipelines.progress import LOGGED, SILENT, Progress
from protonmf_cli.pipelines.protopnet.activations import accuracy, read_activations
from protonmf_cli.pipelines.protopnet.processes import Processes
from protonmf_cli.pipelines.protopnet.setup import check_patches, new_protopnet
from protonmf_cli.pipelines.protopnet.start import start_from_data
from protonmf_cli.pipelines.protopnet.training import Trainer, ends_cycle, plan
from protonmf_cli.versions import installed_versions

FOLDS = 3
"""Of the cross-validation of the width."""


@dataclass(frozen=True, kw_only=True)
class ProtoPNetTraining:
    """A finished training."""

    loaded: Loaded
    """The ProtoPNet, as its file holds it."""
    bytes: int
    """Of the file."""
    network: str
    """Name of the network that was trained."""
    options: ProtoPNetOptions
    """With the width that was taken."""
    images: TrainingSet
    log: Sequence[Mapping[str, Any]]
    """Every epoch and every push, in order."""
    accuracy: Mapping[str, float | None]
    """train, held_out, test."""
    best_cycle: int | None
    push: Mapping[str, Any]
    """What the push of the best cycle did."""
    seconds: float


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What a training was asked for, in words."""

    network: NetworkWords
    images: TrainingWords
    options: ProtoPNetOptions
    squash: bool
    """Whether whole pictures are pressed into the input."""
    bilinear: bool
    """Whether they are resized bilinearly, whatever the network's own preprocessing does."""
    per_class: Path | None
    output: Output
    keep_cycles: Path | None


@dataclass(frozen=True, kw_only=True)
class _Run:
    """Everything a training needs once its words are understood."""

    request: BackboneRequest
    network: Network
    """As it was loaded; every training gets its own copy."""
    source: Source
    asked: _Asked
    per_class: tuple[int, ...]
    images: TrainingSet
    device: torch.device
    processes: Processes
    progress: Progress

    @property
    def options(self) -> ProtoPNetOptions:
        return self.asked.options

    @property
    def output(self) -> Path:
        return self.asked.output.path


@dataclass(frozen=True, kw_only=True)
class _Net(Trained):
    """The network being trained, and what it is trained with."""

    source: TrainingData


@claiming()
def train_protopnet(
    model: str | NetworkWords,
    train: str | PathLike[str] | ImageWords,
    val: str | PathLike[str] | ImageWords | None = None,
    options: ProtoPNetOptions | None = None,
    *,
    recipe: Recipe = "default",
    per_class: str | PathLike[str] | None = None,
    output: str | PathLike[str] | Output = "protopnet.safetensors",
    log: str | PathLike[str] | None = None,
    figure: str | PathLike[str] | None = None,
    keep_cycles: str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> ProtoPNetTraining | None:
    """Train a ProtoPNet: warm epochs, joint epochs, push and last layer.

    Killed and called again it goes on where it stopped.

    Args:
        model: timm name, hf-hub:org/name, local-dir:PATH, or more words about the network; its last feature map is used.
        train: images by class, or a folder with train/ and val/ above them.
        val: images that the trained network is tested on; None: the folder val/ beside train/, where there is one.
        options: architecture, losses and schedule; `usual_options` if None. Its batch size counts, not the machine's.
        recipe: "paper": besides the options, whole pictures are pressed into the input and resized bilinearly as in the
            original code, and without held-out images the best cycle is chosen on val.
        per_class: file of lines `class,number` for classes with another number of prototypes.
        output: file to write.
        log: file for every epoch's figures as JSON.
        figure: file for the curves over the epochs, .png, .svg or .pdf.
        keep_cycles: folder for the model after each push.
        machine: where to compute.
        progress: is told stages, epochs, notes and warnings.

    Returns:
        The training; None in a process that torchrun started to help another one, which writes everything.

    Raises:
        UsageError: the network is unknown, or words exclude each other.
        InputError: network, images or output cannot be used, an unfinished run with this output was asked for something
            else, a class has too few patches, or a loss is not finite.
        NotExactError: a last layer could not be solved.
        GateError: too many images could not be read.
    """
    started = time.monotonic()
    network, words, target = NetworkWords.of(model), ImageWords.of(train, split="train"), Output.of(output)
    check_weights(network)
    chosen = options or usual_options(recipe, pretrained=network.pretrained)
    chosen = replace(chosen, warm_epochs=min(chosen.warm_epochs, max(0, chosen.epochs - 1)))
    check_data(words.data)
    log, figure = (None if path is None else Path(path) for path in (log, figure))
    if figure is not None:
        format_of(str(figure))
    for option, path in (("-o", target.path), ("--log", log), ("--figure", figure)):
        if path is not None:
            check_writable(path, target.force, option)
    cycles = None if keep_cycles is None else Path(keep_cycles)
    if cycles is not None:
        make_folder(cycles, "--keep-cycles")
    asked = _Asked(
        network=network,
        images=TrainingWords.of(words, val, on_test=recipe == "paper" and chosen.validation == 0),
        options=chosen,
        squash=words.boxes is not None or recipe == "paper",
        bilinear=recipe == "paper",
        per_class=None if per_class is None else Path(per_class),
        output=target,
        keep_cycles=cycles,
    )
    machine = machine or Machine()
    with threads_of(machine):
        return _train(
            _prepared(asked, machine, progress),
            lambda training: _write_extras(
                replace(training, seconds=time.monotonic() - started), log, figure, progress
            ),
        )


def usual_options(recipe: Recipe = "default", *, pretrained: bool = True) -> ProtoPNetOptions:
    """A recipe's options; by default with other ones for a network without pretrained weights."""
    if recipe not in PROTOPNET_RECIPES:
        raise UsageError(f"--recipe {recipe!r} is not one of {', '.join(PROTOPNET_RECIPES)}.")
    changes = FROM_SCRATCH if recipe == "default" and not pretrained else {}
    return replace(PROTOPNET_RECIPES[recipe], **changes)


def _prepared(asked: _Asked, machine: Machine, progress: Progress) -> _Run:
    """Join the other processes, load the network, read the images."""
    processes, device = processes_of(machine)
    progress = progress if processes.leads else SILENT
    progress.stage("loading the network")
    options = asked.options
    request = request_of(asked.network, offline=machine.offline, seed=options.seed)
    network, preprocessing, source, notes = load_features(request)
    for note in notes:
        progress.note(note)
    preprocessing = squashed(preprocessing, bilinear=asked.bilinear) if asked.squash else preprocessing
    images = read_training_set(asked.images, preprocessing, options, workers_of(machine), progress)
    return _Run(
        request=request, network=network, source=source, asked=asked, images=images,
        per_class=per_class_counts(asked.per_class, images.classes, options.prototypes),
        device=device, processes=processes, progress=progress,
    )  # fmt: skip


def _train(run: _Run, write_extras: Callable[[ProtoPNetTraining], ProtoPNetTraining]) -> ProtoPNetTraining | None:
    """Train or go on, then write the model and what goes with it; None in a process that only helps."""
    facts = _facts(run)
    digest = digest_of_facts(facts)
    if not run.processes.leads:
        run.processes.wait()
        folder = TrainingFolder(run.output, digest)
        _fit(run, folder, folder.load(), lambda _: None)
        return None
    with TrainingFolder(run.output, digest) as folder:
        _refuse_other_run(folder, facts, run.asked.output.force)
        folder.describe(facts)
        state = folder.load()
        run.processes.wait()
        if state.done:
            run.progress.note(f"goes on after epoch {state.log[-1]['epoch']} ({state.log[-1]['stage']})")
        try:
            trained = _fit(run, folder, state, folder.save)
        except ProtonmfError:
            if not state.done:  # nothing to go on with
                folder.discard()
            raise
        training = write_extras(_finish(run, trained, state))
        folder.discard()
    return training


def _facts(run: _Run) -> dict[str, Any]:
    """What decides the result of a run."""
    listed = "\n".join(f"{f.class_index} {f.name} {f.box} {run.images.digests[f]}" for f in run.images.fit)
    return {
        "model": run.request.name,
        "weights": str(run.request.weights),
        "model arguments": dict(run.request.model_args),
        "image size": run.request.img_size,
        "pretrained": run.request.pretrained,
        "training images": f"{len(run.images.fit)} ({hashlib.sha256(listed.encode()).hexdigest()[:8]})",
        "prototypes per class": list(run.per_class),
        "device": run.device.type,
        "processes": run.processes.world,
        "versions": installed_versions(("protonmf", "torch", "timm")),
        **json.loads(json.dumps(asdict(run.options))),
    }


def _refuse_other_run(folder: TrainingFolder, facts: dict[str, Any], force: bool) -> None:
    """An unfinished run with this output and other options is neither continued nor lost by accident."""
    others = folder.differences(facts)
    if others and not force and not (folder.folder / "state.safetensors").is_file():
        path, differences = next(iter(others.items()))
        folder.discard()
        raise InputError(
            f"an unfinished training with this output was asked for something else ({'; '.join(differences[:4])}). "
            f"Give the same options to go on, another -o, or --force to begin anew and keep it in {path}."
        )


def _fit(run: _Run, folder: TrainingFolder, state: TrainingState, keep: Callable[[TrainingState], None]) -> _Net:
    """Choose the width if asked for, then go through the schedule."""
    width = run.options.width or _choose_width(run, folder)
    trained = _new(run, width, run.images.fit, run.images.apart)
    options = trained.options
    for warning in check_patches(run.images.counts, run.per_class, trained.backbone, distinct=options.distinct):
        run.progress.warn(warning)
    steps = plan(options)

    def after_step(now: TrainingState) -> None:
        if run.asked.keep_cycles is not None and run.processes.leads and ends_cycle(steps, now.done - 1):
            _write_cycle(run.asked.keep_cycles, run, trained, now)  # first: a state is not trained again
        keep(now)

    _go(run, trained, state, after_step, lambda row: run.progress.log(epoch_line(row, options)))
    return trained


def _go(
    run: _Run,
    trained: _Net,
    state: TrainingState,
    keep: Callable[[TrainingState], None] = lambda _: None,
    told: Callable[[dict[str, Any]], None] = lambda _: None,
) -> None:
    net, backbone, options, source = trained.net, trained.backbone, trained.options, trained.source
    if not state.done:
        start_from_data(net, backbone, source.push, source.counts()[0], options, run.progress)
    trainer = Trainer(net, backbone, source, options, progress=run.progress, processes=run.processes, told=told)
    trainer.run(state, keep)


def _new(run: _Run, width: int, fit: Sequence[ImageFile], apart: Sequence[ImageFile]) -> _Net:
    """A ProtoPNet of a width, untrained, with the images it is trained on and those that choose its best cycle."""
    options, images = replace(run.options, width=width), run.images
    net, backbone = new_protopnet(
        copy.deepcopy(run.network), images.preprocessing, run.source, images.classes, options, run.per_class, run.device
    )
    shuffled = TrainingImages(
        files=list(fit), reader=images.reader, augmentation=options.augmentation, batch_size=options.batch_size,
        seed=options.seed,
    )  # fmt: skip
    return _Net(net=net, backbone=backbone, options=options, source=TrainingData(images=shuffled, apart=list(apart)))


def _choose_width(run: _Run, folder: TrainingFolder) -> int:
    """The width whose networks are right most often on folds of the training images."""
    for width in run.options.widths:
        for number, (fit, apart) in enumerate(folds(run.images.fit, FOLDS, run.options.seed)):
            if f"{width}/{number}" in folder.widths():
                continue
            state = TrainingState()
            _go(run, _new(run, width, fit, apart), state)
            found = (state.best or {})["accuracy"]
            run.progress.note(f"width {width}, fold {number + 1} of {FOLDS}: {found:.1%}")
            if run.processes.leads:
                folder.note_width(width, number, found)
            run.processes.wait()
    known = folder.widths()
    means = {w: sum(known[f"{w}/{n}"] for n in range(FOLDS)) / FOLDS for w in run.options.widths}
    best = max(means, key=lambda w: (means[w], -w))
    run.progress.note(f"width {best} is taken: {', '.join(f'{w} {m:.1%}' for w, m in means.items())} on folds")
    return best


def _write_cycle(target: Path, run: _Run, trained: _Net, state: TrainingState) -> None:
    """The model after a push, for tables over training cycles."""
    images = run.images
    model, _ = finished_model(trained, images.fit, images.reader, state.sources, DataFacts(split="train"), run.progress)
    path = target / f"cycle-{len(state.pushes)}.safetensors"
    save_model(path, model, trained.backbone.weights())
    run.progress.note(f"wrote {path}")


def _finish(run: _Run, trained: _Net, state: TrainingState) -> ProtoPNetTraining:
    """Measure the trained network, find its patches, and write the model file."""
    net, images, best = trained.net, run.images, state.best or {}
    boxes = run.asked.images.train.boxes is not None
    data = DataFacts(split="train", boxes=boxes, skipped=tuple(images.skipped))
    sources = best.get("sources") or []
    model, activations = finished_model(trained, images.fit, images.reader, sources, data, run.progress)
    figures: dict[str, float | None] = {"train": accuracy(net, activations), "held_out": best.get("accuracy")}
    figures["test"] = _test(run, trained)
    push = state.pushes[max(0, best.get("cycle", len(state.pushes)) - 1)]
    measured = replace(figures_of(model), accuracy=figures, push={**push, "cycle": best.get("cycle")})
    model = model.measured_as(measured)
    loaded, size = save_finished(run.output, model, trained.backbone, images.reader)
    return ProtoPNetTraining(
        loaded=loaded, bytes=size, network=run.request.name, options=trained.options, images=images,
        log=tuple(state.log), accuracy=figures, best_cycle=best.get("cycle"), push=push, seconds=0.0,
    )  # fmt: skip


def _test(run: _Run, trained: _Net) -> float | None:
    """Accuracy on the test images, where there are any."""
    val, reader = run.images.val, run.images.reader
    if val is None:
        return None
    run.progress.stage("test images", run.images.tested)
    batches = reader.batches(val.of(val.files))
    return accuracy(trained.net, read_activations(trained.net, trained.backbone, batches, progress=run.progress))


def _write_extras(
    training: ProtoPNetTraining, log: Path | None, figure: Path | None, progress: Progress
) -> ProtoPNetTraining:
    """The log and the curves, where they are asked for."""
    record = training_json(training)
    if log is not None:
        write_atomically(log, json.dumps(record, indent=1).encode())
        progress.note(f"wrote {log}")
    if figure is not None:
        write_atomically(figure, rendered(training_figure(record), figure.name))
        progress.note(f"wrote {figure}")
    return training
