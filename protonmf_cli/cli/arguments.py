"""Options that several commands share, declared once."""

import ast
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli.errors import UsageError
from protonmf_cli.options import Form

DEFAULT_MODEL = Path("prototypes.safetensors")

Model = Annotated[
    Path, typer.Option("--model", "-m", envvar="PROTONMF_MODEL", help="Prototype model file.", show_default=True)
]
Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="Class folders, train/ and val/ above them, a zip archive of either, or a list of `path label` lines.",
    ),
]
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
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="float32 or float64: how the network computes.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of every random choice.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads. Default: what torch chooses.")]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, help="Decoding threads. Default: one per core, at most 8.")
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Images per pass of the network.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
Offline = Annotated[bool, typer.Option("--offline", envvar="HF_HUB_OFFLINE", help="Never download weights.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no notes.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="More notes.")]


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


def check_kept(weights: Path | None, embed: bool) -> None:
    """Refuse to leave weights out of a model file that could not be found again."""
    if weights is not None and not embed:
        raise UsageError(
            "--no-embed-backbone keeps the name of the network alone, under which the file of --weights is not found "
            "again. Leave one of the two out, or give the network as a local-dir: folder."
        )
