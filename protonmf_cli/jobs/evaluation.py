"""Is a prototype model still its classifier, and how much do its prototypes carry?"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.store import decision_digest
from protonmf_cli.jobs.early import make_folder
from protonmf_cli.jobs.gates import Gate, check_says_unlike, gates_of, write_junit
from protonmf_cli.jobs.images import SkipWatch, images_of_model
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.jobs.tables import TABLES, TableJob, TableResult, check_fit, check_names
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.models.results import KeptImages, Scores
from protonmf_cli.models.sheets import Table
from protonmf_cli.options import GateOptions, ImageWords, Machine, Output, TableOptions
from protonmf_cli.output.figures.rendering import rendered
from protonmf_cli.output.figures.sheets import panels_figure
from protonmf_cli.output.figures.table import table_figure
from protonmf_cli.pipelines.measuring.evaluation import evaluate_model
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was measured on labelled images."""

    loaded: Loaded
    scores: Scores
    skipped: tuple[Skipped, ...]
    """Images that could not be read."""
    gates: tuple[Gate, ...]
    """Thresholds that were given, with what was measured; `check_gates` stops at those that are not met."""
    tables: Mapping[str, Table]
    """Further tables by their own names; some names on the command line give several."""

    @property
    def model_digest(self) -> str:
        """Of what the model decides by."""
        return decision_digest(self.loaded.model)

    @property
    def classes(self) -> int:
        """Of the model."""
        return len(self.loaded.model.card.classes)

    @property
    def is_partial(self) -> bool:
        """Whether some classes have no images, so that it matters among which classes is counted."""
        return self.scores.classes < self.classes


def evaluate(
    model: Loaded | str | PathLike[str],
    data: ImageWords | str | PathLike[str],
    *,
    tables: str | Iterable[str] = (),
    options: TableOptions | None = None,
    figures: str | PathLike[str] | None = None,
    gates: GateOptions | None = None,
    junit: str | PathLike[str] | Output | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Evaluation:
    """Measure accuracy, agreement and exactness on labelled images in one pass; further tables on request.

    Args:
        model: a file, or a model that is loaded.
        data: labelled images (the split val where there are two); train lies beside them for tables that need it.
        tables: names of further tables, see `TABLES`.
        options: what those are made of.
        figures: folder for a figure of each table.
        gates: thresholds; that one is not met is part of the result.
        junit: file to write every gate to, as CI servers read them.
        machine: threads; and where and how to compute, for a file.
        progress: is told stages, notes and warnings.

    Raises:
        UsageError: there is no such table, or not for this model.
        InputError: the data cannot be used, an output cannot be written, or there is a gate that is not for this model.
        GateError: too many images could not be read.
    """
    started, words, names = (
        time.monotonic(),
        ImageWords.of(data, split="val"),
        tuple(dict.fromkeys([tables] if isinstance(tables, str) else tables)),
    )
    gates, options = gates or GateOptions(), options or TableOptions()
    folder, report = (
        None if figures is None else Path(figures),
        None if junit is None else Output.of(junit, "--junit-xml"),
    )
    check_names(names, draws=folder is not None)
    if report is not None:
        check_writable(report.path, report.force, report.option)
    if folder is not None:
        make_folder(folder)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        check_fit(names, loaded.model, options)
        if gates.max_unlike is not None:
            check_says_unlike(loaded.model)
        images = images_of_model(words, loaded.model.card)
        for note in images.notes:
            progress.note(note)
        watch, kept = SkipWatch(), KeptImages()
        scores = _scores(loaded, images, watch, kept if names else None, progress)
        found = gates_of(gates, scores, skipped=len(watch.skipped), max_skipped=words.max_skipped)
        if report is not None:
            write_junit(report.path, found, time.monotonic() - started, "evaluate")
            progress.note(f"wrote {report.path}")
        watch.check(words.max_skipped, scores.images, progress)
        job = TableJob(loaded=loaded, words=words, images=images, kept=kept, options=options, progress=progress)
        made = [TABLES[name](job) for name in names]
        if folder is not None:
            _draw(made, folder, progress)
    by_name = {table.name: table for each in made for table in each.tables}
    return Evaluation(loaded=loaded, scores=scores, skipped=tuple(watch.skipped), gates=found, tables=by_name)


def _scores(
    loaded: Loaded, images: LabelledImages, watch: SkipWatch, keep: KeptImages | None, progress: Progress
) -> Scores:
    once = images.once()
    progress.stage("evaluating", sum(once.counts.values()))
    batches = watch.over(loaded.reader.batches(once.of(once.files)))
    return evaluate_model(loaded.backbone, loaded.model, batches, images.files, progress, keep=keep)


def _draw(made: Sequence[TableResult], folder: Path, progress: Progress) -> None:
    """Sheets of pictures, and each table as `FOLDER/NAME.png`."""
    for each in made:
        for name, rows in each.sheets.items():
            path = folder / f"{name}.png"
            write_atomically(path, rendered(panels_figure(rows), path.name))
    for table in (table for each in made for table in each.tables if table.charts):
        path = folder / f"{table.name}.png"
        write_atomically(path, rendered(table_figure(table), path.name))
        progress.note(f"wrote {path}")
