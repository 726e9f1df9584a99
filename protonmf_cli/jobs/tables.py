"""The further tables of `evaluate`: what each one needs, and what it is made of."""

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from torch import Tensor

from protonmf_cli.errors import UsageError
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.part_annotations import points_in_crop, read_part_annotations
from protonmf_cli.files.images.reader import clipped, encode_jpeg, size_of
from protonmf_cli.jobs.conversion.preparing import cached_features
from protonmf_cli.jobs.images import images_of_model
from protonmf_cli.jobs.loaded import Loaded, load
from protonmf_cli.jobs.stored_options import options_of
from protonmf_cli.models.class_part import ClassPart, ClassReading
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import KeptImages
from protonmf_cli.models.sheets import Panel, Table
from protonmf_cli.options import ConversionOptions, ImageWords, Machine, NmfOptions, TableOptions
from protonmf_cli.pipelines.conversion.classes import ConversionImages, read_classes
from protonmf_cli.pipelines.conversion.residual_shares import augmentation_table
from protonmf_cli.pipelines.measuring.faithfulness import faithfulness_tables
from protonmf_cli.pipelines.measuring.oracle import oracle_table
from protonmf_cli.pipelines.measuring.part_quality import part_quality_table
from protonmf_cli.pipelines.measuring.parts import (
    cancellation_table,
    control_models,
    finished_by_count,
    models_of,
    parts_table,
)
from protonmf_cli.pipelines.measuring.picture_sheets import RivalCrops, check_spatial, gallery_panels
from protonmf_cli.pipelines.measuring.rival import Rival, check_rival, rival_table
from protonmf_cli.pipelines.measuring.stability import stability_tables
from protonmf_cli.pipelines.progress import Progress

SAMPLE = 16
"""Training images of each class on which augmented maps are compared."""
MOST_PICTURES = 6
"""Images in a sheet of pictures, each of another class."""


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """What one name on the command line gives."""

    tables: tuple[Table, ...]
    sheets: Mapping[str, Sequence[Sequence[Panel]]] = field(default_factory=dict)
    """Pictures beside the tables: name -> rows of panels."""


@dataclass(kw_only=True)
class TableJob:
    """What tables are made of; what is costly is made when it is first used."""

    loaded: Loaded
    words: ImageWords
    """Where the images of the evaluation are, and those of train beside them."""
    images: LabelledImages
    """Of the evaluation."""
    kept: KeptImages
    """What the evaluation read of them."""
    options: TableOptions
    progress: Progress

    @property
    def model(self) -> PrototypeModel:
        return self.loaded.model

    @cached_property
    def conversion(self) -> ConversionOptions:
        """As the model was converted."""
        return options_of(self.model, self.progress)

    @property
    def own_count(self) -> int:
        """Prototypes per class of the model itself, which its controls have too; the mean where classes differ."""
        mean = len(self.model.parts) / max(1, len(self.model.active_classes))
        return self.conversion.prototypes or max(1, round(mean))

    def train_of(self, model: PrototypeModel) -> LabelledImages:
        """Training images of a model's classes."""
        return images_of_model(replace(self.words, split="train"), model.card)

    @cached_property
    def train(self) -> LabelledImages:
        return self.train_of(self.model)

    def readings(self) -> Iterator[ClassReading]:
        """The training images as the network reads them, class after class."""
        images = self.train
        source = ConversionImages(
            counts=images.counts,
            open=lambda classes: self.loaded.reader.batches_of(images.files[c] for c in classes),
            encode=encode_jpeg,
        )
        known = None if self.options.cache is None else self._cached(self.options.cache)
        self.progress.stage("reading the training images", sum(images.counts.values()))
        for reading in read_classes(
            self.loaded.backbone, source, images.counts, self.progress, options=self.conversion, known=known
        ):
            for skip in reading.skipped:
                self.progress.warn(f"skipped {skip.path}: {skip.reason}")
            yield reading

    def _cached(self, folder: Path) -> MutableMapping[int, ClassReading]:
        options = replace(self.conversion, batch_size=self.loaded.reader.batch_size)
        return cached_features(folder, self.loaded.backbone, self.train, options)

    @cached_property
    def finished(self) -> dict[int, dict[int, ClassPart]]:
        """Number of prototypes -> class -> finished part, from one pass over the training images."""
        counts = dict.fromkeys([*self.options.counts, self.own_count])
        return finished_by_count(self.loaded.backbone, self.readings(), self.conversion, counts)

    @cached_property
    def by_count(self) -> dict[int, PrototypeModel]:
        """Number of prototypes -> model, for the tables that compare numbers."""
        chosen = {count: self.finished[count] for count in self.options.counts}
        return models_of(self.loaded.backbone, chosen, self.conversion, self.progress)

    def rival(self, path: Path) -> Loaded:
        """A ProtoPNet to compare with."""
        machine = Machine(device=str(self.loaded.backbone.device), offline=True)
        found = load(path, machine=machine, progress=self.progress)
        check_rival(found.model, str(path))
        return found


def _parts(job: TableJob) -> TableResult:
    count = job.own_count
    controls = control_models(job.loaded.backbone, job.finished[count], job.conversion, count)
    return TableResult(tables=(parts_table(job.by_count, controls, job.kept, job.options.seed),))


def _cancellation(job: TableJob) -> TableResult:
    return TableResult(tables=(cancellation_table(job.model, job.kept, job.options.seed),))


def _stability(job: TableJob) -> TableResult:
    return TableResult(
        tables=stability_tables(job.loaded.backbone, job.model, job.readings(), job.conversion, job.kept)
    )


def _oracle(job: TableJob) -> TableResult:
    return TableResult(tables=(oracle_table(job.model, job.kept, job.options.seed),))


def _augmentation(job: TableJob) -> TableResult:
    rows = {
        reading.class_index: reading.rows[:SAMPLE].cpu()
        for reading in job.readings()
        if job.model.entries(reading.class_index) and len(reading.images)
    }
    return TableResult(tables=(augmentation_table(job.model, rows),))


def _faithfulness(job: TableJob) -> TableResult:
    seed, per_class = job.options.seed, max(1, -(-job.options.limit // len(job.images.counts)))
    few = job.images.limited(per_class, seed)
    job.progress.stage("deleting and inserting pixels", sum(few.counts.values()))
    batches = job.loaded.reader.batches(few.of(few.files))
    return TableResult(
        tables=faithfulness_tables(job.loaded.backbone, job.model, batches, seed=seed, progress=job.progress)
    )


def _part_quality(job: TableJob) -> TableResult:
    table = part_quality_of(job.loaded, job.images, job.options.parts, job.options.seed, job.progress)
    return TableResult(tables=(table,))


def part_quality_of(
    loaded: Loaded, images: LabelledImages, annotations: Path | None, seed: int, progress: Progress
) -> Table:
    """The table part-quality for labelled images, with part annotations where they are given."""
    names, locate = ((), None) if annotations is None else _annotations(loaded, images, annotations)
    progress.stage("looking for parts", sum(images.counts.values()))
    table = part_quality_table(
        loaded.backbone,
        loaded.model,
        loaded.reader.batches(images.of(images.files)),
        parts=len(names),
        locate=locate,
        seed=seed,
        progress=progress,
    )
    return replace(table, facts={"parts": list(names), **table.facts})


def _annotations(
    loaded: Loaded, images: LabelledImages, source: Path
) -> tuple[tuple[str, ...], Callable[[ImageSource], Any]]:
    """Names of the parts, and where they are in the crop of an image."""
    found = read_part_annotations(source)
    where = {file.name: file for files in images.files.values() for file in files}

    def locate(image: ImageSource) -> Any:
        file = where[image.path]
        points = found.of(str(file.path))
        if points is None:
            return None
        size = size_of(file.path)
        if file.box is not None:
            left, top, right, bottom = clipped(file.box, size)
            size = (right - left, bottom - top)
            points = {part: (x - left, y - top) for part, (x, y) in points.items()}
        return points_in_crop(size, points, loaded.reader.crop)

    return found.names, locate


def _rival(job: TableJob) -> TableResult:
    paths = job.options.protopnet
    opened = [(path, job.rival(path)) for path in paths] if paths else [(job.loaded.path, job.loaded)]
    rivals = []
    for path, loaded in opened:
        check_rival(loaded.model, str(path))
        images = job.train_of(loaded.model)
        rivals.append(
            Rival(
                name=path.stem,
                model=loaded.model,
                backbone=loaded.backbone,
                images=sum(images.counts.values()),
                open=partial(loaded.reader.batches, images.of(images.files)),
            )
        )
    nmf = job.conversion.nmf if job.model.adds_up else NmfOptions()
    table, rows = rival_table(rivals, nmf, seed=job.options.seed, progress=job.progress)
    return TableResult(tables=(table,), sheets={"areas": rows} if rows else {})


def _pictures(job: TableJob) -> TableResult:
    check_spatial(job.loaded.backbone)
    few = job.images.limited(1, job.options.seed)
    rival = None
    if job.options.protopnet:
        other = job.rival(job.options.protopnet[0])
        seen = [crop for crop, _ in _first_crops(other, few)]
        rival = RivalCrops(backbone=other.backbone, model=other.model, crops=seen)
    table, sheets = gallery_panels(job.loaded.backbone, job.model, job.by_count, _first_crops(job.loaded, few), rival)
    return TableResult(tables=(table,), sheets=sheets)


def _first_crops(loaded: Loaded, images: LabelledImages) -> list[tuple[Tensor, int]]:
    """What the network sees of the first images, and their classes."""
    batches = loaded.reader.batches(images.of(images.files)[:MOST_PICTURES])
    return [(crop, batch.class_index) for batch in batches for crop in batch.crops]


TABLES: dict[str, Callable[[TableJob], TableResult]] = {
    "parts": _parts,
    "stability": _stability,
    "cancellation": _cancellation,
    "oracle": _oracle,
    "augmentation": _augmentation,
    "faithfulness": _faithfulness,
    "part-quality": _part_quality,
    "pictures": _pictures,
    "rival": _rival,
}
OF_CONVERSIONS = ("parts", "stability", "cancellation", "augmentation", "faithfulness", "pictures")
"""Tables about what a conversion does to a black box: other models have no black box."""

OF_LABELS = ("stability", "cancellation", "faithfulness", "pictures")
"""Tables that do not ask for the one class of an image."""


def check_names(names: Sequence[str], *, draws: bool) -> None:
    """Refuse tables that cannot be made of any model, before anything is loaded.

    Args:
        names: keys of `TABLES`.
        draws: whether there is a folder for pictures.

    Raises:
        UsageError: naming those there are, or what is missing.
    """
    for name in names:
        if name not in TABLES:
            raise UsageError(f"--table {name} is not one of {', '.join(TABLES)}.")
    if "pictures" in names and not draws:
        raise UsageError("--table pictures draws pictures: give a folder for them with --figures.")


def check_fit(names: Sequence[str], model: PrototypeModel, options: TableOptions) -> None:
    """Refuse a table that a model cannot have, before any work.

    Raises:
        UsageError: naming those it can have, or what is missing.
    """
    wrong = [name for name in names if name in OF_CONVERSIONS and not model.adds_up]
    if wrong:
        fitting = ", ".join(name for name in TABLES if name not in OF_CONVERSIONS)
        raise UsageError(
            f"--table {wrong[0]} compares a conversion with its black box, and this file holds a {model.card.method} "
            f"model. Tables for it: {fitting}."
        )
    several = [name for name in names if name not in OF_LABELS]
    if several and model.multi_label:
        raise UsageError(
            f"--table {several[0]} counts images of one class each, and those of this model have several labels. "
            f"Tables for it: {', '.join(OF_LABELS)}."
        )
    if model.card.members and "part-quality" in names:
        raise UsageError(
            "--table part-quality looks at one network: give the files that this model combines one by one."
        )
    if "rival" in names and not options.protopnet and not model.evidence.kind.is_of_patches:
        raise UsageError("--table rival compares with a ProtoPNet: give its file with --protopnet.")
