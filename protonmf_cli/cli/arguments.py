"""Options that several commands share, declared once: single ones, and groups of them (see `groups.py`)."""

import ast
import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.errors import UsageError
from protonmf_cli.options import Among, Form, ImageWords, Machine, NetworkWords, Output

DEFAULT_MODEL = Path("prototypes.safetensors")

Model = Annotated[
    Path,
    typer.Option(
        "--model", "-m", envvar="PROTONMF_MODEL", help="Prototype model file, or hub:ORG/NAME.", show_default=True
    ),
]
DATA_HELP = (
    "Class folders, train/ and val/ above them, a zip or tar of either, WebDataset shards ('data-{000..009}.tar'), "
    "parquet, or a list of `path label` lines; also behind s3://, gs://, hf:// or https://."
)
Data = Annotated[str, typer.Option("--data", metavar="PATH|URL", help=DATA_HELP)]
Split = Annotated[str, typer.Option("--split", help="Which of train and val to read where both exist.")]
ClassMapFile = Annotated[
    Path | None,
    typer.Option("--class-map", help="Lines `folder,class` (or a JSON object) for folders named otherwise."),
]
ClassOrder = Annotated[
    bool, typer.Option("--class-order", help="Sorted folders are the model's classes in order (numbers must match).")
]
ClassName = Annotated[
    str | None,
    typer.Option("--class", help="Class by label, description, WordNet id or index. Default: the predicted one."),
]
AmongOption = Annotated[
    Among | None,
    typer.Option("--among", show_default="prototypes where most classes have none", help="Without --class: explain the best of the classes with prototypes, or the best of all."),
]  # fmt: skip
FormOption = Annotated[
    Form | None,
    typer.Option("--form", show_default="as the file", help="augmented: the prototypes carry the residual."),
]
MaxSkipped = Annotated[
    float, typer.Option("--max-skipped", min=0, max=1, help="Share of unreadable images above which to give up.")
]
Weights = Annotated[
    Path | None, typer.Option("--weights", help="Checkpoint of the network instead of the pretrained weights.")
]
ModelArg = Annotated[
    list[str] | None, typer.Option("--model-arg", help="key=value for timm, e.g. pad_type=same. Repeatable.")
]
NumClasses = Annotated[
    int | None, typer.Option("--num-classes", min=1, help="Classes of the checkpoint given with --weights.")
]
ImgSize = Annotated[
    int | None, typer.Option("--img-size", min=1, help="Image side in pixels, instead of the checkpoint's.")
]
AnyNetwork = Annotated[
    str | None,
    typer.Argument(help="timm name (or one without its size), hf-hub:org/name, local-dir:PATH; hf:ORG/NAME or a folder of transformers; torchvision:NAME; open_clip:NAME:TAG."),
]  # fmt: skip
NetworkFunction = Annotated[
    str | None,
    typer.Option("--network", metavar="PACKAGE.MODULE:FUNCTION", help="Function of your own that builds the network, instead of MODEL."),
]  # fmt: skip
NetworkOfModel = Annotated[
    str | None,
    typer.Option("--network", metavar="PACKAGE.MODULE:FUNCTION", help="Your own function that built the network of the model file; it runs."),
]  # fmt: skip
Features = Annotated[
    str | None,
    typer.Option("--features", metavar="MODULE", help="Module that the features come out of, where it is not found (not for timm)."),
]  # fmt: skip
Labels = Annotated[
    Path | None,
    typer.Option("--labels", help="File with the name of one class on each line, instead of the checkpoint's."),
]
MultiLabel = Annotated[
    bool | None,
    typer.Option("--multi-label/--one-label", show_default="as the network says", help="An image may be of several classes, each with a probability of its own (sigmoid)."),
]  # fmt: skip
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or float64: how the network computes.")]
DtypeOfRows = Annotated[
    str, typer.Option("--dtype", help="float32 or float64: how the network computes; bfloat16: how it reads rows.")
]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of every random choice.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: what torch chooses.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding threads. Default: one per core, at most 32.")
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", min=1, help="Images per pass of the network; a CPU takes a few of them at a time."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Offline = Annotated[bool, typer.Option("--offline", envvar="HF_HUB_OFFLINE", help="Never download weights.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More notes.")]

_ONE_IMAGE = {"device": Device, "dtype": Dtype, "threads": Threads, "offline": Offline}
MACHINE = Group(Machine, batch_size=BatchSize, workers=Workers, **_ONE_IMAGE, network=NetworkOfModel)
"""How to compute over many images."""
MACHINE_FOR_ROWS = Group(Machine, batch_size=BatchSize, workers=Workers, **_ONE_IMAGE | {"dtype": DtypeOfRows})
"""How to convert."""
MACHINE_FOR_ONE = Group(Machine, **_ONE_IMAGE, network=NetworkOfModel)
"""How to compute on single images."""
SHOWN = Group(Shown, as_json=Json, quiet=Quiet)
"""What is said on stdout and stderr."""
SHOWN_MORE = Group(Shown, as_json=Json, quiet=Quiet, verbose=Verbose)


_MAPPING = {"split": Split, "class_map": ClassMapFile, "class_order": ClassOrder}


def images(split: str, **more: Any) -> Group:
    """Labelled images.

    Args:
        split: that is read unless another is named.
        more: further fields of `ImageWords` with their options, or other options for the usual ones.
    """
    return Group(partial(ImageWords, split=split), **{"data": Data, **_MAPPING, "max_skipped": MaxSkipped} | more)


def images_if_given(split: str, data: Any, **more: Any) -> Group:
    """The same where `data`, an option that may be left out, is given; else None."""
    return Group(partial(_words_if_given, split=split), data=data, **_MAPPING, **more)


def _words_if_given(
    *,
    data: str | None = None,
    split: str,
    class_map: Path | None = None,
    class_order: bool = False,
    boxes: Path | None = None,
    max_skipped: float = 0.01,
) -> ImageWords | None:
    if data is None:
        lost = {"--boxes": boxes, "--class-map": class_map, "--class-order": class_order}
        if found := [option for option, value in lost.items() if value]:
            raise UsageError(f"{found[0]} is about the images of --data: give it too.")
        return None
    return ImageWords(
        data=data, split=split, class_map=class_map, class_order=class_order, boxes=boxes, max_skipped=max_skipped
    )


def output(what: str, *names: str) -> Group:
    """Where a command writes, and whether something there is replaced.

    Args:
        what: is written, for the help.
        names: of the option; -o if none.
    """
    return Group(Output, path=Annotated[Path, typer.Option(*(names or ("--output", "-o")), help=what)], force=Force)


DEMO_FOLDER = Group(Output, path=Annotated[Path, typer.Argument(help="Folder to write to; it is made.")], force=Force)


def network(
    what: str = "timm name, hf-hub:org/name, local-dir:PATH, or a name without its size.", **more: Any
) -> Group:
    """Which network.

    Args:
        what: help of the name.
        more: further fields of `NetworkWords` with their options.
    """
    name = Annotated[str, typer.Argument(help=what)]
    return Group(
        network_words, model=name, weights=Weights, num_classes=NumClasses, model_arg=ModelArg, img_size=ImgSize, **more
    )


def network_words(
    model: str,
    weights: Path | None = None,
    num_classes: int | None = None,
    model_arg: list[str] | None = None,
    img_size: int | None = None,
    exif_transpose: bool = False,
    pretrained: bool = True,
    **more: Any,
) -> NetworkWords:
    """A network as it is named in words."""
    return NetworkWords(
        name=model, weights=weights, num_classes=num_classes, model_args=model_arguments(model_arg or []),
        img_size=img_size, exif_transpose=exif_transpose, pretrained=pretrained, **more,
    )  # fmt: skip


def any_network(**more: Any) -> Group:
    """Which network, of any library or of the user's own code.

    Args:
        more: further fields of `NetworkWords` with their options.
    """
    return Group(
        any_network_words, model=AnyNetwork, network=NetworkFunction, features=Features, labels=Labels,
        multi_label=MultiLabel, weights=Weights, num_classes=NumClasses, model_arg=ModelArg, img_size=ImgSize, **more,
    )  # fmt: skip


def any_network_words(
    model: str | None = None,
    network: str | None = None,
    features: str | None = None,
    labels: Path | None = None,
    multi_label: bool | None = None,
    weights: Path | None = None,
    num_classes: int | None = None,
    model_arg: list[str] | None = None,
    img_size: int | None = None,
    exif_transpose: bool = False,
    pretrained: bool = True,
) -> NetworkWords:
    """A network as it is named in words.

    Raises:
        UsageError: none is named, or two are.
    """
    if (model is None) == (network is None):
        raise UsageError("name one network: MODEL, or --network package.module:function for one of your own code.")
    return network_words(
        model or f"python:{network}", weights, num_classes, model_arg, img_size, exif_transpose, pretrained,
        labels=labels, features=features, multi_label=multi_label,
    )  # fmt: skip


def paths_of(words: Sequence[str]) -> Sequence[str] | Iterator[str]:
    """Images as they were given; with "-" one by one, as the lines of standard input come."""
    return _with_lines(words) if "-" in words else words


def _with_lines(words: Sequence[str]) -> Iterator[str]:
    """
    Raises:
        UsageError: in the end, there was none.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):  # names of files, in which any byte may be
        sys.stdin.reconfigure(encoding=sys.getfilesystemencoding(), errors=sys.getfilesystemencodeerrors())
    given = (line.rstrip("\r\n") for line in sys.stdin or ())
    empty = True
    for path in (line for word in words for line in (given if word == "-" else [word]) if line.strip()):
        empty = False
        yield path
    if empty:
        raise UsageError("no image was given on standard input.")


def model_arguments(pairs: list[str]) -> dict[str, Any]:
    """key=value words as Python values: numbers, true/false, else text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--model-arg {pair!r} is not of the form key=value.")
        found[key] = text
        if text.lower() in ("true", "false"):
            found[key] = text.lower() == "true"
        else:
            with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # a word
                found[key] = ast.literal_eval(text)
    return found
