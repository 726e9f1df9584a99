"""What the cards of all methods have in common."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import Card, DataFacts, Options, ReadoutFacts
from protonmf_cli.models.card.stored import Facts
from protonmf_cli.models.image_batches import ImageSource, digest_of_images
from protonmf_cli.versions import PACKAGES, installed_versions, packages_of


def bare_card(
    backbone: Backbone,
    options: Options,
    *,
    method: str,
    similarity: str,
    pooling: Literal["sum", "max", "soft"],
    readout: ReadoutFacts,
    data: DataFacts,
) -> Card:
    """A card before anything is measured.

    Args:
        backbone: network, readout and classes.
        options: of the method, seed included.
        method: its name.
        similarity: how rows are compared with prototypes.
        pooling: over the rows of an image.
        readout: of `readout_facts`, with what only this method says of it.
        data: what the images were.
    """
    return Card(
        method=method,
        similarity=similarity,
        pooling=pooling,
        readout=readout,
        source=backbone.source,
        preprocessing=backbone.preprocessing,
        classes=backbone.classes,
        options=options,
        seed=options.seed,
        versions=installed_versions((*PACKAGES, *packages_of(backbone.source.library)[3:])),
        data=data,
        measured=Facts(),
    )


def readout_facts(backbone: Backbone) -> ReadoutFacts:
    """How a head is read."""
    rows = backbone.readout
    return ReadoutFacts(
        kind=rows.kind,
        rows=backbone.rows_option,
        rows_per_image=rows.count,
        width=rows.width,
        grid=rows.grid,
        unplaced=tuple(rows.unplaced),
        spatial=rows.spatial,
        dtype=str(backbone.dtype).removeprefix("torch."),
        device=backbone.device.type,
    )


def data_facts(labels: Tensor, images: Sequence[ImageSource], known: DataFacts) -> DataFacts:
    """What a card says of labelled images: number, digest, and images of each class, beside what was known before."""
    found, counts = labels.unique(return_counts=True)
    return replace(
        known,
        images=len(images),
        digest=digest_of_images(images),
        images_per_class=dict(zip(map(str, found.tolist()), counts.tolist(), strict=True)),
    )
