"""From a ProtoPNet in memory to its model file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.images.reader import ImageFile, ImageReader, encode_jpeg
from protonmf_cli.files.store import save_model
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import DataFacts, ProtoPNetFigures
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.model_cards import data_facts
from protonmf_cli.pipelines.progress import Progress
from protonmf_cli.pipelines.protopnet.activations import Activations, read_activations
from protonmf_cli.pipelines.protopnet.model import as_prototype_model, nearest_examples, protopnet_card

NOT_A_PATCH = 1e-3
"""Squared distance above which a prototype is no longer the patch that it is shown as; rounding gives 1e-4 at most."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A ProtoPNet whose numbers are settled."""

    net: ProtoPNet
    backbone: Backbone
    """The same network, as it reads images."""
    options: ProtoPNetOptions
    """It was trained with."""


def finished_model(
    trained: Trained,
    files: Sequence[ImageFile],
    reader: ImageReader,
    sources: Sequence[Mapping[str, Any] | None],
    data: DataFacts,
    progress: Progress,
) -> tuple[PrototypeModel, Activations]:
    """Every prototype with its own patch and the nearest other ones, and the activations of the training images.

    Args:
        trained: the network.
        files, reader: the training images.
        sources: image and row of each prototype's own patch; empty or None where they are not known.
        data: further facts about the images.
        progress: is warned where a prototype is not the patch that it was projected onto.
    """
    net, backbone = trained.net, trained.backbone
    backbone = replace(backbone, source=replace(backbone.source, digest=digest_of_tensors(backbone.weights())))
    progress.stage("nearest patches of every prototype", len(files))
    activations = read_activations(net, backbone, reader.batches(files), progress=progress)
    of_name = {file.name: file for file in files}
    examples, apart = nearest_examples(
        net, backbone, activations, list(sources) or [None] * len(net.prototypes),
        lambda images: reader.batches([of_name[image.path] for image in images]), encode_jpeg,
        count=trained.options.examples,
    )  # fmt: skip
    if apart is not None and apart > NOT_A_PATCH:
        progress.warn(
            f"a prototype is {apart:.1e} (squared) away from the patch it was projected onto: batch statistics moved "
            "after the push, as they do with --recipe paper."
        )
    facts = data_facts(activations.labels, activations.images, data)
    card = protopnet_card(net, backbone, trained.options, data=facts)
    measured = ProtoPNetFigures(distance_from_own_patch=apart)
    return as_prototype_model(net, card, examples).measured_as(measured), activations


def figures_of(model: PrototypeModel) -> ProtoPNetFigures:
    """What the card of a ProtoPNet says was measured."""
    assert model.card.protopnet is not None
    return model.card.protopnet


def save_finished(path: Path, model: PrototypeModel, backbone: Backbone, reader: ImageReader) -> tuple[Loaded, int]:
    """Write a model with its network; returns both as they are when the file is opened, and the file's bytes."""
    size = save_model(path, model, backbone.weights())
    backbone = replace(backbone, source=model.card.source)
    return Loaded(path=path, model=model, backbone=backbone, reader=reader, embedded=True), size
