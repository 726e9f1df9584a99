"""Black box to prototypes, class by class: read, factorise, keep the strongest patches (ProtoNMF, eq. 1-3)."""

import time
from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice, takewhile
from typing import Any, Protocol

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.maths.nmf import Factors
from protonmf_cli.maths.scoring import peak_box, strongest_images
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassPart, ClassReading, PartExamples
from protonmf_cli.models.image_batches import ImageBatch
from protonmf_cli.models.readouts.readout import HALF_LIMIT, ROUNDING_LIMIT, ROUNDING_WARNING
from protonmf_cli.options import ConversionOptions, Share
from protonmf_cli.pipelines.conversion.factorisation import ClassFactors, choose_number, factorise_readings
from protonmf_cli.pipelines.conversion.rows import Store, factorised_rows, images_that_fit, read_class
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.training_examples import centred_rows, first_different

TRIES = 3
"""How often a class is converted whose result is missing afterwards."""
SAMPLED_IMAGES = 8
"""Images of each class whose rows are kept until the assembly, to compare maps on."""
LONG = 60.0
"""Seconds of waiting for other processes after which it is said."""
LOOKS = 64
"""Unfinished groups of other processes that are looked at after each own one."""


@dataclass(frozen=True, kw_only=True)
class ConversionImages:
    """The training images as a conversion sees them."""

    counts: Mapping[int, int]
    """class -> image files"""
    open: Callable[[Iterable[int]], Iterator[ImageBatch]]
    """Batches of the given classes, class after class in that order, none across a class; a class is asked for when
    its first images are to be decoded."""
    encode: Callable[[Tensor], bytes]
    """A uint8 crop (channels, height, width) as a JPEG file."""
    store: Store | None = None
    """Where rows of a class go that is larger than `ConversionOptions.memory`; None: into memory all the same."""


class Turns(Protocol):
    """Who converts what, where several processes work on the same classes."""

    def free(self, groups: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Those of the groups that nobody else is at, one after the other; each is this process's until `done`."""

    def done(self, group: Sequence[int]) -> None:
        """A group is finished."""

    def wait(self) -> bool:
        """All that is unfinished is with others: wait a little, or leave it to them (False)."""


class Alone:
    """All turns are this process's."""

    def free(self, groups: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """All of them."""
        return iter(groups)

    def done(self, group: Sequence[int]) -> None: ...

    def wait(self) -> bool:
        """There are no others."""
        return False


def convert_classes(
    backbone: Backbone,
    images: ConversionImages,
    options: ConversionOptions,
    finished: MutableMapping[int, ClassPart],
    progress: Progress = SILENT,
    *,
    known: MutableMapping[int, ClassReading] | None = None,
    share: Share | None = None,
    turns: Turns | None = None,
) -> dict[str, float]:
    """Factorise every class that is not yet in `finished` and put it there.

    One group of classes is in memory at a time (one class unless `options.group` says otherwise). A group is
    recomputed as a whole when one of its classes is missing, so that a resumed run gives the same bytes.

    Args:
        backbone, images, options, progress: the job.
        finished: class -> part; takes the results.
        known: class -> what the network gave before; classes that are in it are not read again, others are put there.
        share: which of the classes; all if None.
        turns: who converts what; this process all of it if None.

    Returns:
        Seconds spent waiting for and running the network ("extract") and on factors and examples ("factorise").

    Raises:
        InputError: a class has fewer rows than prototypes are asked for.
        NotExactError: the rows' logits differ from the network's by more than rounding.
    """
    check_counts(backbone, images.counts, options)
    turns = Alone() if turns is None else turns
    missing = unfinished(groups_of_share(images.counts, options.group, share or Share()), finished)
    progress.stage("reading and factorising", sum(images.counts[c] for group in missing for c in group))
    seconds, waiting = {"extract": 0.0, "factorise": 0.0}, Waiting(backbone, progress)
    done: Counter[int] = Counter()
    while missing:
        others = _Others(images.counts, finished, progress)
        own = _convert_free(backbone, images, options, finished, progress, known, missing, turns, seconds, others)
        others.count(len(missing))
        missing = unfinished(missing, finished)
        done.update(own)
        if lost := [group[0] for group in missing if done[group[0]] >= TRIES]:
            raise InputError(
                f"what was written of {backbone.classes[lost[0]].shown} cannot be read again, {TRIES} times in a row: "
                "look at the disk of the output, and whether something else removes files there."
            )
        waiting.look(missing, moved=bool(own))
        if missing and not own and not turns.wait():
            break
    return seconds


def unfinished(groups: Iterable[Sequence[int]], finished: Container[int]) -> list[Sequence[int]]:
    """Groups with a class that is missing."""
    return [group for group in groups if any(c not in finished for c in group)]


class Waiting:
    """Says once what is waited for, where that takes long."""

    def __init__(self, backbone: Backbone, progress: Progress) -> None:
        self._backbone, self._progress = backbone, progress
        self._since, self._said = time.monotonic(), False

    def look(self, missing: Sequence[Sequence[int]], *, moved: bool) -> None:
        """After a look at what is missing; `moved`: some of it was done here."""
        if moved:
            self._since = time.monotonic()
        elif missing and not self._said and time.monotonic() - self._since >= LONG:
            self._said = True
            classes = [self._backbone.classes[c].shown for group in missing for c in group]
            names = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            self._progress.note(f"waiting for other processes, which are at {len(classes)} classes: {names}")


class _Others:
    """Groups that were left to other processes, and count once they are finished."""

    def __init__(self, counts: Mapping[int, int], finished: Container[int], progress: Progress) -> None:
        self._counts, self._finished, self._progress = counts, finished, progress
        self._left: deque[Sequence[int]] = deque()

    def add(self, groups: Iterable[Sequence[int]]) -> None:
        """Further ones."""
        self._left.extend(groups)

    def count(self, most: int = LOOKS) -> None:
        """Look from the first one on, until so many are found unfinished."""
        open_ones: list[Sequence[int]] = []
        while self._left and len(open_ones) < most:
            group = self._left.popleft()
            if unfinished([group], self._finished):
                open_ones.append(group)
            else:
                self._progress.advance(sum(self._counts[c] for c in group))
        self._left.extendleft(reversed(open_ones))


def _convert_free(
    backbone: Backbone,
    images: ConversionImages,
    options: ConversionOptions,
    finished: MutableMapping[int, ClassPart],
    progress: Progress,
    known: MutableMapping[int, ClassReading] | None,
    missing: Sequence[Sequence[int]],
    turns: Turns,
    seconds: dict[str, float],
    others: "_Others",
) -> list[int]:
    """Convert what nobody else is at; the first class of each group."""
    taken: deque[Sequence[int]] = deque()

    def order() -> Iterator[int]:
        coming = iter(missing)
        for group in turns.free(missing):
            others.add(takewhile(lambda each: each != group, coming))  # noqa: B023 (used at once)
            taken.append(group)
            yield from group
        others.add(coming)

    readings = read_classes(backbone, images, order(), progress, options=options, known=known)
    own: list[int] = []
    while True:
        start = time.monotonic()
        first = next(readings, None)
        if first is None:
            return own
        group = taken.popleft()
        found = [first, *islice(readings, len(group) - 1)]
        middle = time.monotonic()
        for part in factorise_classes(backbone, found, options, images.encode):
            finished[part.class_index] = part
        turns.done(group)
        others.count()
        own.append(group[0])
        seconds["extract"] += middle - start
        seconds["factorise"] += time.monotonic() - middle


def read_classes(
    backbone: Backbone,
    images: ConversionImages,
    order: Iterable[int],
    progress: Progress = SILENT,
    *,
    options: ConversionOptions,
    known: MutableMapping[int, ClassReading] | None = None,
) -> Iterator[ClassReading]:
    """Read class after class, from `known` where it has them.

    Args:
        backbone, images, progress, known: as in `convert_classes`.
        order: classes, asked for one by one a little ahead of their turn.
        options: of which the memory counts.

    Raises:
        NotExactError: the rows' logits differ from the network's by more than rounding.
    """
    fitting, queue = images_that_fit(backbone, options.memory), _Queue(order, known)
    stream = groupby(images.open(queue.unread()), key=lambda batch: batch.class_index)
    warned = False
    for wanted, kept in queue:
        large = images.counts[wanted] > fitting
        if known is not None and kept:
            reading = _placed(known[wanted], backbone, large)
            progress.advance(images.counts[wanted])
        else:
            found, batches = next(stream)
            if found != wanted:
                raise RuntimeError(f"images of class {found} arrived where class {wanted} was due")
            reading = read_class(backbone, batches, images.counts[wanted], progress, images.store if large else None)
        warned = _check_rounding(reading, backbone, warned, progress)
        if known is not None and not kept:
            known[wanted] = reading
        yield reading


class _Queue:
    """Classes in their order, a little ahead of which their images are decoded.

    Whether a class is known is looked up once: other processes may fill what is known meanwhile.
    """

    def __init__(self, order: Iterable[int], known: Container[int] | None) -> None:
        self._order, self._known = iter(order), known or ()
        self._coming: deque[tuple[int, bool]] = deque()
        self._due: deque[int] = deque()

    def __iter__(self) -> Iterator[tuple[int, bool]]:
        """Every class, when its turn has come, and whether it is known."""
        while True:
            if self._coming:
                yield self._coming.popleft()
                continue
            c = next(self._order, None)
            if c is None:
                return
            kept = c in self._known
            if not kept:
                self._due.append(c)
            yield c, kept

    def unread(self) -> Iterator[int]:
        """Classes to decode: the one whose turn it is, then those that come, as far as this is asked."""
        while True:
            if self._due:
                yield self._due.popleft()
                continue
            c = next(self._order, None)
            if c is None:
                return
            kept = c in self._known
            self._coming.append((c, kept))
            if not kept:
                yield c


def _placed(reading: ClassReading, backbone: Backbone, large: bool) -> ClassReading:
    """A reading from before, in memory unless it is large."""
    if large:
        return replace(reading, rows=reading.rows.to(backbone.device))
    return replace(reading, rows=reading.rows[:].to(backbone.device), crops=reading.crops[:])


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
        images, rows, width = reading.rows.shape
        _check_rank(backbone, reading.class_index, images * rows, width, options.prototypes or 1)
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
        figures |= {"squared_norm": factors.size, "squared_error": factors.error * factors.size}
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
    """The strongest patch of each prototype in each of its `count` strongest images, the same picture counted once."""
    height, width = backbone.preprocessing.input_size[1:]
    grid = backbone.readout.grid or (0, 0)
    codes = (
        torch.empty(0, 1, 0)
        if factors is None
        else factors.codes.reshape(len(reading.images), -1, len(factors.basis)).cpu()
    )
    chosen = _different(strongest_images(codes, len(codes)), reading, count)
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
        crops=tuple(encode(crop) for crop in reading.crops[used]),
        sources=tuple(reading.images[image] for image in used.tolist()),
    )


def _different(order: Tensor, reading: ClassReading, count: int) -> Tensor:
    """(p, K) the first different images of each order (p, n), as many for each prototype."""
    rows = centred_rows(reading.pooled)
    found = [first_different(each, reading.images, count, rows) for each in order]
    most = min(map(len, found), default=0)
    return torch.tensor([each[:most] for each in found], dtype=torch.int64).reshape(len(order), most)


def _drawn(count: int, wanted: int, seed: int) -> Tensor:
    """Up to `wanted` of `count` numbers, drawn with a seed, rising."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:wanted].sort().values


def groups_of(counts: Mapping[int, int], size: int) -> list[list[int]]:
    """Fixed groups of classes; of similar size when several are factorised at once."""
    order = sorted(counts) if size == 1 else sorted(counts, key=lambda c: (-counts[c], c))
    return [order[start : start + size] for start in range(0, len(order), size)]


def groups_of_share(counts: Mapping[int, int], size: int, share: Share) -> list[list[int]]:
    """The groups with a class of a share, whose classes do not depend on the size of the groups."""
    order = sorted(counts, key=lambda c: (-counts[c], c))
    own = {order[n] for n in share.part([counts[c] for c in order])}
    return [group for group in groups_of(counts, size) if not own.isdisjoint(group)]


def _check_rank(backbone: Backbone, class_index: int, rows: int, width: int, rank: int) -> None:
    if rank > min(rows, width):
        name = backbone.classes[class_index].shown
        raise InputError(
            f"{rank} prototypes are asked for, but class {class_index} ({name}) has only {rows} rows of width {width}: "
            f"at most {min(rows, width)} are possible. Give a smaller -p or more images of the class."
        )


def _check_rounding(reading: ClassReading, backbone: Backbone, warned: bool, progress: Progress) -> bool:
    difference = reading.figures["max_rel_difference"]
    name, half = backbone.source.name, backbone.dtype == torch.bfloat16
    limit, better = (HALF_LIMIT, "float32") if half else (ROUNDING_LIMIT, "float64")
    if not difference <= limit:
        raise NotExactError(
            f"the logits of {name} differ from its rows' by {difference:.1e} of their spread, "
            f"at most {limit:.0e} is allowed. The formula holds in float64 "
            f"({backbone.formula_difference:.1e}), so this is rounding: give --dtype {better}."
        )
    if difference > ROUNDING_WARNING and not warned and not half:
        progress.warn(
            f"the logits of {name} round off by {difference:.1e} of their spread (usual: up to {ROUNDING_WARNING:.0e})"
        )
        return True
    return warned
