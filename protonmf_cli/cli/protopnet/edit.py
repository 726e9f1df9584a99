"""protonmf protopnet push, prune, combine: change trained files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import ModelFileError, UsageError
from protonmf_cli.options import AugmentationOptions, ProtoPNetOptions

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.jobs.loaded import Loaded
    from protonmf_cli.models.protopnet import ProtoPNet
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.pipelines.protopnet.activations import Activations

File = Annotated[Path, typer.Argument(help="ProtoPNet file.")]
Boxes = Annotated[
    Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: CUB-200-2011's text files.")
]
L1 = Annotated[float | None, typer.Option("--l1", min=0, show_default="as trained", help="Weight of the L1 term.")]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A ProtoPNet file, ready to be changed."""

    loaded: "Loaded"
    net: "ProtoPNet"
    options: ProtoPNetOptions
    images: "LabelledImages"

    @property
    def model(self) -> "PrototypeModel":
        return self.loaded.model

    def batches(self) -> Any:
        """The training images, class after class."""
        return self.loaded.reader.batches(self.images.of(self.images.files))


def push(
    file: File,
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.")],
    split: arguments.Split = "train",
    class_map: arguments.ClassMapFile = None,
    boxes: Boxes = None,
    distinct: Annotated[bool | None, typer.Option("--distinct/--nearest", show_default="as trained", help="Different patches for the prototypes of a class, or each the nearest one.")] = None,
    l1: L1 = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Project every prototype onto its nearest training patch and fit the last layer."""
    shown = Shown(quiet=quiet)
    with shown.progress() as bars:
        opened = open_protopnet(
            file, data, output, split, class_map, boxes, batch_size, workers, device, threads, force, shown
        )
        changes: dict[str, Any] = {"l1": l1, "distinct": distinct}
        options = replace(opened.options, **{k: v for k, v in changes.items() if v is not None}, last_layer="exact")
        from protonmf_cli.pipelines.protopnet.push import push as push_prototypes

        count = sum(opened.images.counts.values())
        _warn_about_missing(opened, shown)
        facts, sources = push_prototypes(opened.net, opened.loaded.backbone, opened.batches, count, options, bars)
        model = write(opened, opened.net, options, sources, output, bars, max_skipped, push=facts)
    report = {
        "schema": "protonmf.protopnet_push/1",
        "model": str(file),
        "output": str(output),
        "prototypes": len(model.prototypes),
        "push": facts,
    }
    if as_json:
        shown.json(report)
        return
    from protonmf_cli.output.text.protopnet import push_lines

    shown.lines({str(output): f"{len(model.prototypes)} prototypes, pushed onto {count} images", **push_lines(facts)})


def prune(
    file: File,
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.")],
    nearest: Annotated[int, typer.Option("--nearest", min=1, help="Nearest training images that are looked at.")] = 6,
    least: Annotated[int, typer.Option("--least", min=1, help="How many of them must be of the prototype's class.")] = 3,
    split: arguments.Split = "train",
    class_map: arguments.ClassMapFile = None,
    boxes: Boxes = None,
    l1: L1 = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Remove prototypes whose nearest training images are of other classes, then fit the last layer."""
    if least > nearest:
        raise UsageError(f"--least {least} is more than --nearest {nearest}: every prototype would go.")
    shown = Shown(quiet=quiet)
    with shown.progress() as bars:
        opened = open_protopnet(
            file, data, output, split, class_map, boxes, batch_size, workers, device, threads, force, shown
        )
        report: dict[str, Any] = {"schema": "protonmf.protopnet_pruning/1", "model": str(file), "output": str(output)}
        report |= _pruned(opened, output, nearest, least, l1, max_skipped, bars)
    if as_json:
        shown.json(report)
        return
    gone, fitted, accuracy = len(report["removed"]), report["last_layer"], report["accuracy"]
    shown.lines(
        {
            str(output): f"{gone} of {gone + report['prototypes']} prototypes removed, {report['prototypes']} left",
            "accuracy": f"{accuracy['before']:.1%} before, {accuracy['after']:.1%} after (training images)",
            "last layer": f"KKT residual {fitted['kkt']:.1e}, {fitted['other_class_weights']} weights to other classes",
        }
    )


def _pruned(
    opened: Opened, output: Path, nearest: int, least: int, l1: float | None, max_skipped: float, bars: Bars
) -> dict[str, Any]:
    """Prune, fit the last layer, save; returns what happened."""
    from protonmf_cli.pipelines.protopnet.activations import accuracy, read_activations
    from protonmf_cli.pipelines.protopnet.push import check_pruning, fit_last_layer
    from protonmf_cli.pipelines.protopnet.push import prune as prune_prototypes

    old, backbone = opened.model, opened.loaded.backbone
    bars.stage("nearest images of every prototype", sum(opened.images.counts.values()))
    found = read_activations(opened.net, backbone, opened.batches(), progress=bars)
    kept = prune_prototypes(opened.net, found, nearest=nearest, least=least)
    check_pruning(kept, opened.net, tuple(c.shown for c in backbone.classes), nearest, least)
    smaller, chosen, fewer = _without(opened, found, kept)
    options = opened.options if l1 is None else replace(opened.options, l1=l1)
    fitted = fit_last_layer(smaller, fewer, options)
    removed = [
        {
            "class": backbone.classes[int(old.owner[j])].label,
            "prototype": old.number(j),
            "prototype_id": j,
        }
        for j in (~kept).nonzero()[:, 0].tolist()
    ]
    facts = {"nearest": nearest, "least": least, "kept": chosen, "removed": removed}
    measured = {"pruned": facts} | {k: v for k, v in old.card.measured.items() if k == "push"}
    sources = [source_of(old, j) for j in chosen]
    model = write(opened, smaller, options, sources, output, bars, max_skipped, **measured)
    before, after = accuracy(opened.net, found), accuracy(smaller, fewer)
    return {
        "prototypes": len(model.prototypes),
        **facts,
        "last_layer": fitted,
        "accuracy": {"before": before, "after": after},
    }


def combine(
    files: Annotated[list[Path], typer.Argument(help="Two or more ProtoPNet files with the same classes.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model to write.")],
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Add the logits of several networks in one file, which explains itself."""
    if len(files) < 2:
        raise UsageError("combine adds the logits of several networks: give two or more files.")
    shown = Shown(quiet=quiet)
    from protonmf_cli.files.atomic import check_writable
    from protonmf_cli.files.store import load_model, save_model
    from protonmf_cli.models.combination import combined_model, combined_weights

    check_writable(output, force)
    members = []
    for file in files:
        model, weights = load_model(file)
        check_protopnet(model, file)
        if weights is None:
            raise ModelFileError(f"{file} holds no network, so it cannot be combined.")
        members.append((model, weights))
    found = combined_model([model for model, _ in members], [str(file) for file in files])
    size = save_model(output, found, combined_weights(members))
    report = {
        "schema": "protonmf.protopnet_combination/1", "output": str(output), "models": [str(file) for file in files],
        "prototypes": len(found.prototypes), "networks": [card.source.name for card in found.card.members],
    }  # fmt: skip
    if as_json:
        shown.json(report)
        return
    shown.lines(
        {
            str(output): f"{size / 2**20:.1f} MiB, logits of {len(files)} networks added",
            "prototypes": f"{len(found.prototypes)} for {len(found.bias)} classes",
        }
    )


def open_protopnet(
    file: Path, data: Path, output: Path | None, split: str, class_map: Path | None, boxes: Path | None,
    batch_size: int, workers: int | None, device: str, threads: int | None, force: bool, shown: Shown,
) -> Opened:  # fmt: skip
    """A trained file with its labelled images."""
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.files.atomic import check_writable

    if output is not None:
        check_writable(output, force)
    loaded = open_model(
        file, device=device, dtype="float32", threads=threads, offline=True, batch_size=batch_size, workers=workers
    )
    check_protopnet(loaded.model, file)
    if loaded.model.card.members:
        raise ModelFileError(f"{file} combines several networks: give the files it was made of one by one.")
    from protonmf_cli.pipelines.protopnet.model import restored_protopnet

    images = labelled_images(loaded, data, split, class_map, boxes)
    for note in images.notes:
        shown.note(note)
    return Opened(
        loaded=loaded,
        net=restored_protopnet(loaded.backbone, loaded.model),
        options=options_of(loaded.model),
        images=images,
    )


def labelled_images(
    loaded: "Loaded", data: Path, split: str, class_map: Path | None, boxes: Path | None
) -> "LabelledImages":
    """Images of the model's classes, cut to boxes where they are given."""
    from protonmf_cli.files.images.bounding_boxes import images_for
    from protonmf_cli.files.images.datasets import ClassMapping

    return images_for(loaded.model.card, data, split, ClassMapping(file=class_map), boxes)


def check_protopnet(model: "PrototypeModel", file: Path) -> None:
    """Refuse another kind of model.

    Raises:
        ModelFileError: naming what the file holds.
    """
    if model.card.method != "protopnet":
        raise ModelFileError(
            f"{file} holds a {model.card.method} model, not a ProtoPNet. Train one with `protonmf protopnet train`."
        )


def options_of(model: "PrototypeModel") -> ProtoPNetOptions:
    """The options a ProtoPNet was trained with; those that another version did not know are the defaults."""
    known = {field.name for field in fields(ProtoPNetOptions)}
    stored = {name: value for name, value in model.card.options.items() if name in known}
    stored["augmentation"] = AugmentationOptions(**stored["augmentation"])
    for name in ("patch", "widths"):
        stored[name] = tuple(stored[name])
    return ProtoPNetOptions(**stored)


def source_of(model: "PrototypeModel", prototype: int) -> Mapping[str, Any] | None:
    """Where a prototype's own patch is: its first example."""
    examples = model.examples.of(prototype)
    if not examples:
        return None
    image = model.examples.sources[examples[0]]
    return {"image": {"path": image.path, "sha256": image.sha256}, "row": None}


def _warn_about_missing(opened: Opened, shown: Shown) -> None:
    """Name the classes whose prototypes stay as they are."""
    missing = [c for c in opened.model.active_classes.tolist() if c not in opened.images.files]
    if missing:
        names = ", ".join(opened.model.card.classes[c].shown for c in missing[:5]) + (
            ", ..." if len(missing) > 5 else ""
        )
        shown.warn(f"{len(missing)} classes have no images and keep their prototypes as they are: {names}")


def _without(opened: Opened, found: "Activations", kept: Any) -> "tuple[ProtoPNet, list[int], Activations]":
    """The network with some of its prototypes, their numbers before, and the activations that stay."""
    from protonmf_cli.models.protopnet import ProtoPNet

    chosen = kept.nonzero()[:, 0].tolist()
    net = opened.net
    smaller = ProtoPNet(
        net.network, net.readout, net.prototypes.data[chosen], net.owner[chosen], len(net.head), net.similarity
    )
    smaller.head.data = net.head.data[:, chosen].clone()
    smaller = smaller.to(opened.loaded.backbone.device).requires_grad_(False).eval()
    return smaller, chosen, found.of(chosen)


def write(
    opened: Opened, net: "ProtoPNet", options: ProtoPNetOptions, sources: Sequence[Mapping[str, Any] | None],
    output: Path, bars: Bars, max_skipped: float, **measured: Any,
) -> "PrototypeModel":  # fmt: skip
    """Save a changed network with its patches; figures of the old one that no longer hold are dropped."""
    from protonmf_cli.files.store import save_model
    from protonmf_cli.jobs.images import check_skipped
    from protonmf_cli.jobs.protopnet.finished import finished_model
    from protonmf_cli.pipelines.protopnet.activations import accuracy

    files = opened.images.of(opened.images.files)
    old = opened.model.card.data
    model, activations = finished_model(
        net, opened.loaded.backbone, options, files, opened.loaded.reader, sources, {"boxes": old.get("boxes")}, bars
    )
    skipped: list[Mapping[str, str]] = [{"path": skip.path, "reason": skip.reason} for skip in activations.skipped]
    check_skipped(skipped, len(activations.images), max_skipped)
    model = model.measured_as(accuracy={"train": accuracy(net, activations)}, **measured)
    model = replace(model, card=replace(model.card, data={**model.card.data, "skipped": skipped}))
    save_model(output, model, opened.loaded.backbone.weights())
    return model
