"""What the prototypes of a few-shot model are, in numbers and pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from torch import Tensor

from protonmf_cli.errors import UsageError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_model_there, check_writable
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.jobs.early import make_folder
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.options import Machine, Output
from protonmf_cli.output.figures.plane import plane_figure
from protonmf_cli.output.figures.rendering import rendered
from protonmf_cli.output.figures.strips import gallery_figure
from protonmf_cli.pipelines.fewshot.adversarial import CHANGES, AdversarialCheck, adversarial_check
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, interpret
from protonmf_cli.pipelines.fewshot.plane import plane_of
from protonmf_cli.pipelines.fewshot.prototype_cards import CARD_HEADINGS, VIRTUAL_HEADINGS, card_strips, virtual_strips
from protonmf_cli.pipelines.fewshot.virtual_examples import VirtualExample, virtual_examples
from protonmf_cli.pipelines.progress import LOGGED, Progress


@dataclass(frozen=True, kw_only=True)
class AttackedPictures:
    """The pictures inside a model file under the fast gradient sign method."""

    names: tuple[str, ...]
    """Of the training images that `check` numbers."""
    changes: tuple[float, ...]
    """That were tried, of 255."""
    check: AdversarialCheck


@dataclass(frozen=True, kw_only=True)
class FewShotInterpretation:
    """What was found in a model, and through its network."""

    loaded: Loaded
    found: Interpretation
    virtual: tuple[VirtualExample, ...] | None
    """Pictures that the prototypes would like best; None: they were not asked for."""
    attacked: AttackedPictures | None
    """None: it was not asked for."""


def interpret_fewshot(
    model: Loaded | str | PathLike[str],
    *,
    figures: str | PathLike[str] | Output | None = None,
    virtual: bool = False,
    steps: int = 96,
    fgsm: bool = False,
    seed: int = 0,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> FewShotInterpretation:
    """Pure, ambiguous and unused prototypes, scattered classes, singletons, and the images where classes meet.

    Args:
        model: a few-shot model's file, or one that is loaded.
        figures: folder for cards.png, plane.png and, with `virtual`, virtual.png.
        virtual: look for a picture that each prototype would like best, through the network.
        steps: of that search.
        fgsm: find how small a change of the pixels changes the class of the pictures inside the file.
        seed: of the search's start.
        machine: where and how to compute.
        progress: is told stages and what was written.

    Raises:
        UsageError: `virtual` without a folder for its pictures.
        ModelFileError: the file is missing, damaged or foreign.
        InputError: it is a model of another method, or a picture cannot be written.
    """
    folder = None if figures is None else Output.of(figures)
    if virtual and folder is None:
        raise UsageError("--virtual makes pictures: give a folder with --figures.")
    if folder is not None:
        if not isinstance(model, Loaded):
            check_model_there(Path(model))
        _check_folder(folder, ("cards.png", "plane.png", *(["virtual.png"] if virtual else [])))
    with threads_of(machine or Machine()):
        loaded = loaded_from(model, machine, progress)
        found = interpret(loaded.model)
        if folder is not None:
            _draw_cards(found, folder.path / "cards.png", progress)
            draw_plane(found, folder.path / "plane.png", progress)
        liked = None
        if virtual and folder is not None:
            liked = _liked(loaded, steps, seed, progress)
            _draw_liked(found, liked, folder.path / "virtual.png", progress)
        attacked = _attacked(loaded, progress) if fgsm else None
    return FewShotInterpretation(loaded=loaded, found=found, virtual=liked, attacked=attacked)


def draw_plane(found: Interpretation, target: Path, progress: Progress) -> None:
    """Samples and prototypes on the two principal axes."""
    write_atomically(target, rendered(plane_figure(plane_of(found.model, found)), target.name))
    progress.note(f"wrote {target}")


def _check_folder(folder: Output, names: Sequence[str]) -> None:
    """Make the folder, and refuse pictures in it that exist, before any work."""
    make_folder(folder.path)
    for name in names:
        check_writable(folder.path / name, folder.force, "--figures")


def _draw_cards(found: Interpretation, target: Path, progress: Progress) -> None:
    figure = gallery_figure("prototypes", card_strips(found), CARD_HEADINGS)
    write_atomically(target, rendered(figure, target.name))
    progress.note(f"wrote {target}")


def _liked(loaded: Loaded, steps: int, seed: int, progress: Progress) -> tuple[VirtualExample, ...]:
    """The picture that each prototype would like best."""
    every = range(len(loaded.model.prototypes))
    crops = list(_pictures(loaded).values())
    return tuple(
        virtual_examples(loaded.backbone, loaded.model, every, crops, steps=steps, seed=seed, progress=progress)
    )


def _draw_liked(found: Interpretation, liked: Sequence[VirtualExample], target: Path, progress: Progress) -> None:
    figure = gallery_figure("virtual examples", virtual_strips(found, liked), VIRTUAL_HEADINGS)
    write_atomically(target, rendered(figure, target.name))
    progress.note(f"wrote {target}")


def _attacked(loaded: Loaded, progress: Progress) -> AttackedPictures:
    pictures = _pictures(loaded)
    check = adversarial_check(loaded.backbone, loaded.model, list(pictures.values()), progress=progress)
    return AttackedPictures(names=tuple(pictures), changes=CHANGES, check=check)


def _pictures(loaded: Loaded) -> dict[str, Tensor]:
    """The training images inside the file, by name."""
    examples = loaded.model.examples
    first = {source.path: number for number, source in reversed(list(enumerate(examples.sources)))}
    return {name: crop_of_jpeg(examples.picture(first[name]), loaded.reader.channels) for name in sorted(first)}
