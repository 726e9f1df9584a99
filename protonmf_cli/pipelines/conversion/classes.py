"""Black box to prototypes, class by class: read, factorise, keep the strongest patches (ProtoNMF, eq. 1-3)."""

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.maths.nmf import Factors
from protonmf_cli.maths.scoring import peak_box, strongest_images
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassPart, ClassReading, PartExamples
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.readouts.readout import ROUNDING_LIMIT, ROUNDING_WARNING
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.factorisation import ClassFactors, choose_number, factorise_readings
from protonmf_cli.pipelines.conversion.rows import factorised_rows, read_class
from protonmf_cli.pipelines.progress import SILENT, Progress

SAMPLED_IMAGES = 8
"""Images of each class whose rows are kept until the assembly, to compare maps on."""


@dataclass(frozen=True, kw_only=True)
class ConversionImages:
    """The training images as a conversion sees them."""

    counts: Mapping[int, int]
    """class -> image files"""
    open: Callable[[Sequence[int]], Iterator[ImageBatch]]
    """Batches of the given classes, class after class in that order, none across a class."""
    encode: Callable[[Tensor], bytes]
    """A uint8 crop (channels, height, width) as a JPEG file."""


def convert_classes(
    backbone: Backbone,
    images: ConversionImages,
    options: ConversionOptions,
    finished: MutableMapping[int, ClassPart],
    progress: Progress = SILENT,
    *,
    known: MutableMapping[int, ClassReading] | None = None,
) -> dict[str, float]:
    """Factorise every class that is not yet in `finished` and put it there.

    One group of classes is in memory at a time (one class unless `options.group` says otherwise). A group is
    recomputed as a whole when one of its classes is missing, so that a resumed run gives the same bytes.

    Args:
        backbone, images, options, progress: the job.
        finished: class -> part; takes the results.
        known: class -> what the network gave before; classes that are in it are not read again, others are put there.

    Returns:
        Seconds spent waiting for and running the network ("extract") and on factors and examples ("factorise").

    Raises:
        InputError: a class has fewer rows than prototypes are asked for.
        NotExactError: the rows' logits differ from the network's by more than rounding.
    """
    check_counts(backbone, images.counts, options)
    missing = [group for group in _groups(images.counts, options.group) if any(c not in finished for c in group)]
    order = [c for group in missing for c in group]
    progress.stage("reading and factorising", sum(images.counts[c] for c in order))
    readings = read_classes(backbone, images, order, progress, known=known)
    seconds = {"extract": 0.0, "factorise": 0.0}
    for group in missing:
        start = time.monotonic()
        found = [next(readings) for _ in group]
        middle = time.monotonic()
        for part in factorise_classes(backbone, found, options, images.encode):
            finished[part.class_index] = part
        seconds["extract"] += middle - start
        seconds["factorise"] += time.monotonic() - middle
    return seconds


def read_classes(
    backbone: Backbone,
    images: ConversionImages,
    order: Sequence[int],
    progress: Progress = SILENT,
    *,
    known: MutableMapping[int, ClassReading] | None = None,
) -> Iterator[ClassReading]:
    """Read class after class, from `known` where it has them.

    Raises:
        NotExactError: the rows' logits differ from the network's by more than rounding.
    """
    fresh = [c for c in order if known is None or c not in known]
    stream = groupby(images.open(fresh), key=lambda batch: batch.class_index) if fresh else iter(())
    warned = False
    for wanted in order:
        if known is not None and wanted not in fresh:
            progress.advance(images.counts[wanted])
            reading = known[wanted]
            reading = replace(reading, rows=reading.rows.to(backbone.device))
        else:
            found, batches = next(stream)
            if found != wanted:
                raise RuntimeError(f"images of class {found} arrived where class {wanted} was due")
            reading = read_class(backbone, batches, images.counts[wanted], progress)
        warned = _check_rounding(reading, backbone, warned, progress)
        if known is not None and wanted in fresh:
            known[wanted] = reading
        yield reading


def check_counts(backbone: Backbone, counts: Mapping[int, int], options: ConversionOptions) -> None:
    """Refuse a number of prototypes that there cannot be."""
    width = backbone.readout.width
    rank = options.prototypes or 1
    for class_index, count in counts.items():
        _check_rank(backbone, class_index, count * factorised_rows(backbone), width, rank)


def factorise_classes(
    backbone: Backbone,
    readings: Sequence[ClassReading],
    options: ConversionOptions,
    encode: Callable[[Tensor], bytes],
) -> list[ClassPart]:
    """Prototypes of a group of classes that were just read."""
    readable = [reading for reading in readings if len(reading.images)]
    for reading in readable:
        rows = len(reading.rows.flatten(0, 1))
        _check_rank(backbone, reading.class_index, rows, reading.rows.shape[2], options.prototypes or 1)
    if options.prototypes is None:
        vectors = backbone.readout.vectors
        found = [choose_number(reading, vectors[reading.class_index], options) for reading in readable]
    else:
        found = factorise_readings(readable, options.prototypes, options)
    parts = dict(zip([reading.class_index for reading in readable], found, strict=True))
    return [_part(backbone, reading, parts.get(reading.class_index), options, encode) for reading in readings]


def _part(
    backbone: Backbone,
    reading: ClassReading,
    found: ClassFactors | None,
    options: ConversionOptions,
    encode: Callable[[Tensor], bytes],
) -> ClassPart:
    figures: dict[str, Any] = dict(reading.figures)
    factors = None if found is None else found.factors
    if found is not None and factors is not None:
        seen = reading.rows.clamp_min(0) if options.reconstruction == "paper" else reading.rows
        size = float(seen.square().sum(dtype=torch.float64))
        figures |= {"squared_norm": size, "squared_error": factors.error * size}
        figures |= {"iterations": factors.iterations, "converged": factors.converged, "curve": list(found.curve)}
    return ClassPart(
        class_index=reading.class_index,
        prototypes=reading.pooled.new_empty(0, reading.pooled.shape[2]) if factors is None else factors.basis.cpu(),
        pooled=reading.pooled,
        predicted=reading.predicted,
        sample=reading.rows[_drawn(len(reading.images), SAMPLED_IMAGES, options.seed)].float().cpu(),
        stability=torch.empty(0) if found is None else found.stability.float(),
        examples=_examples(backbone, reading, factors, options.examples, encode),
        images=reading.images,
        skipped=reading.skipped,
        figures=figures,
    )


def _examples(
    backbone: Backbone,
    reading: ClassReading,
    factors: Factors | None,
    count: int,
    encode: Callable[[Tensor], bytes],
) -> PartExamples:
    """The strongest patch of each prototype in each of its `count` strongest images."""
    height, width = backbone.preprocessing.input_size[1:]
    grid = backbone.readout.grid or (0, 0)
    codes = (
        torch.empty(0, 1, 0)
        if factors is None
        else factors.codes.reshape(len(reading.images), -1, len(factors.basis)).cpu()
    )
    chosen = strongest_images(codes, count) if codes.numel() else torch.empty(0, 0, dtype=torch.int64)
    score = (
        torch.stack([codes[row].amax(dim=1)[:, k] for k, row in enumerate(chosen)])
        if len(chosen)
        else torch.empty(0, 0)
    )
    maps = torch.zeros(*chosen.shape, *grid)
    box = torch.tensor([0, 0, width, height]).expand(*chosen.shape, 4).clone()
    if backbone.readout.spatial:
        for k, row in enumerate(chosen.tolist()):
            for rank, image in enumerate(row):
                maps[k, rank] = codes[image, :, k].reshape(grid)
                box[k, rank] = torch.tensor(peak_box(maps[k, rank], (height, width)))
    used, position = chosen.unique(return_inverse=True)
    return PartExamples(
        score=score,
        box=box,
        map=maps,
        image=position.reshape(chosen.shape),
        crops=tuple(encode(reading.crops[image]) for image in used.tolist()),
        sources=tuple(reading.images[image] for image in used.tolist()),
    )


def _drawn(count: int, wanted: int, seed: int) -> Tensor:
    """Up to `wanted` of `count` numbers, drawn with a seed, rising."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:wanted].sort().values


def _groups(counts: Mapping[int, int], size: int) -> list[list[int]]:
    """Fixed groups of classes; of similar size when several are factorised at once."""
    order = sorted(counts) if size == 1 else sorted(counts, key=lambda c: (-counts[c], c))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _check_rank(backbone: Backbone, class_index: int, rows: int, width: int, rank: int) -> None:
    if rank > min(rows, width):
        name = backbone.classes[class_index].shown
        raise InputError(
            f"{rank} prototypes are asked for, but class {class_index} ({name}) has only {rows} rows of width {width}: "
            f"at most {min(rows, width)} are possible. Give a smaller -p or more images of the class."
        )


def _check_rounding(reading: ClassReading, backbone: Backbone, warned: bool, progress: Progress) -> bool:
    difference = reading.figures["max_rel_difference"]
    name = backbone.source.name
    if not difference <= ROUNDING_LIMIT:
        raise NotExactError(
            f"the logits of {name} differ from its rows' by {difference:.1e} of their spread, "
            f"at most {ROUNDING_LIMIT:.0e} is allowed. The formula holds in float64 "
            f"({backbone.formula_difference:.1e}), so this is rounding: give --dtype float64."
        )
    if difference > ROUNDING_WARNING and not warned:
        progress.warn(
            f"the logits of {name} round off by {difference:.1e} of their spread (usual: up to {ROUNDING_WARNING:.0e})"
        )
        return True
    return warned
