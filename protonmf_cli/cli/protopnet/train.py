"""protonmf protopnet train: from a pretrained network and class folders to a ProtoPNet."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.jobs.protopnet.images import per_class_counts, read_training_set, squashed
from protonmf_cli.jobs.protopnet.training import Run, run_training
from protonmf_cli.jobs.tables import make_folder
from protonmf_cli.options import FROM_SCRATCH, PROTOPNET_RECIPES, AddOn, Precision, ProtoPNetOptions, Recipe, Similarity

DEFAULTS = ProtoPNetOptions()


def train(
    model: Annotated[str, typer.Argument(help="timm name, hf-hub:org/name or local-dir:PATH; its last feature map is used.")],
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Prototype model to write.")] = Path("protopnet.safetensors"),
    recipe: Annotated[Recipe, typer.Option("--recipe", help="paper: start, schedule and batch statistics of the original code.")] = "default",
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
    cluster_cost: Annotated[float | None, typer.Option("--cluster", show_default=str(DEFAULTS.cluster), help="Weight of the cluster cost.")] = None,
    separation: Annotated[float | None, typer.Option("--separation", show_default=str(DEFAULTS.separation), help="Weight of the separation cost.")] = None,
    l1: Annotated[float | None, typer.Option("--l1", min=0, show_default=str(DEFAULTS.l1), help="Weight of the L1 term of weights to other classes.")] = None,
    validation: Annotated[float | None, typer.Option("--validation", min=0, max=0.9, show_default=str(DEFAULTS.validation), help="Share of the training images held out to choose the best cycle; 0 keeps the last.")] = None,
    boxes: Annotated[Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: folder or zip of CUB-200-2011's text files.")] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, show_default=str(DEFAULTS.batch_size), help="Images per step.")] = None,
    precision: Annotated[Precision | None, typer.Option("--precision", show_default=DEFAULTS.precision, help="Of the network while training; distances stay float32.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="Write every epoch's figures as JSON.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Picture of the curves over the epochs.")] = None,
    keep_cycles: Annotated[Path | None, typer.Option("--keep-cycles", help="Folder for the model after each push.")] = None,
    weights: arguments.Weights = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Start from pretrained weights, or train the network from scratch: cosine similarity, higher rates, batch norms that learn their statistics, no warm epoch.")] = True,
    model_arg: arguments.ModelArg = None,
    img_size: arguments.ImgSize = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    seed: arguments.Seed = DEFAULTS.seed,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:  # fmt: skip
    """Train a ProtoPNet: warm epochs, joint epochs, push and last layer. Interrupted, the same command goes on."""
    started = time.monotonic()
    single: dict[str, Any] = {
        "prototypes": prototypes, "similarity": similarity, "addon": addon, "epochs": epochs,
        "warm_epochs": warm_epochs, "cycles": cycles, "backbone_rate": backbone_rate, "addon_rate": rate,
        "prototype_rate": rate, "cluster": cluster_cost, "separation": separation, "l1": l1,
        "validation": validation, "batch_size": batch_size, "precision": precision,
    }  # fmt: skip
    if weights is not None and not pretrained:
        raise UsageError("--weights and --no-pretrained exclude each other.")
    from_scratch = FROM_SCRATCH if recipe == "default" and not pretrained else {}
    given = {name: value for name, value in single.items() if value is not None}
    chosen = replace(PROTOPNET_RECIPES[recipe], **from_scratch | given, patch=_patch(patch), seed=seed)
    if width is not None:
        chosen = replace(chosen, width=_width(width))
    chosen = replace(chosen, warm_epochs=min(chosen.warm_epochs, max(0, chosen.epochs - 1)))
    if not data.exists():
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    from protonmf_cli.cli import machine
    from protonmf_cli.files.atomic import check_writable

    for target in (output, log, figure):
        if target is not None:
            check_writable(target, force)
    if keep_cycles is not None:
        make_folder(keep_cycles, "--keep-cycles")
    machine.set_threads(threads)
    cluster, place = machine.join_cluster(device)
    shown = Shown(quiet=quiet or not cluster.leads, verbose=verbose)
    with shown.progress() as bars:
        bars.stage("loading the network")
        from protonmf_cli.files.networks.backbones import load_features
        from protonmf_cli.files.networks.loading import BackboneRequest

        request = BackboneRequest(
            name=model, weights=weights, model_args=arguments.model_arguments(model_arg or []), img_size=img_size, offline=offline,
            pretrained=pretrained, seed=seed,
        )  # fmt: skip
        network, preprocessing, source, notes = load_features(request)
        for note in notes:
            shown.note(note)
        squash = boxes is not None or recipe == "paper"
        images = read_training_set(
            data, squashed(preprocessing) if squash else preprocessing, chosen, boxes=boxes,
            on_test=recipe == "paper" and chosen.validation == 0, workers=machine.worker_count(workers),
            max_skipped=max_skipped, shown=shown, bars=bars,
        )  # fmt: skip
        run = Run(
            request=request, network=network, source=source, output=output, options=chosen, images=images, boxes=boxes is not None,
            per_class=per_class_counts(per_class, images.classes, chosen.prototypes),
            device=place, cluster=cluster, shown=shown, bars=bars,
        )  # fmt: skip
        found, report = run_training(run, keep_cycles, force)
    if found is None:
        return
    report |= {"seconds": time.monotonic() - started}
    _write_extras(report, log, figure, shown)
    if as_json:
        shown.json(report)
    else:
        from protonmf_cli.output.text.protopnet import show_training

        show_training(report, found, output, shown)


def _write_extras(report: dict[str, Any], log: Path | None, figure: Path | None, shown: Shown) -> None:
    from protonmf_cli.files.atomic import write_atomically

    if log is not None:
        write_atomically(log, json.dumps(report, indent=1).encode())
        shown.note(f"wrote {log}")
    if figure is not None:
        from protonmf_cli.output.figures.training import training_png

        write_atomically(figure, training_png(report))
        shown.note(f"wrote {figure}")


def _patch(words: str) -> tuple[int, int]:
    height, cross, width = words.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise UsageError(f"--patch {words!r} is not of the form HEIGHTxWIDTH, e.g. 1x1 or 2x2.")
    return int(height), int(width)


def _width(words: str) -> int | None:
    if words == "auto":
        return None
    if not words.isdecimal() or int(words) < 1:
        raise UsageError(f"--width {words!r} is neither a number from 1 nor auto.")
    return int(words)
