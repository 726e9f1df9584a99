"""What the cards of all methods have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from torch import Tensor

from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import Card
from protonmf_cli.models.image_batches import ImageSource, digest_of_images
from protonmf_cli.options import ConversionOptions, FewShotOptions, ProtoPNetOptions
from protonmf_cli.versions import installed_versions


def bare_card(
    backbone: Backbone,
    options: ConversionOptions | ProtoPNetOptions | FewShotOptions,
    *,
    method: str,
    similarity: str,
    pooling: Literal["sum", "max", "soft"],
    readout: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Card:
    """A card before anything is measured.

    Args:
        backbone: network, readout and classes.
        options: of the method, seed included.
        method: its name.
        similarity: how rows are compared with prototypes.
        pooling: over the rows of an image.
        readout: what only this method says of it.
        data: what the images were.
    """
    return Card(
        method=method,
        similarity=similarity,
        pooling=pooling,
        readout={
            **readout_facts(backbone),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "device": backbone.device.type,
            **readout,
        },
        source=backbone.source,
        preprocessing=backbone.preprocessing,
        classes=backbone.classes,
        options=asdict(options),
        seed=options.seed,
        versions=installed_versions(),
        data=data,
        measured={},
    )


def readout_facts(backbone: Backbone) -> dict[str, Any]:
    """How a head is read."""
    rows = backbone.readout
    return {
        "kind": rows.kind,
        "rows": backbone.rows_option,
        "rows_per_image": rows.places + len(rows.unplaced),
        "width": rows.width,
        "grid": list(rows.grid) if rows.grid else None,
        "unplaced": list(rows.unplaced),
        "spatial": rows.spatial,
    }


def data_facts(labels: Tensor, images: Sequence[ImageSource]) -> dict[str, Any]:
    """What a card says of labelled images: number, digest, and images of each class."""
    found, counts = labels.unique(return_counts=True)
    return {
        "images": len(images),
        "digest": digest_of_images(images),
        "images_per_class": dict(zip(map(str, found.tolist()), counts.tolist(), strict=True)),
    }
