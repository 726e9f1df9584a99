"""The further tables of `evaluate`: what each one needs, and how it is shown."""

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import RECIPES, ConversionOptions, Machine, NmfOptions

if TYPE_CHECKING:
    from torch import Tensor

    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.class_part import ClassPart, ClassReading
    from protonmf_cli.models.image_batches import ImageSource
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Column, KeptImages, Table

DEFAULTS = RECIPES["default"]


@dataclass(kw_only=True)
class TableJob:
    """Everything a table can ask for; what is costly is made when it is first used."""

    loaded: "Loaded"
    images: "LabelledImages"
    """Labelled images of the evaluation."""
    find_train: Callable[["PrototypeModel"], "LabelledImages"]
    """Training images of a model's classes."""
    kept: "KeptImages"
    counts: tuple[int, ...]
    limit: int
    """Images of tables that run the network many times per image."""
    seed: int
    cache: Path | None
    rivals: tuple[Path, ...]
    """ProtoPNet files to compare with."""
    annotations: Path | None
    """Part annotations in the format of CUB-200-2011."""
    figures: Path | None
    bars: Bars

    @property
    def model(self) -> "PrototypeModel":
        return self.loaded.model

    @cached_property
    def options(self) -> ConversionOptions:
        """As the model was converted."""
        return options_of(self.model)

    @cached_property
    def train(self) -> "LabelledImages":
        return self.find_train(self.model)

    def readings(self) -> Iterator["ClassReading"]:
        """The training images as the network reads them, class after class."""
        from protonmf_cli.files.images.reader import encode_jpeg
        from protonmf_cli.pipelines.conversion.classes import ConversionImages, read_classes

        images = self.train
        source = ConversionImages(
            counts=images.counts, open=lambda c: self.loaded.reader.batches(images.of(c)), encode=encode_jpeg
        )
        known = None if self.cache is None else self._cached(self.cache, images)
        self.bars.stage("reading the training images", sum(images.counts.values()))
        for reading in read_classes(self.loaded.backbone, source, list(images.counts), self.bars, known=known):
            for skip in reading.skipped:
                self.bars.warn(f"skipped {skip.path}: {skip.reason}")
            yield reading

    def _cached(self, folder: Path, images: "LabelledImages") -> MutableMapping[int, "ClassReading"]:
        from protonmf_cli.jobs.conversion import cached_features

        options = replace(self.options, batch_size=self.loaded.reader.batch_size)
        return cached_features(folder, self.loaded.backbone, images, options)

    @property
    def own_count(self) -> int:
        """Prototypes per class of the model itself, which its controls have too."""
        return self.options.prototypes or DEFAULTS.prototypes or 1

    @cached_property
    def finished(self) -> "dict[int, dict[int, ClassPart]]":
        """Number of prototypes -> class -> finished part, from one pass over the training images."""
        from protonmf_cli.pipelines.measuring.parts import finished_by_count

        counts = dict.fromkeys([*self.counts, self.own_count])
        return finished_by_count(self.loaded.backbone, self.readings(), self.options, counts)

    @cached_property
    def by_count(self) -> dict[int, "PrototypeModel"]:
        """Number of prototypes -> model, for the tables that compare numbers."""
        from protonmf_cli.pipelines.measuring.parts import models_of

        chosen = {count: self.finished[count] for count in self.counts}
        return models_of(self.loaded.backbone, chosen, self.options, self.bars)

    def few(self) -> "LabelledImages":
        """About `limit` images, as many of each class."""
        per_class = max(1, -(-self.limit // len(self.images.counts)))
        return self.images.limited(per_class, self.seed)


def options_of(model: "PrototypeModel") -> ConversionOptions:
    """The options a model was converted with; those that are gone are left out."""
    known = {each.name for each in fields(ConversionOptions)}
    stored = {name: value for name, value in model.card.options.items() if name in known}
    stored["nmf"] = NmfOptions(**stored["nmf"])
    if model.is_outdated:
        stored |= {"reconstruction": "amounts", "augment": "none"}
    return replace(ConversionOptions(**stored), group=1)


def _parts(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.measuring.parts import control_models, parts_table

    count = job.own_count
    controls = control_models(job.loaded.backbone, job.finished[count], job.options, count)
    return (parts_table(job.by_count, controls, job.kept, job.seed),)


def _cancellation(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.measuring.parts import cancellation_table

    return (cancellation_table(job.model, job.kept, job.seed),)


def _stability(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.measuring.stability import stability_tables

    return stability_tables(job.loaded.backbone, job.model, job.readings(), job.options, job.kept)


def _oracle(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.measuring.oracle import oracle_table

    return (oracle_table(job.model, job.kept, job.seed),)


def _augmentation(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.conversion.residual_shares import augmentation_table

    rows = {
        reading.class_index: reading.rows[:SAMPLE].cpu()
        for reading in job.readings()
        if job.model.entries(reading.class_index) and len(reading.images)
    }
    return (augmentation_table(job.model, rows),)


SAMPLE = 16
"""Training images of each class on which augmented maps are compared."""


def _faithfulness(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.pipelines.measuring.faithfulness import faithfulness_tables

    few = job.few()
    job.bars.stage("deleting and inserting pixels", sum(few.counts.values()))
    batches = job.loaded.reader.batches(few.of(few.files))
    return faithfulness_tables(job.loaded.backbone, job.model, batches, seed=job.seed, progress=job.bars)


def _part_quality(job: TableJob) -> tuple["Table", ...]:
    return (part_quality_of(job.loaded, job.images, job.annotations, job.seed, job.bars),)


def part_quality_of(
    loaded: "Loaded", images: "LabelledImages", annotations: Path | None, seed: int, bars: Bars
) -> "Table":
    """The table part-quality for labelled images, with part annotations where they are given."""
    from protonmf_cli.pipelines.measuring.part_quality import part_quality_table

    names, locate = ((), None) if annotations is None else _annotations(loaded, images, annotations)
    bars.stage("looking for parts", sum(images.counts.values()))
    table = part_quality_table(
        loaded.backbone,
        loaded.model,
        loaded.reader.batches(images.of(images.files)),
        parts=len(names),
        locate=locate,
        seed=seed,
        progress=bars,
    )
    return replace(table, facts={"parts": list(names), **table.facts})


def _annotations(
    loaded: "Loaded", images: "LabelledImages", source: Path
) -> tuple[tuple[str, ...], Callable[["ImageSource"], Any]]:
    """Names of the parts, and where they are in the crop of an image."""
    from protonmf_cli.files.images.part_annotations import points_in_crop, read_part_annotations
    from protonmf_cli.files.images.reader import clipped, size_of

    found = read_part_annotations(source)
    where = {file.name: file for files in images.files.values() for file in files}

    def locate(image: "ImageSource") -> Any:
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


def _rival(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.jobs.loaded import load
    from protonmf_cli.output.figures.sheets import panels_png
    from protonmf_cli.pipelines.measuring.rival import Rival, check_rival, rival_table

    own = not job.rivals and job.model.card.method == "protopnet"
    if not job.rivals and not own:
        raise UsageError("--table rival compares with a ProtoPNet: give its file with --protopnet.")
    rivals = []
    for path in (job.loaded.path,) if own else job.rivals:
        loaded = (
            job.loaded if own else load(path, machine=Machine(device=str(job.loaded.backbone.device), offline=True))
        )
        check_rival(loaded.model, str(path))
        images = job.find_train(loaded.model)
        rivals.append(
            Rival(
                name=path.stem,
                model=loaded.model,
                backbone=loaded.backbone,
                images=sum(images.counts.values()),
                open=partial(loaded.reader.batches, images.of(images.files)),
            )
        )
    nmf = job.options.nmf if job.model.is_additive else NmfOptions()
    table, rows = rival_table(rivals, nmf, seed=job.seed, progress=job.bars)
    if job.figures is not None and rows:
        write_atomically(job.figures / "areas.png", panels_png(rows))
    return (table,)


def _pictures(job: TableJob) -> tuple["Table", ...]:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.jobs.loaded import load
    from protonmf_cli.output.figures.sheets import panels_png
    from protonmf_cli.pipelines.measuring.picture_sheets import RivalCrops, check_spatial, gallery_panels
    from protonmf_cli.pipelines.measuring.rival import check_rival

    if job.figures is None:
        raise UsageError("--table pictures draws pictures: give a folder for them with --figures.")
    check_spatial(job.loaded.backbone)
    few = job.images.limited(1, job.seed)
    crops = _first_crops(job.loaded, few)
    rival = None
    if job.rivals:
        other = load(job.rivals[0], machine=Machine(device=str(job.loaded.backbone.device), offline=True))
        check_rival(other.model, str(job.rivals[0]))
        seen = [crop for crop, _ in _first_crops(other, few)]
        rival = RivalCrops(backbone=other.backbone, model=other.model, crops=seen)
    table, sheets = gallery_panels(job.loaded.backbone, job.model, job.by_count, crops, rival)
    for name, rows in sheets.items():
        write_atomically(job.figures / f"{name}.png", panels_png(rows))
    return (table,)


def _first_crops(loaded: "Loaded", images: "LabelledImages") -> list[tuple["Tensor", int]]:
    """What the network sees of the first images, and their classes."""
    batches = loaded.reader.batches(images.of(images.files)[:MOST_PICTURES])
    return [(crop, batch.class_index) for batch in batches for crop in batch.crops]


MOST_PICTURES = 6
"""Images in a sheet of pictures, each of another class."""

TABLES: dict[str, Callable[[TableJob], tuple["Table", ...]]] = {
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


def check_names(names: list[str]) -> None:
    """Refuse a table that there is not.

    Raises:
        UsageError: naming those there are.
    """
    for name in names:
        if name not in TABLES:
            raise UsageError(f"--table {name} is not one of {', '.join(TABLES)}.")


OF_CONVERSIONS = ("parts", "stability", "cancellation", "augmentation", "faithfulness", "pictures")
"""Tables about what a conversion does to a black box: other models have no black box."""


def check_fit(names: list[str], model: "PrototypeModel") -> None:
    """Refuse a table that a model cannot have, before any work.

    Raises:
        UsageError: naming those it can have.
    """
    wrong = [name for name in names if name in OF_CONVERSIONS and not model.is_additive]
    if wrong:
        fitting = ", ".join(name for name in TABLES if name not in OF_CONVERSIONS)
        raise UsageError(
            f"--table {wrong[0]} compares a conversion with its black box, and this file holds a {model.card.method} "
            f"model. Tables for it: {fitting}."
        )
    if model.card.members and "part-quality" in names:
        raise UsageError(
            "--table part-quality looks at one network: give the files that this model combines one by one."
        )


def run_tables(names: list[str], job: TableJob) -> dict[str, "Table"]:
    """Make the tables in order; a table asked for twice is made once."""
    return {table.name: table for name in dict.fromkeys(names) for table in TABLES[name](job)}


def table_json(table: "Table") -> dict[str, Any]:
    """One entry of `tables`."""
    columns = [asdict(column) for column in table.columns]
    return {
        "title": table.title, "columns": columns, "rows": list(table.rows), "notes": list(table.notes), **table.facts
    }  # fmt: skip


def show_table(table: "Table", shown: Shown) -> None:
    """A table on the terminal, intervals in brackets."""
    from rich.table import Table as RichTable

    grid = RichTable(box=None, pad_edge=False, header_style="dim", title=table.title, title_justify="left")
    for column in table.columns:
        grid.add_column(column.heading, justify="left" if column.kind == "text" else "right")
    spans = sum(f"{column.key}_interval" in table.rows[0] for column in table.columns)
    for row in table.rows:
        grid.add_row(*(written_cell(column, row, spans <= MOST_INTERVALS) for column in table.columns))
    shown.out.print()
    shown.out.print(grid)
    for note in table.notes:
        shown.out.print(note, style="dim", markup=False)


MOST_INTERVALS = 4
"""Columns with intervals that fit on a terminal; of a wider table --json and the figure have them."""


def written_cell(column: "Column", row: dict[str, Any], with_interval: bool) -> str:
    """One cell in words, with its interval in brackets."""
    value = row.get(column.key)
    if value is None:
        return ""
    write = {"percent": "{:.1%}", "number": "{:.3f}", "count": "{:d}", "text": "{}"}[column.kind].format
    span = row.get(f"{column.key}_interval")
    return write(value) if not span or not with_interval else f"{write(value)} ({write(span[0])}, {write(span[1])})"


def make_folder(folder: Path, option: str = "--figures") -> None:
    """Make the folder that an option names before any work.

    Raises:
        InputError: it is a file, or cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise InputError(f"the folder {folder} of {option} cannot be made: {failure.strerror}.") from failure


def draw_tables(tables: dict[str, "Table"], folder: Path, shown: Shown) -> None:
    """Each table as `FOLDER/NAME.png`."""
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.table import table_png

    for name, table in tables.items():
        if not table.charts:
            continue
        write_atomically(folder / f"{name}.png", table_png(table))
        shown.note(f"wrote {folder / f'{name}.png'}")
