"""From a trained ProtoPNet to a prototype model: the last layer as connections, and patches for every prototype."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.maths.losses import other_class_mask
from protonmf_cli.maths.scoring import percentile_box
from protonmf_cli.maths.similarity import seen_by
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import Card, DataFacts
from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.protopnet.latent_patches import LatentPatches, ProtoPNet
from protonmf_cli.models.prototype import Examples, PrototypeModel, model_of_head
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.model_cards import bare_card, readout_facts
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.protopnet.activations import Activations
from protonmf_cli.pipelines.training_examples import FoundExamples, first_different, gathered_examples, wanted_of

METHOD = "protopnet"


def protopnet_card(net: ProtoPNet, backbone: Backbone, options: ProtoPNetOptions, *, data: DataFacts) -> Card:
    """Everything about a ProtoPNet that is not a tensor, before anything is measured."""
    readout = backbone.readout
    assert isinstance(readout, LatentPatches)
    channels = readout.width // (readout.patch[0] * readout.patch[1])
    return bare_card(
        backbone,
        options,
        method=METHOD,
        similarity=net.similarity,
        pooling="max",
        readout=replace(
            readout_facts(backbone),
            addon=options.addon,
            features=readout.features,
            channels=channels,
            patch=readout.patch,
        ),
        data=data,
    )


def as_prototype_model(
    net: ProtoPNet,
    card: Card,
    examples: Examples,
) -> PrototypeModel:
    """The trained network as the noun that every command takes.

    Connections: every own one, and those of other classes whose weight is not zero.
    """
    head, owner = net.head.detach().cpu().float(), net.owner.cpu()
    kept = ~other_class_mask(owner, len(head)) | (head != 0)
    prototypes = net.prototypes.detach().cpu().clone()
    return model_of_head(prototypes, owner.clone(), head, kept, examples=examples, card=card, evidence=NearestPatch())


def head_of(model: PrototypeModel) -> Tensor:
    """(C, P) last layer of a prototype model."""
    return model.dense_weights.mT.clone()


def nearest_examples(
    net: ProtoPNet,
    backbone: Backbone,
    activations: Activations,
    sources: Sequence[Mapping[str, Any] | None],
    read: Callable[[Sequence[ImageSource]], Iterable[ImageBatch]],
    encode: Callable[[Tensor], bytes],
    *,
    count: int,
    progress: Progress = SILENT,
) -> tuple[Examples, float | None]:
    """The patch each prototype is, then the nearest patches of other training images: ProtoPNet's global analysis.

    Args:
        net, backbone: the network in evaluation mode.
        activations: of the training images.
        sources: image and row of each prototype's own patch, as a projection left them; with a map, that is what the
            patch is shown and boxed with, as the original code does.
        read: batches of the given images, in that order.
        encode: crop -> JPEG file.
        count: examples per prototype, each from another image.

    Returns:
        The examples, and the largest squared distance between a prototype and the patch it was projected onto, as the
        network sees it now; None where no row is known.
    """
    chosen = [_ranking(activations, j, sources[j], count) for j in range(activations.distance.shape[1])]
    wanted = wanted_of(chosen)
    found: FoundExamples = {}
    crops: list[bytes] = []
    apart: list[float] = []
    order = [image for image in activations.images if image in wanted]
    for batch in read(order):
        progress.advance(len(batch.sources))
        if not batch.sources:
            continue
        rows = backbone.read(batch.crops).rows.float()
        for place, image in enumerate(batch.sources):
            _add_examples(net, backbone, rows[place], wanted[image], sources, len(crops), found)
            apart += _apart(net, rows[place], wanted[image], sources)
            crops.append(encode(batch.crops[place]))
    return gathered_examples(found, crops, order), max(apart, default=None)


def _apart(
    net: ProtoPNet, rows: Tensor, of: Sequence[tuple[int, int]], sources: Sequence[Mapping[str, Any] | None]
) -> list[float]:
    """Squared distances of prototypes from their own patch, for those whose patch is in this image."""
    own = [(j, sources[j]) for rank, j in of if rank == 0]
    known = [(j, source["row"]) for j, source in own if source is not None and source["row"] is not None]
    prototypes = net.prototypes.detach()
    return [
        float((seen_by(rows[row], net.similarity) - seen_by(prototypes[j], net.similarity)).double().square().sum())
        for j, row in known
    ]


def _ranking(
    activations: Activations, prototype: int, source: Mapping[str, Any] | None, count: int
) -> list[ImageSource]:
    """The prototype's own image, then the images nearest to it, the same picture counted once."""
    nearest, images = activations.distance[:, prototype].argsort(stable=True), activations.images
    if source is not None:
        nearest, images = torch.cat([nearest.new_zeros(1), nearest + 1]), (ImageSource(**source["image"]), *images)
    return [images[n] for n in first_different(nearest, images, count)]


def _add_examples(
    net: ProtoPNet,
    backbone: Backbone,
    rows: Tensor,
    of: Sequence[tuple[int, int]],
    sources: Sequence[Mapping[str, Any] | None],
    crop: int,
    found: FoundExamples,
) -> None:
    numbers = [j for _, j in of]
    size = (backbone.preprocessing.input_size[1], backbone.preprocessing.input_size[2])
    with torch.inference_mode():
        maps = net.similarities(net.distances_to(rows[None], net.prototypes[numbers]))[0].cpu()
    for (rank, j), values in zip(of, maps.T, strict=True):
        before = (sources[j] or {}).get("map") if rank == 0 else None
        grid = (values if before is None else torch.tensor(before)).reshape(backbone.readout.grid or (1, -1)).clone()
        found[j, rank] = (float(values.max()), percentile_box(grid, size, connected=before is None), grid, crop)


def restored_protopnet(backbone: Backbone, model: PrototypeModel) -> ProtoPNet:
    """The trainable network of a model file, in evaluation mode."""
    readout = backbone.readout
    assert isinstance(readout, LatentPatches)
    net = ProtoPNet(backbone.network, readout, model.prototypes, model.owner, len(model.bias), model.card.similarity)
    net.head.data = head_of(model)
    return net.to(backbone.device).requires_grad_(False).eval()
