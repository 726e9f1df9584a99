"""From a network and its images to a prototype model file."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from protonmf_cli.files.atomic import check_writable
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.reader import encode_jpeg
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.store import save_model
from protonmf_cli.files.work.cached_features import CachedFeatures
from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.files.work.folder import digest_of_facts
from protonmf_cli.jobs.images import check_data, check_skipped, labelled_images
from protonmf_cli.jobs.loaded import Loaded, image_reader
from protonmf_cli.jobs.machine import device_of, dtype_of, threads_of, workers_of
from protonmf_cli.jobs.networks import check_kept, request_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import ConversionFigures, DataFacts
from protonmf_cli.options import ConversionOptions, ImageWords, Machine, NetworkWords, Output
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.conversion.classes import (
    SAMPLED_IMAGES,
    ConversionImages,
    check_counts,
    convert_classes,
)
from protonmf_cli.pipelines.conversion.rows import images_that_fit
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.versions import installed_versions

MOST_CLASSES_AT_ONCE = 8
"""Classes factorised in one batch on a GPU, where they fit into the memory of one class together."""


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion."""

    loaded: Loaded
    """The prototype model and its network."""
    bytes: int
    """Of the file."""
    seconds: Mapping[str, float | None]
    """By stage: extract, factorise, head, residual (part of head), total."""

    @property
    def figures(self) -> ConversionFigures:
        """What was measured on the images that were converted."""
        found = self.loaded.model.card.conversion
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True)
class PreparedConversion:
    """Everything that is known before the network runs over the images."""

    backbone: Backbone
    images: LabelledImages
    options: ConversionOptions
    output: Path
    embed: bool
    workers: int
    cache: Path | None
    max_skipped: float
    started: float


@dataclass(frozen=True, kw_only=True)
class ConversionPlan:
    """What a conversion would do."""

    prepared: PreparedConversion
    images: int
    most_prototypes: int
    bytes_of_cached_features: int
    bytes_while_working: int
    seconds: float
    """That the network takes, from one small batch."""


def convert(
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: ConversionOptions | None = None,
    *,
    output: str | PathLike[str] | Output = "prototypes.safetensors",
    embed: bool = True,
    cache: Path | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Conversion:
    """Convert a trained classifier into a prototype model; its logits stay exactly equal.

    Killed and called again it goes on where it stopped.

    Args:
        model: timm name, hf-hub:org/name, local-dir:PATH, or more words about the network.
        data: images by class (the split train where there are two).
        options: `RECIPES["default"]` if None.
        output: file to write.
        embed: keep the network's weights in the file.
        cache: folder for what the network gave; the next conversion of the same images does not run it.
        machine: where and how to compute.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: the network is unknown.
        InputError: data, network or output cannot be used.
        NotExactError: the classifier cannot be written as a sum over rows.
        GateError: too many images could not be read.
    """
    machine = machine or Machine()
    with threads_of(machine):
        prepared = prepare_conversion(
            model, data, options, output=output, embed=embed, cache=cache, machine=machine, progress=progress
        )
        return run_conversion(prepared, progress)


def prepare_conversion(
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: ConversionOptions | None = None,
    *,
    output: str | PathLike[str] | Output,
    embed: bool,
    cache: Path | None,
    machine: Machine,
    progress: Progress,
    writes: bool = True,
) -> PreparedConversion:
    """Load the network, list the images and settle the options, with warnings of what will not go well.

    Args:
        model, data, options, output, embed, cache, machine, progress: as in `convert`.
        writes: False for a plan, whose output may exist.
    """
    started = time.monotonic()
    network, words, target = NetworkWords.of(model), ImageWords.of(data, split="train"), Output.of(output)
    check_kept(network, embed)
    check_data(words.data)
    if writes:
        check_writable(target.path, target.force)
    progress.stage("loading the model")
    chosen = replace(options or ConversionOptions(), batch_size=machine.batch_size)
    device = device_of(machine)
    dtype = dtype_of(machine)
    backbone, notes = load_backbone(request_of(network, rows=chosen.rows, offline=machine.offline))
    backbone = backbone.to(device, dtype)
    fitting = images_that_fit(backbone, chosen.memory)
    images = labelled_images(words, backbone.classes).limited(fitting, chosen.seed)
    largest = max(images.counts.values())
    at_once = max(1, min(MOST_CLASSES_AT_ONCE, fitting // largest)) if device.type == "cuda" else 1
    for note in (*notes, *images.notes):
        progress.note(note)
    prepared = PreparedConversion(
        backbone=backbone, images=images, options=replace(chosen, group=at_once), output=target.path, embed=embed,
        workers=workers_of(machine), cache=cache, max_skipped=words.max_skipped, started=started,
    )  # fmt: skip
    _warn_about(prepared, progress)
    check_counts(backbone, images.counts, prepared.options)
    return prepared


def run_conversion(prepared: PreparedConversion, progress: Progress) -> Conversion:
    """Convert, assemble, save."""
    backbone, images, options = prepared.backbone, prepared.images, prepared.options
    reader = image_reader(backbone.preprocessing, batch_size=options.batch_size, workers=prepared.workers)
    source = ConversionImages(
        counts=images.counts, open=lambda classes: reader.batches(images.of(classes)), encode=encode_jpeg
    )
    with Shards(prepared.output, _digest(backbone, images, asdict(options))) as shards:
        if others := shards.others():
            progress.note(
                f"{shards.work} also holds {len(others)} unfinished conversion(s) with other options, data or weights; "
                "they are kept. Remove the folder if you do not need them."
            )
        if done := len(shards):
            progress.note(f"{done} of {len(source.counts)} classes were finished before and are kept")
        clock = time.monotonic()
        known = None if prepared.cache is None else cached_features(prepared.cache, backbone, images, options)
        if known:
            progress.note(
                f"{len(known)} of {len(source.counts)} classes are taken from {prepared.cache}, without the network"
            )
        seconds: dict[str, float | None] = dict(
            convert_classes(backbone, source, options, shards, progress, known=known)
        )
        progress.detail(f"classes done after {time.monotonic() - clock:.1f} s")
        clock = time.monotonic()
        facts = DataFacts(split=images.root.name, left_out={str(c): n for c, n in images.left_out.items()})
        model = assemble_model(backbone, shards, options, data=facts, progress=progress)
        seconds |= {"head": time.monotonic() - clock, "residual": None}
        check_skipped(model.card.data.skipped or (), model.card.data.images, prepared.max_skipped)
        size = save_model(prepared.output, model, backbone.weights() if prepared.embed else None)
        shards.discard()
    seconds["total"] = time.monotonic() - prepared.started
    loaded = Loaded(path=prepared.output, model=model, backbone=backbone, reader=reader, embedded=prepared.embed)
    conversion = Conversion(loaded=loaded, bytes=size, seconds=seconds)
    if len(model.active_classes) > 1:
        _check_accuracy(conversion.figures.accuracy_black_box, len(backbone.classes), progress)
    return conversion


def plan_of(prepared: PreparedConversion) -> ConversionPlan:
    """What a conversion would do: prototypes, disk and time, from one small batch."""
    backbone, options, counts = prepared.backbone, prepared.options, prepared.images.counts
    files = prepared.images.of(counts)
    reader = image_reader(backbone.preprocessing, batch_size=8, workers=prepared.workers)
    start = time.monotonic()
    batch = next(reader.batches(files[:8]))
    if len(batch.crops):
        backbone.read(batch.crops)
    per_image = (time.monotonic() - start) / max(1, len(batch.sources) + len(batch.skipped))
    row = 4 * backbone.readout.width
    grid = backbone.readout.places or len(backbone.readout.unplaced)
    prototypes = (options.prototypes or options.max_prototypes) * len(counts)
    channels, height, width = backbone.preprocessing.input_size
    return ConversionPlan(
        prepared=prepared,
        images=len(files),
        most_prototypes=prototypes,
        bytes_of_cached_features=len(files) * (row * grid + channels * height * width) if prepared.cache else 0,
        bytes_while_working=len(files) * row + len(counts) * SAMPLED_IMAGES * grid * row + prototypes * options.examples * 20_000,
        seconds=per_image * len(files),
    )  # fmt: skip


def cached_features(
    folder: Path, backbone: Backbone, images: LabelledImages, options: ConversionOptions
) -> CachedFeatures:
    """What the network gave before for these images, under a name that changes with everything it depends on."""
    facts = {"batch_size": options.batch_size, "memory": options.memory, "seed": options.seed}
    return CachedFeatures(folder, _digest(backbone, images, facts))


def _digest(backbone: Backbone, images: LabelledImages, options: Mapping[str, Any]) -> str:
    """Of everything that decides the result: classes of another conversion are never mixed in."""
    parts = {
        "options": options,
        "weights": backbone.source.digest,
        "rows": [backbone.readout.kind, backbone.rows_option],
        "preprocessing": asdict(backbone.preprocessing),
        "data": images.fingerprint(),
        "number": [str(backbone.dtype), backbone.device.type],
        "versions": installed_versions(("protonmf", "torch", "timm")),
    }
    return digest_of_facts(parts)


def _warn_about(prepared: PreparedConversion, progress: Progress) -> None:
    backbone, images, options = prepared.backbone, prepared.images, prepared.options
    few = [c for c, count in images.counts.items() if count < (options.prototypes or 1)]
    if few and backbone.readout.spatial:
        names = ", ".join(backbone.classes[c].shown for c in few[:5]) + (", ..." if len(few) > 5 else "")
        progress.warn(
            f"{len(few)} classes have fewer images than prototypes ({options.prototypes}): {names}. Their prototypes are "
            "parts of single images; give more images, a smaller -p, or -p auto."
        )
    if not backbone.readout.spatial:
        again = f" Leave out --rows {options.rows} to read it by places if its head has any."
        progress.warn(
            f"{backbone.source.name} is read through one row per image ({backbone.readout.kind}; spatial = false): "
            f"contributions are exact, but no position can be shown.{again if options.rows != 'auto' else ''}"
        )
    for c, count in images.left_out.items():
        progress.warn(
            f"class {backbone.classes[c].shown} is larger than --memory: {count} of its images are left out "
            f"(drawn with --seed)"
        )


def _check_accuracy(accuracy: float, classes: int, progress: Progress) -> None:
    if accuracy <= max(2 / classes, 0.02):
        progress.warn(
            f"the classifier itself gets only {accuracy:.1%} of these images right, about chance: "
            "the class map may be permuted, or the preprocessing may not fit (--model-arg)."
        )
