"""From a ProtoPNet in memory to the content of its model file."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.console import Bars
from protonmf_cli.options import ProtoPNetOptions

if TYPE_CHECKING:
    from protonmf_cli.files.images.reader import ImageFile, ImageReader
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.models.protopnet import ProtoPNet
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.protopnet.activations import Activations


def finished_model(
    net: "ProtoPNet",
    backbone: "Backbone",
    options: ProtoPNetOptions,
    files: "Sequence[ImageFile]",
    reader: "ImageReader",
    sources: Sequence[Mapping[str, Any] | None],
    data: Mapping[str, Any],
    bars: Bars,
) -> "tuple[PrototypeModel, Activations]":
    """Every prototype with its own patch and the nearest other ones, and the activations of the training images."""
    from protonmf_cli.files.atomic import digest_of_tensors
    from protonmf_cli.files.images.reader import encode_jpeg
    from protonmf_cli.pipelines.model_cards import data_facts
    from protonmf_cli.pipelines.protopnet.activations import read_activations
    from protonmf_cli.pipelines.protopnet.model import (
        as_prototype_model,
        nearest_examples,
        protopnet_card,
    )

    backbone = replace(backbone, source=replace(backbone.source, digest=digest_of_tensors(backbone.weights())))
    bars.stage("nearest patches of every prototype", len(files))
    activations = read_activations(net, backbone, reader.batches(files), progress=bars)
    of_name = {file.name: file for file in files}
    examples, apart = nearest_examples(
        net,
        backbone,
        activations,
        list(sources) or [None] * len(net.prototypes),
        lambda images: reader.batches([of_name[image.path] for image in images]),
        encode_jpeg,
        count=options.examples,
    )
    if apart is not None and apart > NOT_A_PATCH:
        bars.warn(
            f"a prototype is {apart:.1e} (squared) away from the patch it was projected onto: batch statistics moved "
            "after the push, as they do with --recipe paper."
        )
    card = protopnet_card(net, backbone, options, data={**data_facts(activations.labels, activations.images), **data})
    model = as_prototype_model(net, card, examples)
    return model.measured_as(distance_from_own_patch=apart), activations


NOT_A_PATCH = 1e-3
"""Squared distance above which a prototype is no longer the patch that it is shown as; rounding gives 1e-4 at most."""
