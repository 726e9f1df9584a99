"""protonmf protopnet local, global, evaluate: what an image is like, what a prototype is like, how good it all is."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.protopnet.edit import Boxes, File, Opened, check_protopnet, open_protopnet
from protonmf_cli.jobs.tables import make_folder

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Contribution, ExampleView
    from protonmf_cli.pipelines.protopnet.activations import Activations
    from protonmf_cli.pipelines.protopnet.analyses import LocalAnalysis


def local(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    model: arguments.Model = arguments.DEFAULT_MODEL,
    top: Annotated[int, typer.Option("--top", min=1, help="Most similar prototypes of all classes.")] = 10,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Best classes, shown one by one.")] = 3,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a picture of the most similar prototypes and of each class.")] = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Local analysis: the prototypes most similar to an image, and its evidence class by class."""
    shown = Shown(quiet=quiet)
    if figures is not None:
        make_folder(figures)
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.pipelines.protopnet.analyses import analyse_image

    loaded = open_model(model, device=device, dtype="float32", threads=threads, offline=True)
    check_protopnet(loaded.model, model)
    crop = loaded.crop(image)
    found = analyse_image(loaded.backbone, loaded.model, crop, top=top, classes=classes)
    if figures is not None:
        _draw_local(found, loaded.backbone.pictures(crop)[0].permute(1, 2, 0).numpy(), figures, shown)
    if as_json:
        shown.json(_local_json(str(image), found))
    else:
        _show_local(found, shown)


def evaluate(
    file: File,
    data: arguments.Data,
    split: arguments.Split = "val",
    class_map: arguments.ClassMapFile = None,
    boxes: Boxes = None,
    parts: Annotated[Path | None, typer.Option("--parts", help="Part annotations (folder or zip of CUB-200-2011's text files), for consistency and stability.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for the global analysis: a picture per class with each prototype's nearest patches.")] = None,
    l1_path: Annotated[bool, typer.Option("--l1-path", help="Fit the last layer for several weights of the L1 term: how sparse, how right.")] = False,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Accuracy, sparsity, unique prototypes and consistency; the global analysis as pictures."""
    shown = Shown(quiet=quiet)
    if figures is not None:
        make_folder(figures)
    with shown.progress() as bars:
        opened = open_protopnet(
            file, data, None, split, class_map, boxes, batch_size, workers, device, threads, False, shown
        )
        from protonmf_cli.jobs.images import SkipWatch
        from protonmf_cli.pipelines.protopnet.activations import read_activations
        from protonmf_cli.pipelines.protopnet.quality import quality

        bars.stage("reading the images", sum(opened.images.counts.values()))
        found = read_activations(opened.net, opened.loaded.backbone, opened.batches(), progress=bars)
        SkipWatch(list(found.skipped)).check(max_skipped, len(found.images), shown)
        report = {
            "schema": "protonmf.protopnet_evaluation/1",
            "model": str(file),
            **quality(opened.net, opened.model, found, seed),
        }
        report["part_quality"] = _part_quality(opened, parts, seed, bars)
        report["l1_path"] = _path(opened, found, data, class_map, boxes, bars) if l1_path else None
        nearest = _nearest(opened, found)
        report["nearest"] = _nearest_json(opened.model, nearest)
        if figures is not None:
            _draw_global(opened.model, nearest, figures, shown)
    if as_json:
        shown.json(report)
    else:
        _show(report, shown)


def _part_quality(opened: Opened, parts: Path | None, seed: int, bars: Any) -> list[dict[str, Any]]:
    from protonmf_cli.jobs.tables import part_quality_of

    table = part_quality_of(opened.loaded, opened.images, parts, seed, bars)
    return list(table.rows)


def _path(
    opened: Opened, test: "Activations", data: Path, class_map: Path | None, boxes: Path | None, bars: Any
) -> list[dict[str, Any]]:
    """Last layers over several L1 weights, fitted to the training images."""
    from protonmf_cli.cli.protopnet.edit import labelled_images
    from protonmf_cli.pipelines.protopnet.activations import read_activations
    from protonmf_cli.pipelines.protopnet.push import last_layer_path

    images = labelled_images(opened.loaded, data, "train", class_map, boxes)
    bars.stage("reading the training images", sum(images.counts.values()))
    batches = opened.loaded.reader.batches(images.of(images.files))
    train = read_activations(opened.net, opened.loaded.backbone, batches, progress=bars)
    return last_layer_path(opened.net, train, test, opened.options)


def _nearest(opened: Opened, found: "Activations") -> "dict[int, list[ExampleView]]":
    """For each prototype the nearest patches of the images."""
    from dataclasses import replace

    from protonmf_cli.files.images.reader import encode_jpeg
    from protonmf_cli.pipelines.explaining.explanation import example_views
    from protonmf_cli.pipelines.protopnet.model import nearest_examples
    from protonmf_cli.pipelines.protopnet.quality import NEAREST

    of_name = {file.name: file for file in opened.images.of(opened.images.files)}
    reader = opened.loaded.reader
    examples, _ = nearest_examples(
        opened.net, opened.loaded.backbone, found, [None] * len(opened.net.prototypes),
        lambda images: reader.batches([of_name[image.path] for image in images]), encode_jpeg, count=NEAREST,
    )  # fmt: skip
    model = replace(opened.model, examples=examples)
    return {j: example_views(model, j) for j in range(len(model.prototypes))}


def _draw_global(
    model: "PrototypeModel", nearest: "Mapping[int, Sequence[ExampleView]]", folder: Path, shown: Shown
) -> None:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.strips import gallery_png
    from protonmf_cli.pipelines.protopnet.analyses import global_strips

    for c in model.active_classes.tolist():
        strips, headings = global_strips(model, c, nearest)
        name = model.card.classes[c]
        path = folder / f"prototypes-{file_name(name.label)}.png"
        write_atomically(path, gallery_png(f"the prototypes of {name.shown}", strips, headings))
    shown.note(f"wrote {len(model.active_classes)} pictures to {folder}")


def _draw_local(found: "LocalAnalysis", crop: Any, folder: Path, shown: Shown) -> None:
    from protonmf_cli.files.atomic import write_atomically
    from protonmf_cli.output.figures.strips import gallery_png
    from protonmf_cli.pipelines.protopnet.analyses import LOCAL_HEADINGS, local_strips

    best = found.predictions[0]
    title = f"{best.name} {best.probability:.1%}: the most similar prototypes"
    strips = local_strips(found.similar, crop, -1)
    write_atomically(folder / "most-similar.png", gallery_png(title, strips, LOCAL_HEADINGS))
    for rank, (prediction, contributions) in enumerate(zip(found.predictions, found.by_class, strict=True), start=1):
        if not contributions:
            continue
        strips = local_strips(contributions, crop, prediction.class_index)
        title = f"{rank}. {prediction.name}: logit {prediction.logit:.2f}, {prediction.probability:.1%}"
        path = folder / f"class-{rank}-{file_name(prediction.label)}.png"
        write_atomically(path, gallery_png(title, strips, LOCAL_HEADINGS))
    shown.note(f"wrote {1 + len(found.by_class)} pictures to {folder}")


def file_name(label: str) -> str:
    """A label as part of a file's name.

    >>> file_name("n01 a/b")
    'n01-a-b'
    """
    return re.sub(r"[^\w.-]+", "-", label)


def _local_json(image: str, found: "LocalAnalysis") -> dict[str, Any]:
    from protonmf_cli.cli.ledger import contribution_json, prediction_json

    return {
        "schema": "protonmf.protopnet_local/1",
        "image": image,
        "most_similar": [contribution_json(c) for c in found.similar],
        "classes": [
            {**prediction_json(p), "prototypes": [contribution_json(c) for c in contributions]}
            for p, contributions in zip(found.predictions, found.by_class, strict=True)
        ],
    }


def _nearest_json(model: "PrototypeModel", nearest: "Mapping[int, Sequence[ExampleView]]") -> list[dict[str, Any]]:
    def listed(views: "Sequence[ExampleView]") -> list[dict[str, Any]]:
        return [{"source": v.path, "sha256": v.sha256, "score": v.score, "box": list(v.box)} for v in views]

    from protonmf_cli.pipelines.explaining.explanation import example_views

    return [
        {
            "prototype": model.number(j),
            "prototype_id": j,
            "owner_label": model.card.classes[int(model.owner[j])].label,
            "train": listed(example_views(model, j)),
            "here": listed(views),
        }
        for j, views in nearest.items()
    ]


def _show_local(found: "LocalAnalysis", shown: Shown) -> None:
    from rich.table import Table

    from protonmf_cli.models.wording import shortened_path

    best = found.predictions[0]
    shown.out.print(f"{best.name} {best.probability:.1%}", style="bold", markup=False)
    blocks: list[tuple[str, tuple[Contribution, ...]]] = [("most similar prototypes", found.similar)]
    for p, contributions in zip(found.predictions, found.by_class, strict=True):
        blocks.append((f"{p.name}, logit {p.logit:.2f}", contributions))
    for title, contributions in blocks:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in (title, "similarity", "weight", "logit", "its patch is in"):
            table.add_column(name, justify="left" if name in {title, "its patch is in"} else "right", no_wrap=True)
        for c in contributions:
            source = shortened_path(c.examples[0].path, 36) if c.examples else ""
            table.add_row(
                f"prototype {c.prototype} of {c.owner_name}",
                f"{c.evidence:.3f}", f"{c.weight:+.3f}", f"{c.contribution:+.2f}", source,
            )  # fmt: skip
        shown.out.print(table)


def _show(report: dict[str, Any], shown: Shown) -> None:
    from protonmf_cli.pipelines.protopnet.quality import NEAREST

    low, high = report["accuracy_interval"]
    sparsity = report["sparsity"]
    lines = {
        "accuracy": f"{report['accuracy']:.1%} ({low:.1%}, {high:.1%}) of {report['images']} images",
        "sparsity": f"{sparsity['other_class_weights']} of {sparsity['other_class_connections']} weights to other classes "
        f"are not zero; {sparsity['weights_per_class']:.1f} weights per class",
        "prototypes": f"{report['prototypes']['count']}, {report['prototypes']['unique']} unique patches of "
        f"{report['prototypes']['images']} images; fewest images of a class: {report['prototypes']['fewest_images_of_a_class']}",
        "purity": f"{report['purity']:.1%} of the {NEAREST} nearest images of a prototype are of its class",
    }
    for row in report["part_quality"]:
        if row["value"] is not None:
            lines[row["measure"]] = f"{row['value']:.1%} over {row['over']}"
    shown.lines(lines)
    for row in report["l1_path"] or []:
        shown.out.print(
            f"  l1 {row['l1']:.0e}: {row['other_class_weights']} weights to other classes, "
            f"{row['accuracy_train']:.1%} train, {row['accuracy_test']:.1%} here"
        )
