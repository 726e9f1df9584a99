"""Options that a model file stores, read by a version that may know other ones."""

from dataclasses import replace

from protonmf_cli.models.card.stored import read_options
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.progress import LOGGED, Progress


def options_of(model: PrototypeModel, progress: Progress = LOGGED) -> ConversionOptions:
    """The options a model was converted with, for conversions that are compared with it.

    Args:
        model: of any version.
        progress: is told what is stored and not known here.
    """
    stored = {"near_as": "parts", **model.card.stored_options}  # as before there was a choice
    if model.is_outdated:
        stored |= {"reconstruction": "amounts", "augment": "none"}
    found = read_options(ConversionOptions, stored)
    note_unknown(found.unknown, progress)
    return replace(found.options, group=1)


def note_unknown(names: tuple[str, ...], progress: Progress) -> None:
    """Say which stored options are left out."""
    if names:
        progress.note(f"the model stores options that this version does not know; they are ignored: {', '.join(names)}")
