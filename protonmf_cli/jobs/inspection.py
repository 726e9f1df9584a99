"""What is in a model file."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.networks.failures import naming
from protonmf_cli.files.store import load_model
from protonmf_cli.jobs.early import check
from protonmf_cli.jobs.loaded import Loaded, local_file
from protonmf_cli.jobs.stored_options import note_unknown
from protonmf_cli.models.evidence import SoftMatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import Output
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, interpretation_of
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.pipelines.protopnet.analyses import global_strips

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Inspection:
    """A model file that was looked into; its network is not loaded."""

    path: Path
    model: PrototypeModel
    embedded: bool
    """Whether the file holds the network's weights."""
    class_index: int | None
    """The class that was named."""
    interpretation: Interpretation | None
    """Of a few-shot model."""


def inspect(
    model: Loaded | str | PathLike[str],
    class_name: str | None = None,
    *,
    figure: str | PathLike[str] | Output | None = None,
    offline: bool = False,
    progress: Progress = LOGGED,
) -> Inspection:
    """Look into a prototype model file.

    Args:
        model: a file, or a model that is loaded from one, which is read again.
        class_name: label, description, WordNet id or index of a class that is looked at alone.
        figure: file to draw, .png, .svg or .pdf: of the class's prototypes, or without a class of the curves of `-p auto`.
        offline: take a model of the hub from the cache alone.
        progress: is told of stored options that this version does not know.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        UsageError: the figure's name says no kind of file.
        InputError: there is no such class, nothing to draw, or the figure cannot be written.
    """
    drawn = None if figure is None else Output.of(figure, "--figure")
    check(figures=[drawn])
    path = model.path if isinstance(model, Loaded) else local_file(Path(model), offline=offline)
    prototypes, network = load_model(path)
    found = Inspection(
        path=path,
        model=prototypes,
        embedded=network is not None,
        class_index=None if class_name is None else prototypes.find_class(class_name),
        interpretation=interpretation_of(prototypes),
    )
    note_unknown(prototypes.card.unknown_options, progress)
    if drawn is not None:
        with naming(path):
            _draw(found, drawn.path, progress)
    return found


def _draw(found: Inspection, target: Path, progress: Progress) -> None:
    from protonmf_cli.output.figures.rendering import rendered  # a second for matplotlib

    if found.class_index is None:
        _check_curves(found)
    elif not found.model.own(found.class_index):
        name = found.model.card.classes[found.class_index].shown
        raise InputError(f"class {name} has no prototypes in this model, so there is nothing to draw.")
    figure = _curves(found.model) if found.class_index is None else _prototypes(found.model, found.class_index)
    write_atomically(target, rendered(figure, target.name))
    progress.note(f"wrote {target}")


def _check_curves(found: Inspection) -> None:
    """Refuse to draw curves that a file does not hold.

    Raises:
        InputError: with what to do instead.
    """
    if isinstance(found.model.evidence, SoftMatch):
        raise InputError(
            f"{found.path} has no curves. Give --class, or draw all prototypes: `protonmf fewshot interpret --figures DIR`."
        )
    if not _curves_of(found.model):
        raise InputError(
            f"{found.path} has no curves: its numbers of prototypes were given. Convert with -p auto, or give --class."
        )


def _prototypes(model: PrototypeModel, class_index: int) -> "Figure":
    from protonmf_cli.output.figures.strips import gallery_figure  # a second for matplotlib

    strips, headings = global_strips(model, class_index)
    return gallery_figure(f"the prototypes of {model.card.classes[class_index].shown}", strips, headings)


def _curves_of(model: PrototypeModel) -> Mapping[str, Any]:
    return {} if model.card.conversion is None else model.card.conversion.curves


def _curves(model: PrototypeModel) -> "Figure":
    curves = _curves_of(model)
    names = {c: model.card.classes[int(c)].shown for c in curves}
    from protonmf_cli.output.figures.table import curves_figure  # a second for matplotlib

    return curves_figure(curves, names, {c: len(model.own(int(c))) for c in curves})
