"""Why images are what the classifier says: numbers, pictures, and a page of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from protonmf_cli.errors import UsageError
from protonmf_cli.files.atomic import check_writable, write_atomically
from protonmf_cli.files.last_explanation import LastExplanation, remember
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.results import Contrast, Explanation
from protonmf_cli.options import ExplainOptions, Machine, Output, PageOptions
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import answers_of, chosen_form, explain_answer
from protonmf_cli.pipelines.fewshot.interpretation import interpretation_of
from protonmf_cli.pipelines.page.content import report_of
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class Explained:
    """One image."""

    explanation: Explanation
    contrast: Contrast | None
    """Against the class that was asked for."""


def explain(
    model: Loaded | str | PathLike[str],
    images: str | PathLike[str] | Sequence[str | PathLike[str]],
    options: ExplainOptions | None = None,
    *,
    png: str | PathLike[str] | Output | None = None,
    html: str | PathLike[str] | Output | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> list[Explained | Skipped]:
    """Explain images; of one that cannot be read, it says why.

    Args:
        model: a file, or a model that is loaded.
        images: files.
        options: class, comparison and form.
        png: picture to draw; with several images, or if it is one, a folder for them.
        html: page to write: the report of these images, with live intervention.
        machine: where and how to compute.
        progress: is told what was written.

    Raises:
        InputError: no image can be read, or an output cannot be written.
        UsageError: there is no such class, or the outputs do not fit.
    """
    words = [images] if isinstance(images, str | PathLike) else images
    if not words:
        raise UsageError("there is no image to explain.")
    drawn, page = (None if each is None else Output.of(each) for each in (png, html))
    targets = Targets.of([str(word) for word in words], drawn, page)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        return list(explained_each(loaded, targets, options or ExplainOptions(), progress))


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Images, and where what is drawn of them goes."""

    images: tuple[str, ...]
    pictures: tuple[Path | None, ...]
    page: Path | None

    @classmethod
    def of(cls, images: Sequence[str], png: Output | None, html: Output | None) -> "Targets":
        """Refuse outputs that exist, cannot be written or are the same, before any work.

        Raises:
            InputError, UsageError: naming the output.
        """
        pictures = _picture_names(images, png)
        if html is not None:
            if html.path.resolve() in {picture.resolve() for picture in pictures if picture is not None}:
                raise UsageError(f"--png and --html both name {html.path}; give two names.")
            check_writable(html.path, html.force)
        return cls(images=tuple(images), pictures=tuple(pictures), page=None if html is None else html.path)


def explained_each(
    loaded: Loaded, targets: Targets, options: ExplainOptions, progress: Progress, *, remembers: bool = False
) -> Iterator[Explained | Skipped]:
    """Explain one image after the other, each written before it is given; the page is written at the end.

    Args:
        loaded, targets, options, progress: the job.
        remembers: note the last image for the next `protonmf intervene`.

    Raises:
        InputError: a single image cannot be read.
    """
    form = chosen_form(loaded.model, options.form)
    find = loaded.model.find_class
    chosen, other = (None if word is None else find(word) for word in (options.class_name, options.against))
    seen: dict[str, Tensor] = {}
    unread: list[Skipped] = []
    for path, target in zip(targets.images, targets.pictures, strict=True):
        crop = loaded.crop_or_why(path, alone=len(targets.images) == 1)
        if isinstance(crop, Skipped):
            unread.append(crop)
            yield crop
            continue
        seen[path] = crop
        (answer,) = answers_of(loaded.backbone, loaded.model, crop[None])
        explanation = explain_answer(
            loaded.backbone, loaded.model, answer, image=path, model_name=str(loaded.path), class_index=chosen,
            map_kind=options.map_kind, form=form,
        )  # fmt: skip
        contrast = None if other is None else contrast_of(loaded.model, answer, explanation.class_index, other)
        if target is not None:
            _draw(explanation, options.top, target, progress)
        if remembers:
            remember(loaded.path, LastExplanation(image=str(Path(path).resolve()), class_index=explanation.class_index))
        yield Explained(explanation=explanation, contrast=contrast)
    if targets.page is not None and seen:
        _write_page(loaded, seen, unread, chosen, options, targets.page, progress)


def _draw(explanation: Explanation, top: int, target: Path, progress: Progress) -> None:
    from protonmf_cli.output.figures.figure import explanation_png  # a second for matplotlib

    write_atomically(target, explanation_png(explanation, top))
    progress.note(f"wrote {target}")


def _write_page(
    loaded: Loaded,
    seen: dict[str, Tensor],
    unread: list[Skipped],
    class_index: int | None,
    options: ExplainOptions,
    target: Path,
    progress: Progress,
) -> None:
    """The report of the images that were explained."""
    from protonmf_cli.jobs.page import decoded, drawn_page, write_page  # matplotlib

    nothing = torch.empty(0, 0, 0, 0, dtype=torch.uint8)
    batches = [
        *(
            ImageBatch(class_index=-1, crops=crop[None], sources=(ImageSource(path=path, sha256=""),))
            for path, crop in seen.items()
        ),
        ImageBatch(class_index=-1, crops=nothing, sources=(), skipped=tuple(unread)),
    ]
    interpretation = interpretation_of(loaded.model)
    content = report_of(
        loaded.backbone, loaded.model, batches, file=str(loaded.path), decode=decoded, form=options.form,
        class_index=class_index, explained_only=True, interpretation=interpretation,
    )  # fmt: skip
    write_page(target, drawn_page(loaded, content, interpretation, PageOptions()), progress)


def _picture_names(images: Sequence[str], png: Output | None) -> list[Path | None]:
    """One picture per image; equal stems get a number."""
    if png is None:
        return [None] * len(images)
    if len(images) == 1 and not png.path.is_dir():
        targets = [png.path]
    else:
        if png.path.exists() and not png.path.is_dir():
            raise UsageError(f"--png {png.path} is a file, but there are {len(images)} images: give a folder.")
        if png.path.suffix.lower() == ".png":
            raise UsageError(f"--png {png.path} looks like a file, but there are {len(images)} images: give a folder.")
        png.path.mkdir(parents=True, exist_ok=True)
        targets, used = [], set()
        for image in images:
            stem = Path(image).stem
            name, count = stem, 2
            while name in used:
                name, count = f"{stem}-{count}", count + 1
            used.add(name)
            targets.append(png.path / f"{name}.png")
    for target in targets:
        check_writable(target, png.force)
    return list(targets)
