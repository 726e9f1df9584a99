"""Names for prototypes: words that a CLIP finds nearest to their training patches, kept with the model as captions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Protocol

from torch import Tensor

from protonmf_cli.errors import InputError, ModelFileError, UsageError
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.files.networks.open_clip_towers import load_towers
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.files.vocabulary import checked_vocabulary, digest_of_words, read_vocabulary
from protonmf_cli.files.work.locks import claiming
from protonmf_cli.jobs.early import check_edited
from protonmf_cli.jobs.loaded import Loaded, local_file
from protonmf_cli.jobs.machine import device_of, threads_of
from protonmf_cli.models.card.names import NameFacts
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import Machine, Output
from protonmf_cli.pipelines.naming import TEMPLATE, WORD, Fit, Towers, fits, names_of
from protonmf_cli.pipelines.progress import LOGGED, Progress


class NamedTowers(Towers, Protocol):
    """Towers that say what they are."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def digest(self) -> str:
        """sha256 of the weights."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Naming:
    """A model whose prototypes were named, or lost their names."""

    file: Path
    """As it was before."""
    model: PrototypeModel
    """As it is now."""
    fits: tuple[Fit, ...]
    """One per prototype; none where names were dropped."""
    facts: NameFacts | None
    """What is stored with the model; None where names were dropped."""
    path: Path | None
    """That was written."""
    dropped: int = 0
    """Names that were taken away."""


@claiming()
def name(
    model: Loaded | str | PathLike[str],
    vocabulary: str | PathLike[str] | Sequence[str],
    tower: str | PathLike[str] | NamedTowers,
    *,
    weights: str | PathLike[str] | None = None,
    template: str = TEMPLATE,
    min_margin: float | None = None,
    output: Output | str | PathLike[str] | None = None,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> Naming:
    """Name prototypes by the word that fits their stored training patches best; the model itself stays as it is.

    Args:
        model: a file, or a model that is loaded from one.
        vocabulary: words, or a UTF-8 file with one on each line.
        tower: open_clip:ARCHITECTURE:TAG, a folder as open_clip saves them, or towers of your own.
        weights: checkpoint of open_clip:ARCHITECTURE.
        template: sentence in which {word} is read.
        min_margin: least cosine by which the best word is before the second to be a name; None: that of a word three
            times as probable as the second.
        output: file for the model with its names; they are not kept if None.
        machine: where to compute.
        progress: is told stages and notes.

    Raises:
        UsageError: the tower is unknown or its library missing, or the template has no {word}.
        ModelFileError: the file is missing, damaged or foreign.
        InputError: the vocabulary cannot be used, the towers cannot be loaded, the model holds no training patches, or
            the output cannot be written.
    """
    if WORD not in template:
        raise UsageError(f"--template {template!r} has no {WORD} where a word goes.")
    words = _words_of(vocabulary, progress)
    target, path = _target(model, output), _path_of(model)
    machine = machine or Machine()
    with threads_of(machine):
        found, embedded = _opened(model, offline=machine.offline)
        if not len(found.examples.prototype):
            raise ModelFileError(
                f"{path} holds no training patches, so there is nothing to name. Make it again with some."
            )
        towers = _towers_of(tower, weights, machine, progress)
        every, least = fits(
            found, _decoder(found), words, towers, template=template, min_margin=min_margin, progress=progress
        )
    facts = NameFacts(
        tower=towers.name, weights=towers.digest, template=template, vocabulary=digest_of_words(words),
        words=len(words), min_margin=least, prototypes=names_of(every),
    )  # fmt: skip
    named = replace(found, card=replace(found.card, names=facts))
    return Naming(
        file=path, model=named, fits=tuple(every), facts=facts, path=_saved(named, embedded, target, progress)
    )


@claiming()
def drop_names(
    model: Loaded | str | PathLike[str], *, output: Output | str | PathLike[str], progress: Progress = LOGGED
) -> Naming:
    """Take the names away that `name` stored.

    Args:
        model: a file, or a model that is loaded from one.
        output: file for the model without names.
        progress: is told what was written.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        InputError: it holds no names, or the output cannot be written.
    """
    target, path = _target(model, output), _path_of(model)
    found, embedded = _opened(model)
    if found.card.names is None:
        raise InputError(f"{path} holds no names, so there is nothing to drop.")
    bare = replace(found, card=replace(found.card, names=None))
    count = len(found.card.names.prototypes)
    return Naming(
        file=path, model=bare, fits=(), facts=None, path=_saved(bare, embedded, target, progress), dropped=count
    )


def _opened(
    model: Loaded | str | PathLike[str], *, offline: bool = False
) -> tuple[PrototypeModel, Mapping[str, Tensor] | None]:
    """The model with its network's weights, as it is in memory or in its file."""
    if isinstance(model, Loaded):
        return model.model, model.backbone.weights() if model.embedded else None
    return load_model(local_file(Path(model), offline=offline))


def _path_of(model: Loaded | str | PathLike[str]) -> Path:
    return model.path if isinstance(model, Loaded) else Path(model)


def _target(model: Loaded | str | PathLike[str], output: Output | str | PathLike[str] | None) -> Output | None:
    """Where to write, which must be possible and not the model itself."""
    target = None if output is None else Output.of(output)
    check_edited(_path_of(model), target)
    return target


def _words_of(vocabulary: str | PathLike[str] | Sequence[str], progress: Progress) -> tuple[str, ...]:
    is_file = isinstance(vocabulary, str | PathLike)
    given = read_vocabulary(Path(vocabulary)) if isinstance(vocabulary, str | PathLike) else vocabulary
    words, repeated = checked_vocabulary(given, f"--vocabulary {vocabulary}" if is_file else "the vocabulary")
    if repeated:
        progress.note(f"{repeated} repeated word{'s' * (repeated > 1)} of the vocabulary count once")
    return words


def _towers_of(
    tower: str | PathLike[str] | NamedTowers, weights: str | PathLike[str] | None, machine: Machine, progress: Progress
) -> NamedTowers:
    if not isinstance(tower, str | PathLike):
        return tower
    progress.stage("loading the towers")
    found = load_towers(
        str(tower), weights=None if weights is None else Path(weights), offline=machine.offline,
        device=device_of(machine),
    )  # fmt: skip
    for note in found.notes:
        progress.note(note)
    return found


def _decoder(model: PrototypeModel) -> Callable[[int], Tensor]:
    """Reads the picture of an example, of the network that its prototype belongs to."""
    cards = model.card.members or (model.card,)
    channels = [card.preprocessing.input_size[0] for card in cards]
    owner = model.examples.prototype.tolist()
    return lambda n: crop_of_jpeg(model.examples.picture(n), channels[model.network_of(owner[n])])


def _saved(
    model: PrototypeModel, embedded: Mapping[str, Tensor] | None, target: Output | None, progress: Progress
) -> Path | None:
    """The file that was written, where one is asked for."""
    if target is None:
        return None
    save_model(target.path, model, embedded)
    progress.note(f"wrote {target.path}")
    return target.path
