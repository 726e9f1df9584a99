"""The network and the images of a few-shot model, found and checked."""

from collections.abc import Sequence
from os import PathLike

import torch

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.datasets import ClassMapping, LabelledImages, class_folders, find_images
from protonmf_cli.files.images.sources.opening import splits_of
from protonmf_cli.files.images.sources.source import listed
from protonmf_cli.files.networks.backbones import features_backbone, load_features
from protonmf_cli.jobs.images import mapping_of
from protonmf_cli.jobs.machine import device_of, dtype_of
from protonmf_cli.jobs.networks import request_of
from protonmf_cli.models.backbone import Backbone, ClassName
from protonmf_cli.options import ImageWords, Machine, NetworkWords, without_secrets
from protonmf_cli.pipelines.progress import Progress

LAST_LAYER = (-1,)
"""The layers whose features are joined unless others are named: what the network itself pools."""


def open_features(
    network: NetworkWords,
    classes: tuple[ClassName, ...],
    layers: Sequence[int],
    machine: Machine,
    progress: Progress,
) -> Backbone:
    """The network without its classifier, on its device.

    Raises:
        UsageError: a name that is none, or float64.
        InputError: no such weights or layers, or features without a grid.
    """
    device = device_of(machine)
    if dtype_of(machine) != torch.float32:
        raise UsageError("a few-shot model is fitted to features in float32. Leave --dtype out.")
    module, preprocessing, source, notes = load_features(request_of(network, offline=machine.offline))
    for note in notes:
        progress.note(note)
    return features_backbone(module, preprocessing, classes, source, layers).to(device, torch.float32)


def images_by_folder(words: ImageWords, progress: Progress) -> tuple[tuple[ClassName, ...], LabelledImages]:
    """The classes of a data set and their images: folders or labels, in any kind of source.

    Args:
        words: with a split.
        progress: is told which files were left out.

    Raises:
        UsageError: the words map folders to other classes, or cut images.
        InputError: nothing is there, or fewer than two classes.
    """
    if words.class_map is not None or words.class_order or words.boxes is not None:
        raise UsageError(
            "the classes of a few-shot model are the folders of its whole images: leave out --class-map, --class-order "
            "and --boxes."
        )
    data, split = words.data, words.split or "train"
    classes = class_folders(data, split)
    if len(classes) < 2:
        raise InputError(
            f"{without_secrets(str(data))} has {'one class' if classes else 'no class'} with images; a few-shot model needs at least two. "
            "Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg."
        )
    images = find_images(data, split, classes, ClassMapping(by_order=True))
    for note in images.notes:
        progress.note(note)
    return classes, images


def find_test(
    words: ImageWords, val: ImageWords | str | PathLike[str] | None, classes: tuple[ClassName, ...]
) -> LabelledImages | None:
    """The test images: those that are named, else those that the data has beside train; their classes are train's.

    Raises:
        InputError: a folder matches no class.
    """
    if val is not None:
        named = ImageWords.of(val, split="val")
        return find_images(named.data, named.split or "val", classes, mapping_of(named))
    if splits_of(words.data) != ["train", "val"]:
        return None
    return find_images(words.data, "val", classes, ClassMapping())


def drawn(images: LabelledImages, classes: tuple[ClassName, ...], shots: int | None, seed: int) -> LabelledImages:
    """So many images of every class; all if None.

    Raises:
        InputError: a class has fewer.
    """
    if shots is None:
        return images
    few = [f"{classes[c].label} ({count})" for c, count in images.counts.items() if count < shots]
    if few:
        raise InputError(
            f"--shots {shots} needs {shots} images of every class, but {listed(few)} have fewer. Give a smaller number, "
            "or leave --shots out."
        )
    return images.limited(shots, seed)
