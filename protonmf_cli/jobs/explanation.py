"""Why images are what the classifier says: numbers, pictures, and a page of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, UsageError, printable
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.in_memory import Named, named_pictures
from protonmf_cli.files.images.reader import is_turned
from protonmf_cli.files.last_explanation import LastExplanation, remember
from protonmf_cli.files.networks.failures import naming
from protonmf_cli.jobs.early import Targets
from protonmf_cli.jobs.loaded import Explanation, Loaded, loaded_from, shown
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast
from protonmf_cli.options import ExplainOptions, Machine, Output, PageOptions
from protonmf_cli.pipelines.explaining.choice import next_class
from protonmf_cli.pipelines.explaining.contrast import contrast_of
from protonmf_cli.pipelines.explaining.explanation import Answer, answers_of, chosen_form, explain_answer
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
    images: object,
    options: ExplainOptions | None = None,
    *,
    figure: str | PathLike[str] | Output | None = None,
    html: str | PathLike[str] | Output | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> list[Explained | Skipped]:
    """Explain images; of one that cannot be read, it says why.

    Args:
        model: a file, or a model that is loaded.
        images: one or several: paths, or pictures that Python holds, as of `Loaded.explain`.
        options: class, comparison and form.
        figure: file to draw, .png, .svg or .pdf; with several images, or if it is one, a folder for them.
        html: page to write: the report of these images, with live intervention.
        machine: where and how to compute.
        progress: is told what was written.

    Raises:
        InputError: no image can be read, or an output cannot be written.
        UsageError: there is no such class, or the outputs do not fit.
    """
    pictures = list(named_pictures(images))
    if not pictures:
        raise UsageError("there is no image to explain.")
    drawn = None if figure is None else Output.of(figure, "--figure")
    page = None if html is None else Output.of(html, "--html")
    targets = Targets.of([name for name, _ in pictures], drawn, page)
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        return list(explained_each(loaded, targets, options or ExplainOptions(), progress, pictures=pictures))


def explained_each(
    loaded: Loaded,
    targets: Targets,
    options: ExplainOptions,
    progress: Progress,
    *,
    remembers: bool = False,
    pictures: Sequence[Named] | None = None,
) -> Iterator[Explained | Skipped]:
    """Explain one image after the other, each written before it is given; the page is written at the end.

    Args:
        loaded, targets, options, progress: the job.
        remembers: note the last image for the next `protonmf intervene`.
        pictures: the images of the targets, which the network then reads in batches; each by itself, from its path, if
            None.

    Raises:
        InputError: a single image cannot be read.
    """
    explain = _Explaining(loaded, options)
    seen: dict[str, Tensor] = {}
    unread: list[Skipped] = []
    said, turned = False, pictures is not None or loaded.backbone.preprocessing.exif_transpose
    for path, target, answer in _answers(loaded, targets, pictures):
        if isinstance(answer, Skipped):
            unread.append(answer)
            yield answer
            continue
        if targets.page is not None:
            seen[printable(path)] = answer.crop
        turned = turned or _note_of_turning(path, progress)
        found = explain(printable(path), answer)
        said = said or _note_of_choice(found.explanation, loaded.model, progress)
        if target is not None:
            with naming(loaded.path):
                _draw(found.explanation, options.top, target.path, progress)
        if remembers:
            last = LastExplanation(image=str(Path(path).resolve()), class_index=found.explanation.class_index)
            remember(loaded.path, last)
        yield found
    if targets.page is not None and seen:
        with naming(loaded.path):
            _write_page(loaded, seen, unread, explain.class_index, options, targets.page.path, progress)


NEXT = "next"
"""Of `against`: the best other class with prototypes."""


class _Explaining:
    """Explains images, one by one, as the options say."""

    def __init__(self, loaded: Loaded, options: ExplainOptions) -> None:
        model = loaded.model
        self.loaded, self.options, self.form = loaded, options, chosen_form(model, options.form)
        self.class_index = None if options.class_name is None else model.find_class(options.class_name)
        self.next = options.against == NEXT and all(name.label != NEXT for name in model.card.classes)
        self.against = None if self.next or options.against is None else model.find_class(options.against)

    def __call__(self, image: str, answer: Answer) -> Explained:
        """Why one image is what it is, from what the model answered to it."""
        model, options = self.loaded.model, self.options
        explanation = explain_answer(
            self.loaded.backbone, model, answer, image=image, model_name=self.loaded.named,
            class_index=self.class_index, among=options.among, map_kind=options.map_kind, form=self.form,
            kept=self.loaded.kept,
        )  # fmt: skip
        chosen = explanation.class_index
        other = next_class(model, answer.logits, chosen) if self.next else self.against
        if self.next and other is None:
            raise InputError("no other class of this model has prototypes, so there is none to compare with.")
        contrast = None if other is None else contrast_of(model, answer, chosen, other)
        return Explained(explanation=shown(explanation), contrast=contrast)


def _answers(
    loaded: Loaded, targets: Targets, pictures: Sequence[Named] | None
) -> Iterator[tuple[str, Output | None, Answer | Skipped]]:
    """Every image, where it is drawn, and what the model answers to it; why not, where it cannot be read or drawn."""
    reader, most = loaded.reader, 1 if pictures is None else loaded.reader.batch_size
    where = targets.pairs()
    pairs: Iterator[tuple[Named, Output | None]] = (
        (((path, Path(path)), target) for path, target in where)
        if pictures is None
        else ((picture, target) for picture, (_, target) in zip(pictures, where, strict=True))
    )

    def read(pair: tuple[Named, Output | None]) -> tuple[str, Output | None, Tensor | Skipped]:
        return pair[0][0], pair[1], _crop_or_why(loaded, *pair, alone=targets.alone)

    crops = map(read, pairs) if most == 1 else ahead(read, pairs, workers=reader.workers, window=3 * most)
    while batch := list(islice(crops, most)):
        seen = [crop for _, _, crop in batch if not isinstance(crop, Skipped)]
        answers = iter(answers_of(loaded.backbone, loaded.model, torch.stack(seen)) if seen else ())
        for path, target, crop in batch:
            yield path, target, crop if isinstance(crop, Skipped) else next(answers)


def _crop_or_why(loaded: Loaded, picture: Named, target: Output | None, *, alone: bool) -> Tensor | Skipped:
    """What the network sees of an image; why it is not explained, where it cannot be read or drawn."""
    path = picture[0]
    if target is not None and not alone:
        try:
            check_writable(target.path, target.force, target.option, alone=False)
        except InputError as failure:
            return Skipped(path=printable(path), reason=f"is left out: {failure.words}".rstrip("."))
    return loaded.crop_or_why(picture, alone=alone)


def _note_of_choice(explanation: Explanation, model: PrototypeModel, progress: Progress) -> bool:
    """Say that the explained class is not the network's first answer, because that one has no prototypes."""
    first = explanation.predictions[0]
    if explanation.among != "prototypes" or explanation.class_index == first.class_index:
        return False
    progress.note(
        f"{len(model.active_classes)} of {len(model.bias)} classes have prototypes, and the best of them is explained: "
        f"{explanation.name} ({explanation.probability:.1%}). The network's first answer is {first.name} "
        f"({first.probability:.1%}); --among all explains it."
    )
    return True


def _note_of_turning(path: str, progress: Progress) -> bool:
    """Say that a picture was read as it is stored, not as its camera says."""
    if not is_turned(Path(path)):
        return False
    progress.note(
        f"{path} is stored turned (EXIF) and was read so, as the network's own preprocessing does. To have such pictures "
        "turned, convert with --exif-transpose."
    )
    return True


def _draw(explanation: Explanation, top: int, target: Path, progress: Progress) -> None:
    from protonmf_cli.output.figures.figure import explanation_figure  # a second for matplotlib
    from protonmf_cli.output.figures.rendering import rendered

    write_atomically(target, rendered(explanation_figure(explanation, top), target.name))
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
        loaded.backbone, loaded.model, batches, file=loaded.named, decode=decoded, form=options.form,
        class_index=class_index, among=options.among, explained_only=True, interpretation=interpretation,
    )  # fmt: skip
    write_page(target, drawn_page(loaded, content, interpretation, PageOptions()), progress)
