"""protonmf explain: why this class."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import Form, MapKind

if TYPE_CHECKING:
    from torch import Tensor

    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.image_batches import Skipped
    from protonmf_cli.models.results import Contrast, Explanation

PARTIAL = 6


def explain(
    images: Annotated[list[str], typer.Argument(help="Image files; - reads their paths from standard input.")],
    model: arguments.Model = arguments.DEFAULT_MODEL,
    class_name: arguments.ClassName = None,
    against: Annotated[str | None, typer.Option("--against", help="Class that the explained one is compared with, on the same amounts.")] = None,
    map_kind: Annotated[
        MapKind,
        typer.Option("--map", help="Map that is drawn: where a prototype is, or what each place adds to the logit."),
    ] = "presence",
    form: arguments.FormOption = None,
    top: Annotated[int, typer.Option("--top", min=1, help="Prototypes shown; the JSON lists all.")] = 5,
    png: Annotated[Path | None, typer.Option("--png", help="Picture to write; with several images a folder.")] = None,
    html: Annotated[Path | None, typer.Option("--html", help="Page to write: the report of these images, with live intervention.")] = None,
    as_json: arguments.Json = False,
    json_lines: Annotated[bool, typer.Option("--jsonl", help="One JSON object per image and line.")] = False,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Explain why an image is what the classifier says: contributions, maps, training patches."""
    from protonmf_cli.cli.ledger import explanation_json, show_explanation
    from protonmf_cli.models.image_batches import Skipped

    shown = Shown(quiet=quiet)
    paths = paths_of(images)
    targets = _png_targets(png, paths, force)
    if html is not None:
        if html.resolve() in {target.resolve() for target in targets if target is not None}:
            raise UsageError(f"--png and --html both name {html}; give two names.")
        from protonmf_cli.cli.report import check_target

        check_target(html, False, force)
    loaded = open_for(model, device, dtype, threads, offline)
    from protonmf_cli.pipelines.explaining.explanation import chosen_form

    form = chosen_form(loaded.model, form)
    chosen, other = (None if word is None else loaded.model.find_class(word) for word in (class_name, against))
    done, seen, unread = [], {}, []
    for path, target in zip(paths, targets, strict=True):
        crop = _read(loaded, path, alone=len(paths) == 1)
        if isinstance(crop, Skipped):
            unread.append(crop)
            continue
        if html is not None:
            seen[path] = crop
        explanation, contrast = _explain_one(loaded, path, crop, chosen, other, map_kind, form)
        if target is not None:
            _draw(explanation, top, target)
            shown.note(f"wrote {target}")
        written = explanation_json(explanation, contrast) if as_json or json_lines else {}
        done.append(written if as_json and not json_lines else None)
        if json_lines:
            shown.json(written, indent=None)
        elif not as_json:
            show_explanation(explanation, top, shown, contrast, first=len(done) == 1)
        _remember(model, path, explanation.class_index)
    if as_json and not json_lines and done:
        shown.json(
            done[0] if len(paths) == 1 and done[0] else {"schema": "protonmf.explanations/1", "explanations": done}
        )
    if html is not None and done:
        _write_page(loaded, seen, unread, chosen, form, html, shown)
    _check_failed(len(unread), len(paths))


def _check_failed(failed: int, count: int) -> None:
    """Leave with the exit code for images that could not be read."""
    if failed == count:
        raise InputError(f"none of the {count} images could be explained.")
    if failed:
        print(f"error: {failed} of {count} images could not be explained; the others were.", file=sys.stderr)
        raise SystemExit(PARTIAL)


def open_for(model: Path, device: str, dtype: str, threads: int | None, offline: bool) -> "Loaded":
    """Open a model for single images."""
    from protonmf_cli.cli.opened import open_model

    return open_model(model, device=device, dtype=dtype, threads=threads, offline=offline)


def _read(loaded: "Loaded", path: str, *, alone: bool) -> "Tensor | Skipped":
    """The crop of one image; why not, said on stderr, where it cannot be read and others follow."""
    from protonmf_cli.models.image_batches import Skipped

    try:
        return loaded.crop(path)
    except InputError as failure:
        if alone:
            raise
        print(f"error: {failure}", file=sys.stderr)
        return Skipped(path=path, reason=str(failure).removeprefix(path).strip())


def _explain_one(
    loaded: "Loaded",
    path: str,
    crop: "Tensor",
    class_index: int | None,
    against: int | None,
    map_kind: MapKind,
    form: Form,
) -> "tuple[Explanation, Contrast | None]":
    from protonmf_cli.pipelines.explaining.contrast import contrast_of
    from protonmf_cli.pipelines.explaining.explanation import answers_of, explain_answer

    (answer,) = answers_of(loaded.backbone, loaded.model, crop[None])
    explanation = explain_answer(
        loaded.backbone,
        loaded.model,
        answer,
        image=path,
        model_name=str(loaded.path),
        class_index=class_index,
        map_kind=map_kind,
        form=form,
    )
    if against is None:
        return explanation, None
    return explanation, contrast_of(loaded.model, answer, explanation.class_index, against)


def _write_page(
    loaded: "Loaded",
    seen: dict[str, "Tensor"],
    unread: "list[Skipped]",
    chosen: int | None,
    form: Form,
    target: Path,
    shown: Shown,
) -> None:
    """The report of the images that were explained."""
    import torch

    from protonmf_cli.cli.report import MOST_MEGABYTES, draw_page, write_page
    from protonmf_cli.files.images.reader import crop_of_jpeg
    from protonmf_cli.models.image_batches import ImageBatch, ImageSource
    from protonmf_cli.pipelines.page.content import report_of

    nothing = torch.empty(0, 0, 0, 0, dtype=torch.uint8)
    batches = [
        *(
            ImageBatch(class_index=-1, crops=crop[None], sources=(ImageSource(path=path, sha256=""),))
            for path, crop in seen.items()
        ),
        ImageBatch(class_index=-1, crops=nothing, sources=(), skipped=tuple(unread)),
    ]
    made = report_of(
        loaded.backbone, loaded.model, batches, file=str(loaded.path), decode=lambda jpeg: crop_of_jpeg(jpeg, 3),
        form=form, class_index=chosen, explained_only=True,
    )  # fmt: skip
    write_page(target, draw_page(loaded, made, MOST_MEGABYTES), False, shown)


def _draw(explanation: "Explanation", top: int, target: Path) -> None:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.figure import explanation_png

    write_atomically(target, explanation_png(explanation, top))


def _remember(model: Path, image: str, class_index: int) -> None:
    from protonmf_cli.files.last_explanation import LastExplanation, remember

    remember(model, LastExplanation(image=str(Path(image).resolve()), class_index=class_index))


def paths_of(words: Sequence[str]) -> list[str]:
    """Images as they were given, "-" replaced by the lines of standard input.

    Raises:
        UsageError: none.
    """
    given = (line.rstrip("\r\n") for line in sys.stdin) if "-" in words else ()
    paths = [line for word in words for line in (given if word == "-" else [word]) if line.strip()]
    if not paths:
        raise UsageError("no image was given on standard input.")
    return paths


def _png_targets(png: Path | None, paths: Sequence[str], force: bool) -> list[Path | None]:
    """One picture per image; equal stems get a number."""
    if png is None:
        return [None] * len(paths)
    if len(paths) == 1 and not png.is_dir():
        targets = [png]
    else:
        if png.exists() and not png.is_dir():
            raise UsageError(f"--png {png} is a file, but there are {len(paths)} images: give a folder.")
        if png.suffix.lower() == ".png":
            raise UsageError(f"--png {png} looks like a file, but there are {len(paths)} images: give a folder.")
        png.mkdir(parents=True, exist_ok=True)
        targets, used = [], set()
        for path in paths:
            stem = Path(path).stem
            name, count = stem, 2
            while name in used:
                name, count = f"{stem}-{count}", count + 1
            used.add(name)
            targets.append(png / f"{name}.png")
    from protonmf_cli.files.atomic import check_writable

    for target in targets:
        check_writable(target, force)
    return list(targets)
