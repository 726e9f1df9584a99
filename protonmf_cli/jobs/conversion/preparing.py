"""Everything about a conversion that is known before the network runs over the images."""

import time
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.from_datasets import write_images
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.work.cached_features import CachedFeatures
from protonmf_cli.files.work.folder import digest_of_facts
from protonmf_cli.jobs.images import check_data, labelled_images
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.jobs.machine import device_of, dtype_of, threads_of, workers_of
from protonmf_cli.jobs.networks import check_kept, request_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.options import ConversionOptions, ImageWords, Machine, NetworkWords, Output
from protonmf_cli.pipelines.conversion.classes import SAMPLED_IMAGES, check_counts
from protonmf_cli.pipelines.conversion.rows import images_that_fit
from protonmf_cli.pipelines.progress import Progress
from protonmf_cli.versions import installed_versions, packages_of

MOST_CLASSES_AT_ONCE = 8
"""Classes factorised in one batch on a GPU, where they fit into the memory of one class together."""


@dataclass(frozen=True, kw_only=True)
class ConversionWords:
    """A conversion as it is asked for; travels to other processes."""

    network: NetworkWords
    images: ImageWords
    options: ConversionOptions = field(default_factory=ConversionOptions)
    output: Output
    embed: bool = True
    """Keep the network's weights in the file."""
    cache: Path | None = None
    """Folder for what the network gave."""
    machine: Machine = field(default_factory=Machine)
    dataset: Any = None
    """A data set or loader, which is written into the (empty) folder of the images."""


@dataclass(frozen=True, kw_only=True)
class PreparedConversion:
    """Everything that is known before the network runs over the images."""

    backbone: Backbone
    reads: Backbone
    """What rows are read with: the same, or a copy that rounds more."""
    images: LabelledImages
    options: ConversionOptions
    output: Path
    embed: bool
    workers: int
    cache: Path | None
    max_skipped: float
    force: bool
    started: float
    cropped: bool
    """The images are what the network sees."""

    @cached_property
    def facts(self) -> dict[str, Any]:
        """See `facts_of`."""
        return facts_of(self)

    @property
    def digest(self) -> str:
        """Of the facts."""
        return digest_of_facts(self.facts)


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


def check_words(words: ConversionWords, *, writes: bool = True) -> None:
    """Refuse what is wrong at first sight, before anything is loaded or started.

    Raises:
        InputError: the data does not exist, the output does, or the network's file would be lost.
    """
    check_kept(words.network, words.embed)
    if words.dataset is None:
        check_data(words.images.data)
    # a plan's output may exist
    check_writable(words.output.path, words.output.force or not writes, alone=writes)


def prepare_conversion(words: ConversionWords, progress: Progress, *, writes: bool = True) -> PreparedConversion:
    """Load the network, list the images and settle the options, with warnings of what will not go well.

    Args:
        words: the conversion.
        progress: is told stages, notes and warnings.
        writes: False for a plan, whose output may exist.

    Raises:
        UsageError, InputError, NotExactError: see `convert`.
    """
    started = time.monotonic()
    network, target, machine = words.network, words.output, words.machine
    check_words(words, writes=writes)
    progress.stage("loading the model")
    chosen = replace(words.options, batch_size=machine.batch_size)
    device = device_of(machine)
    dtype = dtype_of(machine, rows=True)
    backbone, notes = load_backbone(request_of(network, rows=chosen.rows, offline=machine.offline))
    half = dtype == torch.bfloat16
    backbone = backbone.to(device, torch.float32 if half else dtype)
    images, cropped = _written(words, backbone)
    found = labelled_images(images, backbone.classes, multi_label=backbone.source.multi_label)
    found = found if chosen.sample is None else found.limited(chosen.sample, chosen.seed)
    fitting, largest = images_that_fit(backbone, chosen.memory), max(found.counts.values())
    at_once = max(1, min(MOST_CLASSES_AT_ONCE, fitting // largest)) if device.type == "cuda" else 1
    for note in (*notes, *found.notes):
        progress.note(note)
    prepared = PreparedConversion(
        backbone=backbone, reads=backbone.copy_as(dtype) if half else backbone, images=found, options=replace(chosen, group=at_once), output=target.path,
        embed=words.embed, workers=workers_of(machine), cache=words.cache, max_skipped=images.max_skipped,
        force=target.force, started=started, cropped=cropped,
    )  # fmt: skip
    _warn_about(prepared, progress)
    check_counts(backbone, found.counts, prepared.options)
    return prepared


def _written(words: ConversionWords, backbone: Backbone) -> tuple[ImageWords, bool]:
    """Where the images lie, and whether they are what the network sees."""
    if words.dataset is None:
        return words.images, False
    found = write_images(words.dataset, Path(words.images.data), backbone.preprocessing, backbone.classes)
    return replace(words.images, data=found.folder, class_map=found.class_map), found.cropped


def plan(words: ConversionWords, progress: Progress) -> ConversionPlan:
    """What a conversion would do: prototypes, disk and time, from one small batch."""
    with threads_of(words.machine):
        return _plan_of(prepare_conversion(words, progress, writes=False))


def _plan_of(prepared: PreparedConversion) -> ConversionPlan:
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
    folder: Path, backbone: Backbone, images: LabelledImages, options: ConversionOptions, *, cropped: bool = False
) -> CachedFeatures:
    """What the network gave before for these images, under a name that changes with everything it depends on."""
    facts = _facts(backbone, images, cropped=cropped)
    return CachedFeatures(folder, digest_of_facts(facts | {"batch_size": options.batch_size}))


def facts_of(prepared: PreparedConversion) -> dict[str, Any]:
    """Everything that decides the result: classes of another conversion are never mixed in.

    Not the machine (device, memory, how many classes it factorises at once), which changes rounding alone.
    """
    options = {name: value for name, value in asdict(prepared.options).items() if name not in ("memory", "group")}
    return _facts(prepared.reads, prepared.images, cropped=prepared.cropped) | options


def _facts(backbone: Backbone, images: LabelledImages, *, cropped: bool) -> dict[str, Any]:
    return {
        **({"cropped": True} if cropped else {}),
        **({"multi_label": True} if backbone.source.multi_label else {}),
        "weights": backbone.source.digest,
        "rows": [backbone.readout.kind, backbone.rows_option],
        "preprocessing": asdict(backbone.preprocessing),
        "data": images.fingerprint(),
        "dtype": str(backbone.dtype),
        "versions": installed_versions(packages_of(backbone.source.library)),
    }


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
    if images.left_out:
        progress.note(
            f"--sample {options.sample}: {sum(images.left_out.values())} images of {len(images.left_out)} classes are "
            "left out (drawn with --seed)"
        )
