"""protonmf protopnet train: from a pretrained network and class folders to a ProtoPNet."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.cli.tables import make_folder
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.options import PROTOPNET_RECIPES, AddOn, Precision, ProtoPNetOptions, Recipe, Similarity

if TYPE_CHECKING:
    from protonmf_cli.files.datasets import LabelledImages
    from protonmf_cli.files.images import ImageFile, ImageReader
    from protonmf_cli.files.training_images import TrainingData
    from protonmf_cli.files.training_state import TrainingFolder
    from protonmf_cli.models.backbone import Backbone, ClassName
    from protonmf_cli.models.images import Skipped
    from protonmf_cli.models.protopnet import ProtoPNet
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.training import TrainingState
    from protonmf_cli.pipelines.cluster import Cluster

DEFAULTS = ProtoPNetOptions()
FOLDS = 3
"""Of the cross-validation of the width."""


@dataclass(kw_only=True)
class _Run:
    """Everything a training needs once its words are understood."""

    model: str
    data: Path
    boxes: Path | None
    output: Path
    options: ProtoPNetOptions
    per_class: tuple[int, ...]
    classes: "tuple[ClassName, ...]"
    request: Any
    device: Any
    cluster: "Cluster"
    reader: "ImageReader"
    fit: "Sequence[ImageFile]"
    apart: "Sequence[ImageFile]"
    val: "LabelledImages | None"
    digests: "Mapping[ImageFile, str]"
    skipped: "list[Skipped]"
    squash: bool
    shown: Shown
    bars: Bars


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
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint of the network instead of the pretrained weights.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained/--no-pretrained", help="Start from pretrained weights, or train the network from scratch (batch norms then learn their statistics, and no epoch is warm).")] = True,
    model_arg: Annotated[list[str] | None, typer.Option("--model-arg", help="key=value for timm, repeatable.")] = None,
    img_size: Annotated[int | None, typer.Option("--img-size", min=1, help="Image side in pixels, instead of the checkpoint's.")] = None,
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
    chosen = replace(PROTOPNET_RECIPES[recipe], **{k: v for k, v in single.items() if v is not None})
    chosen = replace(chosen, patch=_patch(patch), seed=seed)
    if not pretrained:
        if weights is not None:
            raise UsageError("--weights and --no-pretrained exclude each other.")
        chosen = replace(chosen, frozen_norms=False, warm_epochs=warm_epochs or 0)
    if width is not None:
        chosen = replace(chosen, width=_width(width))
    chosen = replace(chosen, warm_epochs=min(chosen.warm_epochs, max(0, chosen.epochs - 1)))
    if not data.exists():
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    from protonmf_cli.cli import machine
    from protonmf_cli.cli.convert import model_arguments
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
        from protonmf_cli.files.backbones import BackboneRequest

        request = BackboneRequest(
            name=model, weights=weights, model_args=model_arguments(model_arg or []), img_size=img_size, offline=offline,
            pretrained=pretrained, seed=seed,
        )  # fmt: skip
        run = _prepare(request, data, boxes, output, chosen, per_class, recipe, place, cluster, machine.worker_count(workers), max_skipped, shown, bars)  # fmt: skip
        found, report = _train(run, keep_cycles, force)
    if found is None:
        return
    report |= {"seconds": time.monotonic() - started}
    _write_extras(report, log, figure, shown)
    if as_json:
        shown.json(report)
    else:
        from protonmf_cli.cli.protopnet_report import show_training

        show_training(report, found, output, shown)


def _prepare(
    request: Any, data: Path, boxes: Path | None, output: Path, options: ProtoPNetOptions, per_class: Path | None,
    recipe: Recipe, place: Any, cluster: "Cluster", workers: int, max_skipped: float, shown: Shown, bars: Bars,
) -> _Run:  # fmt: skip
    """Classes, images, what is held out; everything that can be refused before training."""
    from protonmf_cli.cli.convert import check_skipped
    from protonmf_cli.files.backbones import crop_of, load_features
    from protonmf_cli.files.datasets import class_folders
    from protonmf_cli.files.images import ImageReader
    from protonmf_cli.files.training_images import read_all, split_held_out

    classes = class_folders(data, "train")
    if len(classes) < 2:
        raise InputError(f"{data} has {len(classes)} class; a classifier needs at least two.")
    images = _images(data, "train", classes, boxes)
    val = _images(data, "val", classes, boxes) if data.is_dir() and (data / "val").is_dir() else None
    for note in images.notes:
        shown.note(note)
    _, preprocessing, _, notes = load_features(request)
    for note in notes:
        shown.note(note)
    squash = boxes is not None or recipe == "paper"
    preprocessing = squashed(preprocessing) if squash else preprocessing
    reader = ImageReader(
        crop=crop_of(preprocessing),
        channels=preprocessing.input_size[0],
        exif_transpose=preprocessing.exif_transpose,
        batch_size=options.batch_size,
        workers=workers,
    )
    bars.stage("checking the images", sum(images.counts.values()))
    digests, skipped = read_all(reader, images.of(images.files))
    check_skipped([asdict(skip) for skip in skipped], len(digests), max_skipped)
    for skip in skipped[:5]:
        shown.note(f"skipped {skip.path}: {skip.reason}")
    kept = {c: tuple(file for file in files if file in digests) for c, files in images.files.items()}
    images = replace(images, files=kept)
    if val is not None:
        _check_overlap(digests, read_all(reader, val.of(val.files))[0])
    counts = _per_class(per_class, classes, options.prototypes)
    selects_on_test = recipe == "paper" and val is not None and options.validation == 0
    fit, apart = split_held_out(images, options.validation, options.seed)
    if selects_on_test and val is not None:
        apart = val.of(val.files)
        shown.warn(
            "the best cycle is selected on the test images, as in the original code (--validation 0.1 avoids it)"
        )
    return _Run(
        model=request.name, data=data, boxes=boxes, output=output, options=options, per_class=counts,
        classes=classes, request=request, device=place, cluster=cluster, reader=reader, fit=fit, apart=apart,
        val=val, digests=digests, skipped=skipped, squash=squash, shown=shown, bars=bars,
    )  # fmt: skip


def _images(data: Path, split: str, classes: "tuple[ClassName, ...]", boxes: Path | None) -> "LabelledImages":
    from protonmf_cli.files.bounding_boxes import cut_to_boxes, read_boxes
    from protonmf_cli.files.datasets import ClassMapping, find_images

    found = find_images(data, split, classes, ClassMapping())
    return found if boxes is None else cut_to_boxes(found, read_boxes(boxes))


def squashed(preprocessing: Any) -> Any:
    """The whole picture pressed into the input, as ProtoPNet does with images cut to boxes."""
    return replace(preprocessing, crop_pct=1.0, crop_mode="squash")


def _check_overlap(train: "Mapping[ImageFile, str]", val: "Mapping[ImageFile, str]") -> None:
    """Refuse test images that are also training images."""
    of_digest = {digest: file for file, digest in train.items()}
    both = [(of_digest[digest], file) for file, digest in val.items() if digest in of_digest]
    if both:
        pairs = "; ".join(f"{a.path} = {b.path}" for a, b in both[:3])
        raise InputError(
            f"{len(both)} images of val are also in train ({pairs}): accuracy on val would mean nothing. Remove them "
            "from one of the two."
        )


def _per_class(source: Path | None, classes: "tuple[ClassName, ...]", default: int) -> tuple[int, ...]:
    """Prototypes of each class."""
    counts = [default] * len(classes)
    if source is None:
        return tuple(counts)
    from protonmf_cli.files.datasets import read_pairs
    from protonmf_cli.models.prototype import find_class

    for name, number in read_pairs(source):
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"{source}: {number!r} of {name!r} is not a number of prototypes from 1.")
        counts[find_class(classes, name)] = int(number)
    return tuple(counts)


def _train(run: _Run, keep_cycles: Path | None, force: bool) -> "tuple[PrototypeModel | None, dict[str, Any]]":
    """Train or go on, then write the model; None in a process that only helps."""
    from protonmf_cli.cli.protopnet_finish import backbone_weights
    from protonmf_cli.files.store import save_model
    from protonmf_cli.files.training_state import TrainingFolder

    facts = _facts(run)
    if not run.cluster.leads:
        run.cluster.wait()
        folder = TrainingFolder(run.output, _digest(facts))
        _fit(run, folder, folder.load(), lambda _: None, None)
        return None, {}
    with TrainingFolder(run.output, _digest(facts)) as folder:
        _refuse_other_run(folder, facts, force)
        folder.describe(facts)
        state = folder.load()
        run.cluster.wait()
        if state.done:
            run.shown.note(f"goes on after epoch {state.log[-1]['epoch']} ({state.log[-1]['stage']})")

        net, backbone, options, source = _fit(run, folder, state, folder.save, keep_cycles)
        model, report = _finish(run, net, backbone, options, source, state)
        save_model(run.output, model, backbone_weights(net))
        folder.discard()
    return model, report


def _facts(run: _Run) -> dict[str, Any]:
    """What decides the result of a run."""
    import hashlib

    listed = "\n".join(f"{f.class_index} {f.name} {f.box} {run.digests[f]}" for f in run.fit)
    return {
        "model": run.request.name,
        "weights": str(run.request.weights),
        "model arguments": dict(run.request.model_args),
        "image size": run.request.img_size,
        "pretrained": run.request.pretrained,
        "training images": hashlib.sha256(listed.encode()).hexdigest()[:16],
        "prototypes per class": list(run.per_class),
        "device": run.device.type,
        "processes": run.cluster.world,
        **json.loads(json.dumps(asdict(run.options))),
    }


def _digest(facts: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _refuse_other_run(folder: "TrainingFolder", facts: dict[str, Any], force: bool) -> None:
    """An unfinished run with this output and other options is neither continued nor lost by accident."""
    others = folder.differences(facts)
    if others and not force and not (folder.folder / "state.safetensors").is_file():
        path, differences = next(iter(others.items()))
        folder.discard()
        raise InputError(
            f"an unfinished training with this output was asked for something else ({'; '.join(differences[:4])}). "
            f"Give the same options to go on, another -o, or --force to begin anew and keep it in {path}."
        )


def _fit(
    run: _Run, folder: "TrainingFolder", state: "TrainingState", keep: Any, cycles: Path | None
) -> "tuple[ProtoPNet, Backbone, ProtoPNetOptions, TrainingData]":
    """Choose the width if asked for, then go through the schedule."""
    options = run.options
    if options.width is None:
        options = replace(options, width=_choose_width(run, folder))
    source = _source(run, run.fit, run.apart)
    net, backbone = _new(run, options)
    from protonmf_cli.pipelines.protopnet_setup import check_patches

    counts = [0] * len(run.classes)
    for file in run.fit:
        counts[file.class_index] += 1
    for warning in check_patches(counts, run.per_class, backbone, distinct=options.distinct):
        run.shown.warn(warning)
    from protonmf_cli.cli.protopnet_report import epoch_line
    from protonmf_cli.pipelines.protopnet_training import ends_cycle, plan

    steps = plan(options)

    def after_step(now: "TrainingState") -> None:
        keep(now)
        if cycles is not None and ends_cycle(steps, now.done - 1):
            _write_cycle(cycles, run, net, backbone, options, source, now)

    _go(run, net, backbone, options, source, state, after_step, lambda row: run.shown.log(epoch_line(row, options)))
    return net, backbone, options, source


def _go(
    run: _Run, net: "ProtoPNet", backbone: "Backbone", options: ProtoPNetOptions, source: "TrainingData",
    state: "TrainingState", keep: Any, told: Any,
) -> None:  # fmt: skip
    from protonmf_cli.pipelines.protopnet_training import Trainer, start_prototypes

    if not state.done and options.start == "clusters":
        run.bars.stage("starting the prototypes", source.counts()[0])
        start_prototypes(net, backbone, source.push(), options.seed, run.bars)
    trainer = Trainer(net, backbone, source, options, progress=run.bars, cluster=run.cluster, told=told)
    trainer.run(state, keep)


def _new(run: _Run, options: ProtoPNetOptions) -> "tuple[ProtoPNet, Backbone]":
    from protonmf_cli.files.backbones import load_features
    from protonmf_cli.pipelines.protopnet_setup import new_protopnet

    network, preprocessing, source, _ = load_features(run.request)
    preprocessing = squashed(preprocessing) if run.squash else preprocessing
    return new_protopnet(network, preprocessing, source, run.classes, options, run.per_class, run.device)


def _source(run: _Run, fit: "Sequence[ImageFile]", apart: "Sequence[ImageFile]") -> "TrainingData":
    from protonmf_cli.files.training_images import TrainingData, TrainingImages

    options = run.options
    images = TrainingImages(
        files=list(fit), reader=run.reader, augmentation=options.augmentation, batch_size=options.batch_size,
        seed=options.seed,
    )  # fmt: skip
    return TrainingData(images=images, apart=list(apart))


def _choose_width(run: _Run, folder: "TrainingFolder") -> int:
    """The width whose networks are right most often on folds of the training images."""
    from protonmf_cli.files.training_images import folds
    from protonmf_cli.models.training import TrainingState

    for width in run.options.widths:
        for number, (fit, apart) in enumerate(folds(run.fit, FOLDS, run.options.seed)):
            if f"{width}/{number}" in folder.widths():
                continue
            options = replace(run.options, width=width)
            net, backbone = _new(run, options)
            state = TrainingState()
            _go(run, net, backbone, options, _source(run, fit, apart), state, lambda _: None, told=lambda _: None)
            found = (state.best or {})["accuracy"]
            run.shown.note(f"width {width}, fold {number + 1} of {FOLDS}: {found:.1%}")
            if run.cluster.leads:
                folder.note_width(width, number, found)
            run.cluster.wait()
    known = folder.widths()
    means = {w: sum(known[f"{w}/{n}"] for n in range(FOLDS)) / FOLDS for w in run.options.widths}
    best = max(means, key=lambda w: (means[w], -w))
    run.shown.note(f"width {best} is taken: {', '.join(f'{w} {m:.1%}' for w, m in means.items())} on folds")
    return best


def _write_cycle(
    target: Path, run: _Run, net: "ProtoPNet", backbone: "Backbone", options: ProtoPNetOptions,
    source: "TrainingData", state: "TrainingState",
) -> None:  # fmt: skip
    """The model after a push, for tables over training cycles."""
    from protonmf_cli.cli.protopnet_finish import backbone_weights, finished_model
    from protonmf_cli.files.store import save_model

    model, _ = finished_model(
        net, backbone, options, source.images.files, run.reader, state.sources, {"split": "train"}, run.bars
    )
    path = target / f"cycle-{len(state.pushes)}.safetensors"
    save_model(path, model, backbone_weights(net))
    run.shown.note(f"wrote {path}")


def _finish(
    run: _Run, net: "ProtoPNet", backbone: "Backbone", options: ProtoPNetOptions, source: "TrainingData",
    state: "TrainingState",
) -> "tuple[PrototypeModel, dict[str, Any]]":  # fmt: skip
    """Measure the trained network, find its patches, and make the model file's content."""
    from protonmf_cli.cli.protopnet_finish import finished_model
    from protonmf_cli.pipelines.activations import accuracy, read_activations

    best = state.best or {}
    data = {"split": "train", "boxes": run.boxes is not None, "skipped": [asdict(skip) for skip in run.skipped]}
    model, activations = finished_model(
        net, backbone, options, source.images.files, run.reader, best.get("sources") or [], data, run.bars
    )
    figures: dict[str, Any] = {"train": accuracy(net, activations), "held_out": best.get("accuracy"), "test": None}
    if run.val is not None:
        run.bars.stage("test images", sum(run.val.counts.values()))
        found = read_activations(net, backbone, run.reader.batches(run.val.of(run.val.files)), progress=run.bars)
        figures["test"] = accuracy(net, found)
    push = state.pushes[max(0, best.get("cycle", len(state.pushes)) - 1)]
    from protonmf_cli.pipelines.protopnet_model import with_measured

    model = with_measured(model, accuracy=figures, push={**push, "cycle": best.get("cycle")})
    report = {
        "schema": "protonmf.protopnet_training/1",
        "model": run.request.name,
        "output": str(run.output),
        "classes": len(run.classes),
        "prototypes": len(model.prototypes),
        "images": {
            "train": len(run.fit),
            "held_out": len(run.apart),
            "test": 0 if run.val is None else sum(run.val.counts.values()),
        },
        "skipped": [asdict(skip) for skip in run.skipped],
        "epochs": [row for row in state.log if row["stage"] != "push"],
        "stages": [row for row in state.log if row["stage"] == "push"],
        "accuracy": figures,
        "best_cycle": best.get("cycle"),
        "selected_on": _selected_on(run),
        "push": push,
        "theorem": push["theorem"],
        "options": asdict(options),
    }
    return model, report


def _selected_on(run: _Run) -> str:
    if not run.apart:
        return "nothing (last cycle)"
    return "held-out training images" if run.options.validation else "test"


def _write_extras(report: dict[str, Any], log: Path | None, figure: Path | None, shown: Shown) -> None:
    from protonmf_cli.files.atomic import write_atomically

    if log is not None:
        write_atomically(log, json.dumps(report, indent=1).encode())
        shown.note(f"wrote {log}")
    if figure is not None:
        from protonmf_cli.pictures.training import training_png

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
