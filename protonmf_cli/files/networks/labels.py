"""What the classes of a network are called."""

from collections.abc import Sequence
from pathlib import Path

from protonmf_cli.errors import InputError
from protonmf_cli.files.networks.request import LoadedNetwork
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.backbone import ClassName

IMAGENET = 1000
MOST_OTHERS = 0.05
"""Share of ImageNet's names that a list may spell otherwise."""


def read_labels(file: Path) -> list[str]:
    """The names of classes, one on each line.

    Raises:
        InputError: it cannot be read.
    """
    try:
        found = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as failure:
        raise InputError(f"--labels {file} cannot be read as text: {failure}.") from failure
    names = [name for name in found if name]
    if not names:
        raise InputError(f"--labels {file} is empty; it wants the name of one class on each line.")
    return names


def class_names(found: LoadedNetwork, labels: Sequence[str] | None = None) -> tuple[ClassName, ...]:
    """Labels that were given, else those of the checkpoint, else timm's ImageNet tables, else numbers.

    Args:
        found: the network.
        labels: instead of the checkpoint's.

    Raises:
        InputError: labels that are not one text or number for each class.
    """
    count, source = int(found.config["num_classes"]), "the file of --labels"
    descriptions: object = None
    if labels is None:
        source = f"the label_names of {found.name}"
        labels, descriptions = found.config.get("label_names"), found.config.get("label_descriptions")
    if labels is None:
        return _of_imagenet(found, count) or tuple(ClassName(label=str(n)) for n in range(count))
    is_list = isinstance(labels, list | tuple) and all(isinstance(each, str | int) for each in labels)
    if not is_list or len(labels) != count:
        held = f"{len(labels)} labels" if is_list else "something else than a list of labels"
        raise InputError(
            f"{source} hold{'s' * source.startswith('the file')} {held}, but its classifier has {count} classes."
        )
    described = descriptions if isinstance(descriptions, dict) else {}
    if not described and (synsets := _synsets_of([str(each) for each in labels])):
        return synsets
    return tuple(ClassName(label=str(each), description=str(described.get(str(each)) or "")) for each in labels)


def _of_imagenet(found: LoadedNetwork, count: int) -> tuple[ClassName, ...]:
    """timm's table of the subset of ImageNet that it takes a network of its own for."""
    timm = import_timm()
    subset = timm.data.infer_imagenet_subset(found.network) if hasattr(found.network, "pretrained_cfg") else None
    if not subset:
        return ()
    info = timm.data.ImageNetInfo(subset)
    return tuple(
        ClassName(label=label, description=info.label_name_to_description(label))
        for label in info.label_names()[:count]
    )


def _synsets_of(labels: Sequence[str]) -> tuple[ClassName, ...]:
    """ImageNet's classes with their synsets, by which folders are often named, where these are their names in order."""
    if len(labels) != IMAGENET:
        return ()
    info = import_timm().data.ImageNetInfo()
    known = [(name, info.label_name_to_description(name)) for name in info.label_names()]
    others = sum(
        label.split(",")[0].strip().lower() not in description.lower()
        for label, (_, description) in zip(labels, known, strict=True)
    )
    if others > MOST_OTHERS * IMAGENET:
        return ()
    return tuple(ClassName(label=name, description=description) for name, description in known)
