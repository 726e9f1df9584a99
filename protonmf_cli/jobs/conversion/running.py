"""From a network and its images to a prototype model file, alone or together with other processes."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

from protonmf_cli.errors import InputError, ProtonmfError
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.sources.source import listed
from protonmf_cli.files.leftovers import sweep
from protonmf_cli.files.store import save_model
from protonmf_cli.files.work.finished_classes import FinishedElsewhere, Shards
from protonmf_cli.jobs.conversion.filling import convert_missing, features_of, reader_of
from protonmf_cli.jobs.conversion.in_hand import Images, Network, check_alone, images_in_hand, network_words
from protonmf_cli.jobs.conversion.preparing import (
    ConversionWords,
    PreparedConversion,
    check_words,
    prepare_conversion,
)
from protonmf_cli.jobs.conversion.processes import helpers_of
from protonmf_cli.jobs.images import check_skipped, note_skipped, nothing_read
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.card import ConversionFigures, DataFacts
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.options import ConversionOptions, Distribution, ImageWords, Machine, NetworkWords, Output, Share
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A finished conversion."""

    loaded: Loaded
    """The prototype model and its network."""
    bytes: int
    """Of the file."""
    seconds: Mapping[str, float | None]
    """By stage: extract, factorise (None on a cluster), head, residual (part of head), total."""

    @property
    def figures(self) -> ConversionFigures:
        """What was measured on the images that were converted."""
        found = self.loaded.model.card.conversion
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True)
class ConvertedShare:
    """A share that is done while others are not; whoever comes last writes the file."""

    output: Path
    share: Share
    finished: int
    """Classes, of all shares."""
    missing: tuple[str, ...]
    """Names of the others; none where another process is writing the file."""


def convert(
    model: Network,
    data: Images,
    options: ConversionOptions | None = None,
    *,
    features: str | None = None,
    preprocessing: Mapping[str, Any] | None = None,
    classes: Sequence[str] | None = None,
    multi_label: bool | None = None,
    output: str | PathLike[str] | Output = "prototypes.safetensors",
    embed: bool = True,
    cache: Path | None = None,
    machine: Machine | None = None,
    distribution: Distribution | None = None,
    progress: Progress = LOGGED,
) -> Conversion:
    """Convert a trained classifier into a prototype model; its logits stay exactly equal.

    Killed and called again it goes on where it stopped.

    Args:
        model: timm name, hf-hub:org/name, local-dir:PATH, more words about the network, or a torch module: images
            (B, channels, height, width) -> logits.
        data: images by class (the split train where there are two): a folder or more words, a data set of (picture,
            label) or a DataLoader of (batch, labels), see `write_images`.
        options: `RECIPES["default"]` if None.
        features: name of the module inside the network that its features come out of; found if None.
        preprocessing: how a module's images are read, as timm's `pretrained_cfg`: input_size, mean, std, crop_pct,
            interpolation; beyond or instead of the module's own.
        classes: names of a module's classes; those that the module or the data set has if None.
        multi_label: whether an image may be of several classes, each with a sigmoid; as the network says if None.
        output: file to write.
        embed: keep the network's weights in the file.
        cache: folder for what the network gave; the next conversion of the same images does not run it.
        machine: where and how to compute.
        distribution: what works on it besides this process; the file is the same.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: the network is unknown.
        InputError: data, network or output cannot be used.
        NotExactError: the classifier cannot be written as a sum over rows.
        GateError: too many images could not be read.
    """
    network = network_words(
        model, data, features=features, preprocessing=preprocessing, classes=classes, multi_label=multi_label
    )
    with images_in_hand(data) as (images, dataset):
        words = words_of(network, images, options, output=output, embed=embed, cache=cache, machine=machine)
        alone = check_alone(network, dataset, distribution or Distribution())
        return convert_words(replace(words, dataset=dataset), alone, progress)


def convert_share(
    share: Share,
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: ConversionOptions | None = None,
    *,
    output: str | PathLike[str] | Output = "prototypes.safetensors",
    embed: bool = True,
    cache: Path | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Conversion | ConvertedShare:
    """Convert one share of the classes, where a scheduler starts every share as a process, on any machine.

    Args:
        share: which classes; the others' results are expected in the same folder.
        model, data, options, output, embed, cache, machine, progress: as of `convert`, the same for all shares.

    Returns:
        The finished conversion where this share was the last one, else what is missing.

    Raises:
        InputError: as `convert`, or the shares that are there were begun with other options, data or weights.
    """
    words = words_of(model, data, options, output=output, embed=embed, cache=cache, machine=machine)
    return convert_words_of_share(share, words, progress)


def words_of(
    model: str | NetworkWords,
    data: str | PathLike[str] | ImageWords,
    options: ConversionOptions | None,
    *,
    output: str | PathLike[str] | Output,
    embed: bool,
    cache: Path | None,
    machine: Machine | None,
) -> ConversionWords:
    """The arguments of `convert` in one piece."""
    return ConversionWords(
        network=NetworkWords.of(model), images=ImageWords.of(data, split="train"),
        options=options or ConversionOptions(), output=Output.of(output), embed=embed, cache=cache,
        machine=machine or Machine(),
    )  # fmt: skip


def convert_words(words: ConversionWords, distribution: Distribution, progress: Progress) -> Conversion:
    """As `convert`."""
    check_words(words)
    with helpers_of(words, distribution, progress) as helpers, threads_of(helpers.machine):
        prepared = prepare_conversion(replace(words, machine=helpers.machine), progress)
        with Shards(prepared.output, prepared.digest) as shards:
            check_writable(prepared.output, prepared.force)  # which a share may have written meanwhile
            shards.describe(prepared.facts)
            _say_what_is_there(shards, prepared, progress)
            seconds = helpers.convert(prepared, shards, progress)
            return finish_conversion(prepared, shards, seconds, progress)


def convert_words_of_share(share: Share, words: ConversionWords, progress: Progress) -> Conversion | ConvertedShare:
    """As `convert_share`."""
    check_words(words)
    with threads_of(words.machine):
        prepared = prepare_conversion(words, progress)
        counts = prepared.images.counts
        written = ConvertedShare(output=prepared.output, share=share, finished=len(counts), missing=())
        with Shards(prepared.output, prepared.digest, leads=False) as shards:
            _describe_share(shards, prepared)
            try:
                seconds = convert_missing(prepared, shards, progress, share=share)
            except FinishedElsewhere:
                return written
            if missing := [c for c in counts if c not in shards]:
                if not shards.folder.is_dir():
                    return written
                names = tuple(prepared.backbone.classes[c].shown for c in missing)
                return replace(written, finished=len(counts) - len(missing), missing=names)
            if not shards.take() or any(c not in shards for c in counts):  # the file was written in between
                return written
            check_writable(prepared.output, prepared.force)
            return finish_conversion(prepared, shards, seconds, progress)


def finish_conversion(
    prepared: PreparedConversion, shards: Shards, seconds: Mapping[str, float | None], progress: Progress
) -> Conversion:
    """Assemble and save what is in the work folder, and remove that."""
    backbone, images, clock = prepared.backbone, prepared.images, time.monotonic()
    facts = DataFacts(split=images.split, left_out={str(c): n for c, n in images.left_out.items()})
    standard = ConversionOptions()  # for what is the machine's, so that equal models are equal bytes
    options = replace(prepared.options, memory=standard.memory, group=standard.group)
    _check_read(prepared, shards, progress)
    model = assemble_model(backbone, shards, options, data=facts, progress=progress)
    head = time.monotonic() - clock
    sweep(prepared.output.parent, prepared.output.name)  # what a killed one left, as no other one is at it
    size = save_model(prepared.output, model, backbone.weights() if prepared.embed else None)
    shards.discard()
    whole = {**seconds, "head": head, "residual": None, "total": time.monotonic() - prepared.started}
    loaded = Loaded(
        path=prepared.output, model=model, backbone=backbone, reader=reader_of(prepared), embedded=prepared.embed
    )
    conversion = Conversion(loaded=loaded, bytes=size, seconds=whole)
    if len(model.active_classes) > 1:
        _check_accuracy(conversion.figures.accuracy_black_box, len(backbone.classes), progress)
    return conversion


def _check_read(prepared: PreparedConversion, shards: Shards, progress: Progress) -> None:
    """Name what could not be read, before the head is computed; after a refusal, classes of nothing else are read again.

    Raises:
        GateError: it is too much.
        InputError: it is all.
    """
    noted = {c: shards.facts(c) for c in shards}
    read = {c: len(facts["images"]) for c, facts in noted.items()}
    every = [Skipped(**skip) for facts in noted.values() for skip in facts["skipped"]]
    empty = [c for c, count in read.items() if not count]
    note_skipped(every, progress)
    try:
        check_skipped(every, sum(read.values()), prepared.max_skipped)
        if not any(read.values()):
            raise nothing_read(every)
    except ProtonmfError:
        _forget(prepared, shards, empty)
        raise
    if empty:
        names = listed(prepared.backbone.classes[c].shown for c in empty)
        progress.warn(
            f"no image of {len(empty)} classes could be read: {names}. They have no prototypes, and all of their "
            "evidence is residual."
        )


def _forget(prepared: PreparedConversion, shards: Shards, classes: Iterable[int]) -> None:
    """Results of classes without images: these may be repaired without a change of their sizes."""
    known = None if prepared.cache is None else features_of(prepared)
    for c in classes:
        del shards[c]
        if known is not None and c in known:
            del known[c]


def _describe_share(shards: Shards, prepared: PreparedConversion) -> None:
    """Write down what a share does, then look what others do: of two that begin together, one at least sees the other.

    Raises:
        InputError: others were begun otherwise.
    """
    shards.describe(prepared.facts)
    if others := shards.differences(prepared.facts):
        shards.leave()
        folder, different = next(iter(others.items()))
        raise InputError(
            f"{folder} holds shares of the same output that were begun otherwise ({'; '.join(different)}). "
            "Give all shares the same options, data and weights, or remove that folder."
        )


def _say_what_is_there(shards: Shards, prepared: PreparedConversion, progress: Progress) -> None:
    if others := shards.others():
        progress.note(
            f"{shards.work} also holds {len(others)} unfinished conversion(s) with other options, data or weights; "
            "they are kept. Remove the folder if you do not need them."
        )
    if done := len(shards):
        progress.note(f"{done} of {len(prepared.images.counts)} classes were finished before and are kept")


def _check_accuracy(accuracy: float, classes: int, progress: Progress) -> None:
    if accuracy <= max(2 / classes, 0.02):
        progress.warn(
            f"the classifier itself gets only {accuracy:.1%} of these images right, about chance: "
            "the class map may be permuted, or the preprocessing may not fit (--model-arg)."
        )
