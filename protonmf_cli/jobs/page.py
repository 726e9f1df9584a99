"""One offline page that shows a model, explains images and lets its reader intervene."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.reader import ImageFile, crop_of_jpeg
from protonmf_cli.files.images.sources.local import images_below
from protonmf_cli.files.networks.failures import naming
from protonmf_cli.files.page_folder import INDEX, check_folder, write_folder
from protonmf_cli.files.store import decision_digest
from protonmf_cli.jobs.images import images_of_model
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.page import Report
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ImageWords, Machine, Output, PageOptions
from protonmf_cli.output.page.names import mailed, mailed_words
from protonmf_cli.output.page.page import Page, check_size, report_folder, report_page
from protonmf_cli.output.page.words import evaluation_tables, page_words
from protonmf_cli.output.records.inspection import inspection_facts
from protonmf_cli.output.text.inspection import inspection_lines
from protonmf_cli.pipelines.explaining.explanation import chosen_form
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, interpretation_of
from protonmf_cli.pipelines.page.content import report_of
from protonmf_cli.pipelines.progress import LOGGED, Progress

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class WrittenReport:
    """A page on disk."""

    path: Path
    """As it was named: a file, or a folder."""
    content: Report
    page: Page
    images: int
    """That were asked for."""


def report(
    model: Loaded | str | PathLike[str],
    images: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    data: ImageWords | str | PathLike[str] | None = None,
    options: PageOptions | None = None,
    *,
    output: Output | str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> WrittenReport:
    """Write a page with a gallery of the prototypes, explained images and live intervention.

    Args:
        model: a file, or a model that is loaded.
        images: files, and folders of images, to explain.
        data: labelled images to explain (the split val where there are two); their true classes are shown.
        options: what is shown, and how large it may be.
        output: file to write, with `options.folder` a folder; report.html, or report, if None.
        machine: where and how to compute.
        progress: is told stages, notes and warnings.

    Raises:
        InputError: no image can be read, the output cannot be written, or the evaluation is of another model.
        UsageError: the largest size is no size.
    """
    options = options or PageOptions()
    if not options.max_size > 0 or math.isinf(options.max_size):
        raise UsageError("--max-size must be a number of megabytes above zero.")
    target = Output.of(output or ("report" if options.folder else "report.html"))
    check_page(target, folder=options.folder)
    known = None if options.evaluation is None else _read_evaluation(options.evaluation)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        if known is not None:
            _check_evaluation(known, options.evaluation, loaded.model)
        options = replace(options, form=chosen_form(loaded.model, options.form))
        named = [images] if isinstance(images, str | PathLike) else images
        files = list(_loose_images([Path(image) for image in named]))
        if data is not None:
            files += _labelled(loaded, ImageWords.of(data, split="val"), options, progress)
        return _written(loaded, files, known, options, target, progress)


def _written(
    loaded: Loaded,
    files: Sequence[ImageFile],
    known: dict[str, Any] | None,
    options: PageOptions,
    target: Output,
    progress: Progress,
) -> WrittenReport:
    if not options.folder:
        check_size(loaded.model, len(files), round(options.max_size * MEGABYTE))
    if not files:
        progress.note("the page shows the gallery only: give images to explain with --images or --data.")
    progress.stage("explaining the images", len(files))
    interpretation = interpretation_of(loaded.model)
    content = report_of(
        loaded.backbone, loaded.model, loaded.reader.batches(list(files)), file=loaded.named, decode=decoded,
        form=options.form, among=options.among, evaluation=known, interpretation=interpretation, progress=progress,
    )  # fmt: skip
    if files and not content.cases:
        first = content.unreadable[0]
        raise InputError(f"none of the {len(files)} images could be read, e.g. {first.path} {first.reason}.")
    nameless = any(file.local is None or file.box is not None for file in files)
    with naming(loaded.path):
        page = drawn_page(loaded, content, interpretation, options, nameless=nameless)
    write_page(target.path, page, progress, folder=options.folder)
    for skip in content.unreadable[:5]:
        progress.warn(f"{skip.path} {skip.reason}; it is not on the page.")
    return WrittenReport(path=target.path, content=content, page=page, images=len(files))


def check_page(output: Output, *, folder: bool) -> None:
    """Refuse an output that exists or cannot be written, before any work.

    Raises:
        InputError: with what to do about it.
    """
    if folder:
        check_folder(output.path, output.force)
    else:
        check_writable(output.path, output.force)


def decoded(jpeg: bytes) -> Tensor:
    """The picture of a training patch, in colour."""
    return crop_of_jpeg(jpeg, 3)


def drawn_page(
    loaded: Loaded,
    content: Report,
    interpretation: Interpretation | None,
    options: PageOptions,
    *,
    nameless: bool = False,
) -> Page:
    """The page of a report.

    Args:
        loaded: the model.
        content: what is shown.
        interpretation: of a few-shot model.
        options: size, and whether pictures go beside the page.
        nameless: no command can name what was explained.

    Returns:
        a page to send to others, which says nothing of the folders that it was made from.
    """
    facts = inspection_facts(loaded.path, loaded.model, embedded=loaded.embedded)
    lines = inspection_lines(facts, loaded.model, interpretation)
    sent = mailed(content)
    words = mailed_words(page_words(sent, lines, nameless=nameless), content)
    if options.folder:
        return report_folder(sent, words)
    return report_page(sent, words, round(options.max_size * MEGABYTE))


def write_page(output: Path, page: Page, progress: Progress, *, folder: bool = False) -> None:
    """Write the finished page, and say how large it is and what was left out."""
    if folder:
        write_folder(output, {INDEX: page.html, **page.pictures})
        output = output / INDEX
    else:
        write_atomically(output, page.html)
    progress.note(f"wrote {output} ({page.size / MEGABYTE:.1f} MB)")
    for note in page.left_out:
        progress.note(note)


def _loose_images(paths: Iterable[Path]) -> Iterator[ImageFile]:
    """Files as given, and all image files below folders."""
    for path in dict.fromkeys(paths):
        found = images_below(path) if path.is_dir() else [path]
        if not found:
            raise InputError(f"there are no images in {path}. Give files, or a folder that holds some.")
        yield from (ImageFile(path=each, name=printable(str(each)), class_index=-1) for each in found)


def _labelled(loaded: Loaded, words: ImageWords, options: PageOptions, progress: Progress) -> list[ImageFile]:
    found = images_of_model(words, loaded.model.card).limited(options.per_class, options.seed).once()
    for note in found.notes:
        progress.note(note)
    return [replace(file, name=_below(file, words.data)) for file in found.of(found.files)]


def _below(file: ImageFile, data: Path | str) -> str:
    """The name of an image by which a command finds it from where this one was run, without folders above that; else
    relative to the folder of the data; one that lies elsewhere keeps its own."""
    if file.local is None or isinstance(data, str) or not file.local.is_relative_to(data):
        return file.name
    inside = file.local.relative_to(data)
    reachable = not data.is_absolute() and ".." not in data.parts
    return printable((data / inside if reachable else inside).as_posix())


def _read_evaluation(file: Path) -> dict[str, Any]:
    """`protonmf.evaluation/1` from a file.

    Raises:
        InputError: it is something else.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
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


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _check_evaluation(found: Mapping[str, Any], file: Path | None, model: PrototypeModel) -> None:
    """Refuse an evaluation of another model, or one that lacks what is shown.

    Raises:
        InputError: naming the file.
    """
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
