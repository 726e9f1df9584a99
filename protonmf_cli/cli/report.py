"""protonmf report: one offline page that shows a model, explains images and lets its reader intervene."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from protonmf_cli.files.images.reader import ImageFile
    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.page import Report
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.options import Form
    from protonmf_cli.output.page.page import Page

PARTIAL = 6
MEGABYTE = 1_000_000
MOST_MEGABYTES = 20.0
PER_CLASS = 10
"""Images of each class of labelled data."""


def report(
    output: Annotated[Path | None, typer.Option("--output", "-o", show_default="report.html, or the folder report", help="HTML file to write; with --folder a folder.")] = None,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    images: Annotated[list[Path] | None, typer.Option("--images", help="Image, or folder of images, to explain. Repeatable.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Labelled images to explain: as for evaluate; their true classes are shown.")] = None,
    split: arguments.Split = "val",
    per_class: Annotated[int | None, typer.Option("--per-class", min=1, show_default="10", help="Images of each class taken from --data.")] = None,
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    boxes: Annotated[Path | None, typer.Option("--boxes", help="Cut the images of --data to their bounding boxes: folder or zip of CUB-200-2011's text files.")] = None,
    evaluation: Annotated[Path | None, typer.Option("--evaluation", help="What `evaluate --json` said of this model: its tables are shown.")] = None,
    form: arguments.FormOption = None,
    max_size: Annotated[float, typer.Option("--max-size", help="Most megabytes of the page; pictures get smaller to fit.")] = MOST_MEGABYTES,
    folder: Annotated[bool, typer.Option("--folder", help="Write a folder with the pictures beside the page, in full size.")] = False,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Write a page with a gallery of the prototypes, explained images and live intervention."""
    shown = Shown(quiet=quiet)
    if not max_size > 0 or math.isinf(max_size):
        raise UsageError("--max-size must be a number of megabytes above zero.")
    if data is None:
        _check_needs_data(
            {"--boxes": boxes, "--per-class": per_class, "--class-map": class_map, "--class-order": class_order}
        )
    output = output or Path("report" if folder else "report.html")
    check_target(output, folder, force)
    known = None if evaluation is None else _read_evaluation(evaluation)
    from protonmf_cli.cli.opened import open_model

    loaded = open_model(
        model, device=device, dtype=dtype, threads=threads, offline=offline, batch_size=batch_size, workers=workers
    )
    if known is not None:
        _check_evaluation(known, evaluation, loaded.model)
    from protonmf_cli.pipelines.explaining.explanation import chosen_form

    form = chosen_form(loaded.model, form)
    files = [*_loose_images(images or [])]
    if data is not None:
        files += _labelled(loaded, data, split, per_class or PER_CLASS, class_map, class_order, boxes, seed, shown)
    if not folder:
        from protonmf_cli.output.page.page import check_size

        check_size(loaded.model, len(files), round(max_size * MEGABYTE))
    if not files:
        shown.note("the page shows the gallery only: give images to explain with --images or --data.")
    made = _make(loaded, files, form, known, shown)
    if files and not made.cases:
        raise InputError(f"none of the {len(files)} images could be read, e.g. {_named(made)}.")
    nameless = any(not isinstance(file.path, Path) or file.box is not None for file in files)
    page = draw_page(loaded, made, max_size, nameless=nameless, folder=folder)
    write_page(output, page, folder, shown)
    for skip in made.unreadable[:5]:
        shown.warn(f"{skip.path} {skip.reason}; it is not on the page.")
    if as_json:
        shown.json(_report_json(output, made, page))
    if made.unreadable:
        shown.warn(f"{len(made.unreadable)} of {len(files)} images could not be read; the page shows the others.")
        raise SystemExit(PARTIAL)


def _check_needs_data(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value:
            raise UsageError(f"{option} is about the images of --data: give it too.")


def check_target(output: Path, folder: bool, force: bool) -> None:
    """Refuse an output that exists or cannot be written, before any work.

    Raises:
        InputError: with what to do about it.
    """
    from protonmf_cli.files.atomic import check_writable
    from protonmf_cli.files.page_folder import check_folder

    if folder:
        check_folder(output, force)
    else:
        check_writable(output, force)


def draw_page(
    loaded: "Loaded", made: "Report", max_size: float, *, nameless: bool = False, folder: bool = False
) -> "Page":
    """The page of a report.

    Args:
        loaded: the model.
        made: what is shown.
        max_size: most megabytes of a single file.
        nameless: no command can name what was explained.
        folder: pictures go beside the page.
    """
    from protonmf_cli.cli.inspect import inspection_facts
    from protonmf_cli.output.page.page import report_folder, report_page
    from protonmf_cli.output.text.page import page_words

    facts = inspection_facts(loaded.path, loaded.model, embedded=loaded.embedded)
    words = page_words(made, facts, nameless=nameless)
    return report_folder(made, words) if folder else report_page(made, words, round(max_size * MEGABYTE))


def write_page(output: Path, page: "Page", folder: bool, shown: Shown) -> None:
    """Write the finished page, and say how large it is and what was left out."""
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.files.page_folder import write_folder

    if folder:
        write_folder(output, {"index.html": page.html, **page.pictures})
        output = output / "index.html"
    else:
        write_atomically(output, page.html)
    shown.note(f"wrote {output} ({page.size / MEGABYTE:.1f} MB)")
    for note in page.left_out:
        shown.note(note)


def _make(
    loaded: "Loaded", files: "Sequence[ImageFile]", form: "Form", known: dict[str, Any] | None, shown: Shown
) -> "Report":
    from protonmf_cli.files.images.reader import crop_of_jpeg
    from protonmf_cli.pipelines.page.content import report_of

    with shown.progress() as bars:
        bars.stage("explaining the images", len(files))
        return report_of(
            loaded.backbone, loaded.model, loaded.reader.batches(files), file=str(loaded.path),
            decode=lambda jpeg: crop_of_jpeg(jpeg, 3), form=form, evaluation=known, progress=bars,
        )  # fmt: skip


def _loose_images(paths: Iterable[Path]) -> "Iterable[ImageFile]":
    """Files as given, and all image files below folders."""
    from protonmf_cli.files.images.datasets import images_below
    from protonmf_cli.files.images.reader import ImageFile

    for path in dict.fromkeys(paths):
        found = images_below(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"there are no images in {path}. Give files, or a folder that holds some.")
        yield from (ImageFile(path=each, name=str(each), class_index=-1) for each in found)


def _labelled(
    loaded: "Loaded",
    data: Path,
    split: str,
    per_class: int,
    class_map: Path | None,
    class_order: bool,
    boxes: Path | None,
    seed: int,
    shown: Shown,
) -> "list[ImageFile]":
    from dataclasses import replace

    from protonmf_cli.files.images.bounding_boxes import images_for
    from protonmf_cli.files.images.datasets import ClassMapping

    mapping = ClassMapping(file=class_map, by_order=class_order)
    found = images_for(loaded.model.card, data, split, mapping, boxes).limited(per_class, seed)
    for note in found.notes:
        shown.note(note)
    # a command must find the file again: folders are given with their path
    files = found.of(found.files)
    return [replace(file, name=str(file.path)) if isinstance(file.path, Path) else file for file in files]


def _read_evaluation(file: Path) -> dict[str, Any]:
    """`protonmf.evaluation/1` from a file.

    Raises:
        InputError: it is something else.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
        schema = found["schema"]
    except OSError as failure:
        raise InputError(f"{file} cannot be read: {failure.strerror or failure}.") from failure
    except (ValueError, KeyError, TypeError, RecursionError) as failure:
        raise InputError(
            f"{file} is not what `protonmf evaluate --json` writes. Make it with `protonmf evaluate --data DIR --json > FILE`."
        ) from failure
    if schema != "protonmf.evaluation/1":
        raise InputError(f"{file} holds {schema}, not protonmf.evaluation/1. Make it with `protonmf evaluate --json`.")
    return found


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is no number of JSON")


def _check_evaluation(found: dict[str, Any], file: Path | None, model: "PrototypeModel") -> None:
    """Refuse an evaluation of another model, or one that lacks what is shown.

    Raises:
        InputError: naming the file.
    """
    from protonmf_cli.cli.evaluate import decision_digest
    from protonmf_cli.output.text.page import evaluation_tables

    try:
        if found["model_digest"] != decision_digest(model):
            raise InputError(f"{file} evaluates another model. Give the evaluation of the model that is shown.")
        evaluation_tables(found)
        _ = [(row["class_index"] + 0, row["prototype_model"] + 0.0) for row in found["per_class"]]
    except (KeyError, TypeError, ValueError, AttributeError) as failure:
        raise InputError(
            f"{file} is not a whole evaluation of this version ({type(failure).__name__}: {failure}). Make it again with "
            "`protonmf evaluate --json`."
        ) from failure


def _named(made: "Report") -> str:
    first = made.unreadable[0]
    return f"{first.path} {first.reason}"


def _report_json(output: Path, made: "Report", page: "Page") -> dict[str, Any]:
    """`protonmf.report/1`."""
    return {
        "schema": "protonmf.report/1",
        "output": str(output),
        "model": made.file,
        "bytes": page.size,
        "classes": len(made.gallery.classes),
        "prototypes": len(made.gallery.prototypes),
        "suspicious": [
            {
                "label": made.model.card.classes[p.owner_index].label,
                "prototype": p.number,
                "prototype_id": p.prototype_id,
                "signs": [{"kind": sign.kind, "words": sign.words} for sign in p.signs],
            }
            for p in made.gallery.prototypes
            if p.signs
        ],
        "images": len(made.cases),
        "unreadable": [{"path": skip.path, "reason": skip.reason} for skip in made.unreadable],
        "left_out": list(page.left_out),
    }
