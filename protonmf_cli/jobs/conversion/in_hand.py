"""Conversions of what Python holds: a module as the network, a data set or loader as the images."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import DataLoader, Dataset

from protonmf_cli.errors import UsageError
from protonmf_cli.files.images.from_datasets import classes_of
from protonmf_cli.files.networks.given_modules import name_of
from protonmf_cli.files.networks.request import GivenModule
from protonmf_cli.jobs.networks import ModuleWords
from protonmf_cli.options import Distribution, ImageWords, NetworkWords

Network = str | NetworkWords | nn.Module
Images = str | PathLike[str] | ImageWords | Dataset[Any] | DataLoader[Any] | Sequence[tuple[Any, int]]


def network_words(
    model: Network,
    data: Images,
    *,
    features: str | None,
    preprocessing: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
    multi_label: bool | None,
) -> NetworkWords:
    """A network by its name, or a module with what is said of it.

    Raises:
        UsageError: something is said of a module that is none.
    """
    if isinstance(model, nn.Module):
        given = GivenModule(
            module=model, preprocessing=preprocessing or {}, classes=classes, classes_of_data=classes_of(data)
        )
        return ModuleWords(name=name_of(model), features=features, multi_label=multi_label, given=given)
    if preprocessing is not None or classes is not None:
        raise UsageError("preprocessing and classes are of a module; what has a name says them itself.")
    words = NetworkWords.of(model)
    return replace(
        words,
        features=words.features if features is None else features,
        multi_label=words.multi_label if multi_label is None else multi_label,
    )


@contextmanager
def images_in_hand(data: Images) -> Iterator[tuple[ImageWords, Any]]:
    """Words about images, and the data set that is to be written where they lie; None where they lie there already."""
    if isinstance(data, str | PathLike | ImageWords):
        yield ImageWords.of(data, split="train"), None
        return
    with tempfile.TemporaryDirectory(prefix="protonmf.") as folder:
        yield ImageWords(data=Path(folder), split="train"), data


def check_alone(network: NetworkWords, dataset: Any, distribution: Distribution) -> Distribution:
    """What works on a conversion of things that Python holds: this process.

    Raises:
        UsageError: others are asked for.
    """
    if dataset is None and not isinstance(network, ModuleWords):
        return distribution
    if distribution.ray is not None or (distribution.processes or 1) > 1:
        raise UsageError(
            "a module or data set of this process cannot be shared with others: give names and folders, or leave "
            "--processes and --ray out."
        )
    return replace(distribution, processes=1)
