"""Trained ProtoPNets changed: pushed again, pruned, combined."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from protonmf_cli.errors import ModelFileError, UsageError
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.training_images import TrainingData, TrainingImages, read_all
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.files.work.locks import claiming
from protonmf_cli.jobs.images import check_skipped, images_of_model
from protonmf_cli.jobs.loaded import Loaded, loaded_from, local_file
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.jobs.protopnet.finished import Trained, figures_of, finished_model, save_finished
from protonmf_cli.jobs.stored_options import note_unknown
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.protopnet.combination import combined_model, combined_weights
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ImageWords, LastLayer, Machine, Output, ProtoPNetOptions
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.pipelines.protopnet.activations import Activations, accuracy, read_activations
from protonmf_cli.pipelines.protopnet.model import restored_protopnet
from protonmf_cli.pipelines.protopnet.push import check_pruning, fit_last_layer, prune, push
from protonmf_cli.pipelines.protopnet.training import train_last_layer


@dataclass(frozen=True, kw_only=True)
class ProtoPNetPush:
    """A ProtoPNet whose prototypes were projected onto training patches."""

    file: Path
    """As it was before."""
    loaded: Loaded
    """As it is now."""
    images: int
    """That it was pushed onto."""
    facts: Mapping[str, Any]
    """How far the prototypes moved, and what that and the last layer did to the accuracy."""


@dataclass(frozen=True, kw_only=True)
class ProtoPNetPruning:
    """A ProtoPNet that lost prototypes."""

    file: Path
    """As it was before."""
    loaded: Loaded
    """As it is now."""
    facts: Mapping[str, Any]
    """nearest, least; kept (numbers before) and removed prototypes."""
    last_layer: Mapping[str, Any]
    """How well it was fitted."""
    before: float
    """Accuracy on the training images."""
    after: float
    """The same now."""


@dataclass(frozen=True, kw_only=True)
class ProtoPNetCombination:
    """Several ProtoPNets in one file."""

    files: tuple[Path, ...]
    """That were combined."""
    path: Path
    """That was written."""
    model: PrototypeModel
    bytes: int
    """Of the file."""


@dataclass(frozen=True, kw_only=True)
class OpenedProtoPNet:
    """A ProtoPNet file with labelled images of its classes, ready to be changed or measured."""

    loaded: Loaded
    net: ProtoPNet
    options: ProtoPNetOptions
    """It was trained with."""
    words: ImageWords
    images: LabelledImages

    @property
    def model(self) -> PrototypeModel:
        """As the file holds it."""
        return self.loaded.model

    @property
    def count(self) -> int:
        """Images."""
        return sum(self.images.counts.values())

    def batches(self) -> Iterator[ImageBatch]:
        """The images, class after class."""
        return self.loaded.reader.batches(self.images.of(self.images.files))

    def shuffled(self, options: ProtoPNetOptions) -> TrainingData:
        """Those that can be read, in a new order per epoch and augmented, as in training."""
        reader = self.loaded.reader
        readable, _ = read_all(reader, self.images.of(self.images.files))
        images = TrainingImages(
            files=list(readable), reader=reader, augmentation=options.augmentation, batch_size=options.batch_size,
            seed=options.seed,
        )  # fmt: skip
        return TrainingData(images=images)


@claiming()
def push_protopnet(
    file: Loaded | str | PathLike[str],
    data: str | PathLike[str] | ImageWords,
    *,
    output: str | PathLike[str] | Output,
    distinct: bool | None = None,
    last_layer: LastLayer | None = None,
    l1: float | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> ProtoPNetPush:
    """Project every prototype onto its nearest training patch and fit the last layer.

    Args:
        file: a ProtoPNet, or one that is loaded.
        data: training images by class (the split train where there are two); classes without images keep their
            prototypes.
        output: file to write.
        distinct: different patches for the prototypes of a class, or each the nearest one; as trained if None.
        last_layer: solve it exactly, or train it for as many passes as after a push in training; as trained if None.
        l1: weight of the L1 term of the last layer; as trained if None.
        machine: where to compute; it is done in float32.
        progress: is told stages, notes and warnings.

    Raises:
        ModelFileError: the file holds no single ProtoPNet.
        InputError: images or output cannot be used, or a class has fewer patches than prototypes.
        NotExactError: the last layer could not be solved.
        GateError: too many images could not be read.
    """
    machine, target = machine or Machine(), Output.of(output)
    with threads_of(machine):
        opened = open_protopnet(file, ImageWords.of(data, split="train"), machine, progress, target)
        changes = {"l1": l1, "distinct": distinct, "last_layer": last_layer}
        options = _changed(opened.options, changes)
        _warn_about_missing(opened, progress)
        net, backbone = opened.net, opened.loaded.backbone
        facts, sources = push(net, backbone, opened.batches, opened.count, options, progress)
        if options.last_layer == "passes":
            passes = 0 if options.similarity == "linear" else options.head_epochs
            facts |= _trained_last_layer(opened, net, options, passes, progress)
        trained = Trained(net=net, backbone=backbone, options=options)
        loaded = _written(opened, trained, sources, target.path, progress, push=facts)
    return ProtoPNetPush(file=opened.loaded.path, loaded=loaded, images=opened.count, facts=facts)


@claiming()
def prune_protopnet(
    file: Loaded | str | PathLike[str],
    data: str | PathLike[str] | ImageWords,
    *,
    output: str | PathLike[str] | Output,
    nearest: int = 6,
    least: int = 3,
    last_layer: LastLayer | None = None,
    l1: float | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> ProtoPNetPruning:
    """Remove prototypes whose nearest training images are of other classes, then fit the last layer.

    Args:
        file: a ProtoPNet, or one that is loaded.
        data: training images by class (the split train where there are two).
        output: file to write.
        nearest: nearest training images of a prototype that are looked at.
        least: how many of them must be of the prototype's class.
        last_layer: solve it exactly, or train it for `prune_epochs` passes; as trained if None.
        l1: weight of the L1 term of the last layer; as trained if None.
        machine: where to compute; it is done in float32.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: `least` is more than `nearest`.
        ModelFileError: the file holds no single ProtoPNet.
        InputError: images or output cannot be used, or a class would keep no prototype.
        NotExactError: the last layer could not be solved.
        GateError: too many images could not be read.
    """
    if least > nearest:
        raise UsageError(f"--least {least} is more than --nearest {nearest}: every prototype would go.")
    machine, target = machine or Machine(), Output.of(output)
    with threads_of(machine):
        opened = open_protopnet(file, ImageWords.of(data, split="train"), machine, progress, target)
        old, backbone = opened.model, opened.loaded.backbone
        progress.stage("nearest images of every prototype", opened.count)
        found = read_activations(opened.net, backbone, opened.batches(), progress=progress)
        before = accuracy(opened.net, found)
        kept = prune(opened.net, found, nearest=nearest, least=least)
        check_pruning(kept, opened.net, tuple(c.shown for c in backbone.classes), nearest, least)
        smaller, chosen, fewer = _without(opened, found, kept)
        options = _changed(opened.options, {"l1": l1, "last_layer": last_layer})
        if options.last_layer == "passes":
            found_after = _trained_last_layer(opened, smaller, options, options.prune_epochs, progress)
            fitted, after = found_after["last_layer"], found_after["accuracy_last_layer"]
        else:
            fitted = fit_last_layer(smaller, fewer, options)
            after = accuracy(smaller, fewer)
        facts = {"nearest": nearest, "least": least, "kept": chosen, "removed": _removed(old, kept)}
        sources = [_source_of(old, j) for j in chosen]
        trained = Trained(net=smaller, backbone=backbone, options=options)
        loaded = _written(opened, trained, sources, target.path, progress, push=figures_of(old).push, pruned=facts)
    return ProtoPNetPruning(
        file=opened.loaded.path, loaded=loaded, facts=facts, last_layer=fitted, before=before, after=after,
    )  # fmt: skip


@claiming()
def combine_protopnets(
    files: Sequence[str | PathLike[str]], *, output: str | PathLike[str] | Output
) -> ProtoPNetCombination:
    """Add the logits of several networks in one file, which explains itself.

    Args:
        files: two or more ProtoPNets with the same classes.
        output: file to write.

    Raises:
        UsageError: fewer than two files.
        ModelFileError: a file holds no ProtoPNet.
        InputError: the classes differ, or the output cannot be written.
    """
    if len(files) < 2:
        raise UsageError("combine adds the logits of several networks: give two or more files.")
    paths, target = tuple(Path(file) for file in files), Output.of(output)
    check_writable(target.path, target.force)
    members = []
    for path in map(local_file, paths):
        model, weights = load_model(path)
        check_protopnet(model, path)
        if weights is None:
            raise ModelFileError(f"{path} holds no network, so it cannot be combined.")
        members.append((model, weights))
    found = combined_model([model for model, _ in members], [str(path) for path in paths])
    size = save_model(target.path, found, combined_weights(members))
    return ProtoPNetCombination(files=paths, path=target.path, model=found, bytes=size)


def open_protopnet(
    file: Loaded | str | PathLike[str],
    words: ImageWords,
    machine: Machine,
    progress: Progress,
    output: Output | None = None,
) -> OpenedProtoPNet:
    """A trained file with labelled images.

    Args:
        file: a ProtoPNet, or one that is loaded.
        words: images, with a split.
        machine: where to compute.
        progress: is told what is odd about the images.
        output: is written in the end, which must be possible.
    """
    if output is not None:
        check_writable(output.path, output.force)
    loaded = load_protopnet(file, machine, progress)
    card = loaded.model.card
    if card.members:
        raise ModelFileError(f"{loaded.path} combines several networks: give the files it was made of one by one.")
    images = images_of_model(words, card)
    for note in images.notes:
        progress.note(note)
    note_unknown(card.unknown_options, progress)
    assert isinstance(card.options, ProtoPNetOptions)
    return OpenedProtoPNet(
        loaded=loaded, net=restored_protopnet(loaded.backbone, loaded.model), options=card.options,
        words=words, images=images,
    )  # fmt: skip


def load_protopnet(file: Loaded | str | PathLike[str], machine: Machine, progress: Progress) -> Loaded:
    """A file with its network, which it holds, in float32; several combined ones too."""
    loaded = loaded_from(file, replace(machine, dtype="float32", offline=True), progress)
    check_protopnet(loaded.model, loaded.path)
    return loaded


def check_protopnet(model: PrototypeModel, file: Path) -> None:
    """Refuse another kind of model.

    Raises:
        ModelFileError: naming what the file holds.
    """
    known = isinstance(model.card.options, ProtoPNetOptions) or model.card.members
    if not (model.evidence.kind.is_of_patches and known):
        raise ModelFileError(
            f"{file} holds a {model.card.method} model, not a ProtoPNet. Train one with `protonmf protopnet train`."
        )


def _changed(options: ProtoPNetOptions, changes: Mapping[str, Any]) -> ProtoPNetOptions:
    """Options as a file was trained with, but for those that were given."""
    return replace(options, **{name: value for name, value in changes.items() if value is not None})


def _trained_last_layer(
    opened: OpenedProtoPNet, net: ProtoPNet, options: ProtoPNetOptions, passes: int, progress: Progress
) -> dict[str, Any]:
    """Train the head on augmented images; returns last_layer, and accuracy_last_layer on the images as they are."""
    backbone = opened.loaded.backbone
    fitted = train_last_layer(net, backbone, opened.shuffled(options), options, passes, progress=progress)
    progress.stage("after the last layer", opened.count)
    found = read_activations(net, backbone, opened.batches(), progress=progress)
    return {"last_layer": fitted, "accuracy_last_layer": accuracy(net, found)}


def _source_of(model: PrototypeModel, prototype: int) -> Mapping[str, Any] | None:
    """Where a prototype's own patch is: its first example, with the map it is shown with if that is of before a push."""
    examples = model.examples.of(prototype)
    if not examples:
        return None
    image = model.examples.sources[examples[0]]
    options = model.card.options
    assert isinstance(options, ProtoPNetOptions)
    shown = {"map": model.examples.map[examples[0]].flatten().tolist()} if options.boxes_before_push else {}
    return {"image": {"path": image.path, "sha256": image.sha256}, "row": None, **shown}


def _warn_about_missing(opened: OpenedProtoPNet, progress: Progress) -> None:
    """Name the classes whose prototypes stay as they are."""
    missing = [c for c in opened.model.active_classes.tolist() if c not in opened.images.files]
    if missing:
        names = ", ".join(opened.model.card.classes[c].shown for c in missing[:5]) + (", ..." if missing[5:] else "")
        progress.warn(f"{len(missing)} classes have no images and keep their prototypes as they are: {names}")


def _without(opened: OpenedProtoPNet, found: Activations, kept: Tensor) -> tuple[ProtoPNet, list[int], Activations]:
    """The network with some of its prototypes, their numbers before, and the activations that stay."""
    chosen = kept.nonzero()[:, 0].tolist()
    net = opened.net
    smaller = ProtoPNet(
        net.network, net.readout, net.prototypes.data[chosen], net.owner[chosen], len(net.head), net.similarity
    )
    smaller.head.data = net.head.data[:, chosen].clone()
    smaller = smaller.to(opened.loaded.backbone.device).requires_grad_(False).eval()
    return smaller, chosen, found.of(chosen)


def _removed(model: PrototypeModel, kept: Tensor) -> list[dict[str, Any]]:
    """Which prototypes of a model go."""
    return [
        {"class": model.card.classes[int(model.owner[j])].label, "prototype": model.number(j), "prototype_id": j}
        for j in (~kept).nonzero()[:, 0].tolist()
    ]


def _written(
    opened: OpenedProtoPNet,
    trained: Trained,
    sources: Sequence[Mapping[str, Any] | None],
    output: Path,
    progress: Progress,
    *,
    push: Mapping[str, Any] | None,
    pruned: Mapping[str, Any] | None = None,
) -> Loaded:
    """Save a changed network with its patches; figures of the old one that no longer hold are dropped."""
    files, reader = opened.images.of(opened.images.files), opened.loaded.reader
    # null where the old file does not say it
    data = DataFacts.read({"boxes": opened.model.card.data.boxes})
    model, activations = finished_model(trained, files, reader, sources, data, progress)
    skipped = tuple(activations.skipped)
    check_skipped(skipped, len(activations.images), opened.words.max_skipped)
    right = {"train": accuracy(trained.net, activations)}
    model = model.measured_as(replace(figures_of(model), accuracy=right, push=push, pruned=pruned))
    model = replace(model, card=replace(model.card, data=replace(model.card.data, skipped=skipped)))
    return save_finished(output, model, trained.backbone, reader)[0]
