"""Classes into the work folder: what every process of a conversion does."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from protonmf_cli.files.images.reader import ImageFile, ImageReader, encode_jpeg
from protonmf_cli.files.work.cached_features import CachedFeatures
from protonmf_cli.files.work.finished_classes import PartFiles, Shards
from protonmf_cli.files.work.spool import Spool
from protonmf_cli.jobs.conversion.preparing import PreparedConversion, cached_features
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.options import Share
from protonmf_cli.pipelines.conversion.classes import ConversionImages, convert_classes
from protonmf_cli.pipelines.progress import Progress


def reader_of(prepared: PreparedConversion, *, cropped: bool = False) -> ImageReader:
    """Reads images as the network sees them; `cropped` ones are as it does."""
    return image_reader(
        prepared.backbone.preprocessing,
        batch_size=prepared.options.batch_size,
        workers=prepared.workers,
        cropped=cropped,
    )


def convert_missing(
    prepared: PreparedConversion, shards: Shards, progress: Progress, *, share: Share | None = None
) -> dict[str, float]:
    """Convert the classes of a share that are not in the work folder and that no other process is at.

    Returns:
        Seconds spent waiting for and running the network ("extract") and on factors and examples ("factorise").
    """
    source = _source(prepared, prepared.images.files, shards.folder)
    known = None if prepared.cache is None else features_of(prepared)
    if known:
        progress.note(
            f"{len(known)} of {len(source.counts)} classes are taken from {prepared.cache}, without the network"
        )
    clock = time.monotonic()
    seconds = convert_classes(
        prepared.reads, source, prepared.options, shards, progress, known=known, share=share, turns=shards
    )
    progress.detail(f"classes done after {time.monotonic() - clock:.1f} s")
    return seconds


def features_of(prepared: PreparedConversion) -> CachedFeatures:
    """What the network gave before for the images of a conversion that has a cache."""
    assert prepared.cache is not None
    return cached_features(prepared.cache, prepared.reads, prepared.images, prepared.options, cropped=prepared.cropped)


def converted(prepared: PreparedConversion, classes: Sequence[int], group: int, folder: Path) -> dict[int, bytes]:
    """Some classes, without a work folder.

    Args:
        prepared: the conversion.
        classes: whole groups.
        group: classes in each.
        folder: for what does not fit into memory.

    Returns:
        class -> the file of its finished part.
    """
    source = _source(prepared, {c: prepared.images.files[c] for c in classes}, folder)
    finished = _Packed()
    convert_classes(prepared.reads, source, replace(prepared.options, group=group), finished)
    return finished.files


class _Packed(PartFiles):
    """Finished parts as the content of their files."""

    def __init__(self) -> None:
        self.files: dict[int, bytes] = {}

    def __contains__(self, class_index: object) -> bool:
        return class_index in self.files

    def put(self, class_index: int, content: bytes) -> None:
        self.files[class_index] = content


def _source(prepared: PreparedConversion, files: Mapping[int, Sequence[ImageFile]], folder: Path) -> ConversionImages:
    reader = reader_of(prepared, cropped=prepared.cropped)
    return ConversionImages(
        counts={c: len(some) for c, some in files.items()},
        open=lambda classes: reader.batches_of(files[c] for c in classes),
        encode=encode_jpeg,
        store=partial(Spool.unnamed, folder),
    )
