"""The network and the images of a few-shot model, found and checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protonmf_cli.cli.arguments import model_arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.models.backbone import Backbone, ClassName


DEFAULT_MODEL = Path("fewshot.safetensors")
"""What `fit` writes and the other commands read, unless they are told otherwise."""


@dataclass(frozen=True, kw_only=True)
class NetworkWords:
    """What the user said of the network."""

    name: str
    weights: Path | None
    model_args: Sequence[str]
    img_size: int | None
    layers: str
    offline: bool

    @property
    def joined(self) -> tuple[int, ...]:
        """Layers whose features are joined.

        Raises:
            UsageError: not a list of numbers.
        """
        try:
            return tuple(int(word) for word in self.layers.split(","))
        except ValueError as failure:
            raise UsageError(
                f"--layers {self.layers!r} is not a list of numbers such as -1,-2 (-1 is the last layer)."
            ) from failure


def open_features(words: NetworkWords, classes: "tuple[ClassName, ...]", place: Any, shown: Shown) -> "Backbone":
    """The network without its classifier, on its device.

    Raises:
        UsageError: a name that is none.
        InputError: no such weights or layers, or features without a grid.
    """
    import torch

    from protonmf_cli.files.networks.backbones import features_backbone, load_features
    from protonmf_cli.files.networks.loading import BackboneRequest

    joined = words.joined
    request = BackboneRequest(
        name=words.name, weights=words.weights, model_args=model_arguments(list(words.model_args)),
        img_size=words.img_size, offline=words.offline,
    )  # fmt: skip
    network, preprocessing, source, notes = load_features(request)
    for note in notes:
        shown.note(note)
    return features_backbone(network, preprocessing, classes, source, joined).to(place, torch.float32)


def find_labelled(data: Path, split: str, shown: Shown) -> "tuple[tuple[ClassName, ...], LabelledImages]":
    """The classes of a data set and their images: class folders, train/ and val/ above them, a list or a zip archive.

    Raises:
        InputError: nothing is there, or fewer than two classes.
    """
    from protonmf_cli.files.images.datasets import ClassMapping, class_folders, find_images

    classes = class_folders(data, split)
    if len(classes) < 2:
        raise InputError(
            f"{data} has {'one class' if classes else 'no class'} with images; a few-shot model needs at least two. "
            "Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg."
        )
    images = find_images(data, split, classes, ClassMapping(by_order=True))
    for note in images.notes:
        shown.note(note)
    return classes, images
