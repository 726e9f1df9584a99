"""protonmf protopnet train: from a pretrained network and class folders to a ProtoPNet."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group, given
from protonmf_cli.cli.protopnet.edit import DEFAULT_MODEL
from protonmf_cli.errors import UsageError, is_whole
from protonmf_cli.options import (
    AddOn,
    ImageWords,
    Machine,
    NetworkWords,
    Output,
    Precision,
    ProtoPNetOptions,
    Recipe,
    Similarity,
)
from protonmf_cli.output.records.protopnet import training_json
from protonmf_cli.output.text.protopnet import training_facts

DEFAULTS = ProtoPNetOptions()
Pretrained = Annotated[
    bool,
    typer.Option(
        "--pretrained/--no-pretrained",
        help="Start from pretrained weights, or train the network from scratch: cosine similarity, higher rates, batch norms that learn their statistics, no warm epoch.",
    ),
]
NETWORK = Group(
    arguments.network_words,
    model=Annotated[str, typer.Argument(help="timm name, hf-hub:org/name or local-dir:PATH; its last feature map is used.")],
    weights=arguments.Weights, pretrained=Pretrained, model_arg=arguments.ModelArg, img_size=arguments.ImgSize,
)  # fmt: skip
Boxes = Annotated[
    Path | None,
    typer.Option("--boxes", help="Cut images to their bounding boxes: folder or zip of CUB-200-2011's text files."),
]
IMAGES = Group(partial(ImageWords, split="train"), data=arguments.Data, boxes=Boxes, max_skipped=arguments.MaxSkipped)
MACHINE = Group(
    Machine, workers=arguments.Workers, device=arguments.Device, threads=arguments.Threads, offline=arguments.Offline
)


def train(
    network: Annotated[NetworkWords, NETWORK],
    images: Annotated[ImageWords, IMAGES],
    output: Annotated[Output, arguments.output("Prototype model to write.")] = Output(path=DEFAULT_MODEL),
    recipe: Annotated[Recipe, typer.Option("--recipe", help="paper: start, schedule, copies of images and batch statistics of the original code.")] = "default",
    prototypes: Annotated[int | None, typer.Option("--prototypes", "-p", min=1, show_default=str(DEFAULTS.prototypes), help="Per class.")] = None,
    per_class: Annotated[Path | None, typer.Option("--per-class", help="Lines `class,number` (or a JSON object) for classes with another number of prototypes.")] = None,
    width: Annotated[str | None, typer.Option("--width", show_default=str(DEFAULTS.width), help="Channels of the latent map; auto: 128, 256 or 512 by cross-validation.")] = None,
    patch: Annotated[str, typer.Option("--patch", help="Height x width of a prototype in places, e.g. 2x2.")] = "1x1",
    similarity: Annotated[Similarity | None, typer.Option("--similarity", show_default=DEFAULTS.similarity, help="log, linear or cosine.")] = None,
    addon: Annotated[AddOn | None, typer.Option("--addon", show_default=DEFAULTS.addon, help="Layers between features and prototypes.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, show_default=str(DEFAULTS.epochs), help="Passes over the training images; the schedule spans them.")] = None,
    warm_epochs: Annotated[int | None, typer.Option("--warm-epochs", min=0, show_default=str(DEFAULTS.warm_epochs), help="First epochs, with the network frozen.")] = None,
    cycles: Annotated[int | None, typer.Option("--cycles", min=1, show_default=str(DEFAULTS.cycles), help="Pushes, spread over the joint epochs.")] = None,
    backbone_rate: Annotated[float | None, typer.Option("--backbone-rate", min=0, show_default=str(DEFAULTS.backbone_rate), help="Learning rate of the network.")] = None,
    rate: Annotated[float | None, typer.Option("--rate", min=0, show_default=str(DEFAULTS.addon_rate), help="Learning rate of add-on layers and prototypes.")] = None,
    cluster: Annotated[float | None, typer.Option("--cluster", show_default=str(DEFAULTS.cluster), help="Weight of the cluster cost.")] = None,
    separation: Annotated[float | None, typer.Option("--separation", show_default=str(DEFAULTS.separation), help="Weight of the separation cost.")] = None,
    l1: Annotated[float | None, typer.Option("--l1", min=0, show_default=str(DEFAULTS.l1), help="Weight of the L1 term of weights to other classes.")] = None,
    validation: Annotated[float | None, typer.Option("--validation", min=0, max=0.9, show_default=str(DEFAULTS.validation), help="Share of the training images held out to choose the best cycle; 0 keeps the last.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, show_default=str(DEFAULTS.batch_size), help="Images per step.")] = None,
    precision: Annotated[Precision | None, typer.Option("--precision", show_default=DEFAULTS.precision, help="Of the network while training; distances stay float32.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="Write every epoch's figures as JSON.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Figure (.png, .svg or .pdf) of the curves over the epochs.")] = None,
    keep_cycles: Annotated[Path | None, typer.Option("--keep-cycles", help="Folder for the model after each push.")] = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    seed: arguments.Seed = DEFAULTS.seed,
    *,
    shown: Annotated[Shown, arguments.SHOWN_MORE],
) -> None:  # fmt: skip
    """Train a ProtoPNet: warm epochs, joint epochs, push and last layer. Interrupted, the same command goes on.

    Example: protonmf protopnet train resnet34.a1_in1k --data birds
    """
    changes = given({
        "prototypes": prototypes, "similarity": similarity, "addon": addon, "epochs": epochs,
        "warm_epochs": warm_epochs, "cycles": cycles, "backbone_rate": backbone_rate, "addon_rate": rate,
        "prototype_rate": rate, "cluster": cluster, "separation": separation, "l1": l1, "validation": validation,
        "batch_size": batch_size, "precision": precision,
    })  # fmt: skip
    if width is not None:
        changes["width"] = _width(width)
    changes |= {"patch": _patch(patch), "seed": seed}
    written, drawn = (
        None if path is None else Output(path=path, force=output.force, option=option)
        for option, path in (("--log", log), ("--figure", figure))
    )
    jobs.early.check(data=[images], outputs=[output, written], figures=[drawn])
    options = replace(jobs.protopnet.training.usual_options(recipe, pretrained=network.pretrained), **changes)
    if not jobs.machine.leads():
        shown = Shown(quiet=True)
    with shown.progress() as bars:
        training = jobs.protopnet.training.train_protopnet(
            network, images, options=options, recipe=recipe, per_class=per_class, output=output, log=log,
            figure=figure, keep_cycles=keep_cycles, machine=machine, progress=bars,
        )  # fmt: skip
    if training is None:
        return
    if shown.as_json:
        shown.json(training_json(training))
    else:
        shown.lines(training_facts(training))


def _patch(words: str) -> tuple[int, int]:
    height, cross, width = words.partition("x")
    if not (cross and is_whole(height) and is_whole(width) and int(height) and int(width)):
        raise UsageError(f"--patch {words!r} is not of the form HEIGHTxWIDTH, e.g. 1x1 or 2x2.")
    return int(height), int(width)


def _width(words: str) -> int | None:
    """A number of channels, None for "auto"."""
    if words == "auto":
        return None
    if not is_whole(words) or int(words) < 1:
        raise UsageError(f"--width {words!r} is neither a number from 1 nor auto.")
    return int(words)
