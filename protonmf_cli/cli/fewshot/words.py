"""Options that the few-shot commands share."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.groups import Group
from protonmf_cli.errors import UsageError
from protonmf_cli.options import ImageWords, Machine, Normalisation

DEFAULT_MODEL = Path("fewshot.safetensors")
"""What `fit` writes and the other commands read, unless they are told otherwise."""

NETWORK = Group(
    arguments.network_words,
    model=Annotated[
        str, typer.Argument(help="timm name, hf-hub:org/name or local-dir:PATH; its classifier is not used.")
    ],
    weights=arguments.Weights,
    model_arg=arguments.ModelArg,
    img_size=arguments.ImgSize,
)
"""The network whose features are read."""
IMAGES = Group(partial(ImageWords, split="train"), data=arguments.Data, max_skipped=arguments.MaxSkipped)
"""Labelled images whose folders are the classes."""
_ONE_IMAGE = {"device": arguments.Device, "threads": arguments.Threads, "offline": arguments.Offline}
MACHINE = Group(Machine, batch_size=arguments.BatchSize, workers=arguments.Workers, **_ONE_IMAGE)
"""How to compute over many images."""
MACHINE_FOR_ONE = Group(Machine, **_ONE_IMAGE)
"""How to compute on single images."""
Layers = Annotated[
    str, typer.Option("--layers", help="Layers whose features are joined, counted from the end, e.g. -1,-2.")
]
NormalisationOption = Annotated[
    Normalisation,
    typer.Option(
        "--normalisation",
        help="Features as they are, of length one, or of length one after the training mean is taken off.",
    ),
]


def layers_of(words: str) -> tuple[int, ...]:
    """Layers whose features are joined.

    Raises:
        UsageError: not a list of numbers.
    """
    try:
        return tuple(int(word) for word in words.split(","))
    except ValueError as failure:
        raise UsageError(
            f"--layers {words!r} is not a list of numbers such as -1,-2 (-1 is the last layer)."
        ) from failure
