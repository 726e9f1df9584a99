"""protonmf fewshot benchmark: N-way accuracy from K images per class, against three baselines."""

import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.cli.fewshot.fit import Layers, ModelName, NormalisationOption
from protonmf_cli.errors import UsageError
from protonmf_cli.jobs.fewshot.data import NetworkWords, find_labelled, open_features
from protonmf_cli.options import FewShotOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.jobs.images import SkipWatch
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.pipelines.fewshot.benchmark import Task

DEFAULTS = FewShotOptions()
NAMES = {
    "prototypes-l2": "prototypes, L2 weights",
    "prototypes-l1": "prototypes, L1 weights",
    "single-prototype": "one prototype per class (mean)",
    "softmax-l2": "linear softmax, L2",
    "knn": "nearest neighbours",
}


def benchmark(
    model: ModelName,
    data: arguments.Data,
    ways: Annotated[str, typer.Option("--ways", help="Numbers of classes N.")] = "2,5,20",
    shots: Annotated[int, typer.Option("--shots", min=1, help="Images per class K for everything that is fitted or chosen.")] = 5,
    subsets: Annotated[int, typer.Option("--subsets", min=1, help="Random sets of classes for each N.")] = 10,
    images: Annotated[int, typer.Option("--images", min=2, help="Most images of a class, half of them for each fold.")] = 100,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of the cross-validation inside the K images.")] = DEFAULTS.folds,
    normalisation: NormalisationOption = DEFAULTS.normalisation,
    layers: Layers = "-1",
    weights: arguments.Weights = None,
    model_arg: arguments.ModelArg = None,
    img_size: arguments.ImgSize = None,
    cache: Annotated[Path | None, typer.Option("--cache-features", show_default="the user's cache folder", help="Folder for the features of each class.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON.")] = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    threads: arguments.Threads = None,
    seed: arguments.Seed = DEFAULTS.seed,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Compare the few-shot model with class means, a linear softmax and nearest neighbours on random sets of classes."""
    import json

    from protonmf_cli.cli import machine
    from protonmf_cli.files.atomic import check_writable, write_atomically

    shown = Shown(quiet=quiet)
    chosen = _ways(ways)
    options = replace(DEFAULTS, normalisation=normalisation, folds=folds, seed=seed)
    if output is not None:
        check_writable(output, force)
    machine.set_threads(threads)
    place = machine.choose_device(device)
    with shown.progress() as bars:
        bars.stage("loading the network")
        from protonmf_cli.pipelines.fewshot.benchmark import draw_tasks, run_tasks, summary

        classes, found = find_labelled(data, "train", shown)
        if images < 2 * shots:
            raise UsageError(
                f"--images {images} leaves less than --shots {shots} for each of two folds; give {2 * shots} or more."
            )
        found = found.limited(images, seed)
        draw = partial(draw_tasks, ways=chosen, shots=shots, subsets=subsets, seed=seed)
        draw(found.counts)  # refused before anything is read
        words = NetworkWords(
            name=model, weights=weights, model_args=model_arg or [], img_size=img_size, layers=layers, offline=offline
        )
        backbone = open_features(words, classes, place, shown)
        began = time.monotonic()
        tasks, features, watch = _read(
            draw, backbone, found, cache, batch_size, machine.worker_count(workers), shown, bars
        )
        watch.check(max_skipped, sum(len(rows) for rows in features.values()), shown)
        read = time.monotonic()
        blocks = backbone.readout.blocks  # type: ignore[attr-defined]
        processes = threads or machine.worker_count(None)
        scores = run_tasks(tasks, features, options, blocks=blocks, processes=processes, progress=bars)
    report = {
        "schema": "protonmf.fewshot_benchmark/1",
        "model": model,
        "data": str(data),
        "classes": len(classes),
        "images": sum(len(rows) for rows in features.values()),
        "input_size": list(backbone.preprocessing.input_size),
        "layers": list(words.joined),
        "seed": seed,
        "options": asdict(options),
        "rows": summary(scores, shots),
        "seconds": {"features": read - began, "fitting": time.monotonic() - read},
    }
    if output is not None:
        write_atomically(output, json.dumps(report, indent=1).encode())
        shown.note(f"wrote {output}")
    if as_json:
        shown.json(report)
    else:
        _show(report, shown)


def _read(
    draw: "Callable[[Mapping[int, int]], list[Task]]",
    backbone: "Backbone",
    images: "LabelledImages",
    cache: Path | None,
    batch_size: int,
    workers: int,
    shown: Shown,
    bars: Bars,
) -> "tuple[list[Task], dict[int, Tensor], SkipWatch]":
    """Tasks, and features of the classes that they need, each image read once and kept on disk.

    A class that loses unreadable images may become too small: then the tasks are drawn anew.
    """
    from protonmf_cli.files.work.cached_features import CachedSamples, default_folder
    from protonmf_cli.files.work.folder import digest_of_facts
    from protonmf_cli.jobs.images import SkipWatch
    from protonmf_cli.jobs.loaded import image_reader
    from protonmf_cli.pipelines.fewshot.features import read_samples
    from protonmf_cli.versions import installed_versions

    folder = cache or default_folder()
    facts = {
        "network": backbone.source.digest,
        "preprocessing": asdict(backbone.preprocessing),
        "layers": list(backbone.readout.joined),  # type: ignore[attr-defined]
        "images": images.fingerprint(),
        "root": str(images.root.resolve()),
        "number": [str(backbone.dtype), backbone.device.type],
        "versions": installed_versions(("protonmf", "torch", "timm")),
    }
    kept = CachedSamples(folder, digest_of_facts(facts))
    shown.note(f"features are kept in {kept.folder}")
    reader = image_reader(backbone.preprocessing, batch_size=batch_size, workers=workers)
    counts, watch = dict(images.counts), SkipWatch()
    features: dict[int, Tensor] = {}
    while True:
        tasks = draw(counts)
        missing = sorted({c for task in tasks for c in task.shots} - features.keys())
        if not missing:
            return tasks, features, watch
        bars.stage("features", sum(counts[c] for c in missing))
        for c in missing:
            if c not in kept:
                kept[c] = read_samples(backbone, reader.batches(images.of([c])), bars)
            else:
                bars.advance(counts[c])
            samples, skipped = kept[c]
            features[c], counts[c] = samples.features, len(samples)
            watch.skipped += skipped


def _ways(words: str) -> list[int]:
    parts = [word.strip() for word in words.split(",")]
    if not all(word.isdecimal() and int(word) > 1 for word in parts):
        raise UsageError(f"--ways {words!r} is not a list of numbers from 2, such as 2,5,20.")
    return sorted({int(word) for word in parts})


def _show(report: dict[str, Any], shown: Shown) -> None:
    """A table like the paper's Table 1, and how probable the differences are by chance."""
    rows = {(row["method"], row["ways"]): row for row in report["rows"]}
    ways = sorted({n for _, n in rows})
    first = report["rows"][0]
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"{first['shots']} shots, {first['subsets']} subsets", no_wrap=True)
    for n in ways:
        table.add_column(f"{n}-way", justify="right", no_wrap=True)
    for method, name in NAMES.items():
        best = [max(rows[m, n]["mean"] for m in NAMES) for n in ways]
        cells = [
            ("[bold]{}[/bold]" if rows[method, n]["mean"] == top else "{}").format(
                f"{rows[method, n]['mean']:.3f} ({rows[method, n]['std']:.3f})"
            )
            for n, top in zip(ways, best, strict=True)
        ]
        table.add_row(name, *cells)
    shown.out.print(table)
    for method in ("prototypes-l2", "prototypes-l1"):
        for other in rows[method, ways[0]]["p_ttest"]:
            of_ways = {n: rows[method, n] for n in ways}
            shown.out.print(
                f"{NAMES[method]} against {NAMES[other]}: {_tests(of_ways, other)}", style="dim", markup=False
            )
    zeros = ", ".join(f"{rows['prototypes-l1', n]['zero_weights']:.0%} of {n}-way" for n in ways)
    shown.out.print(f"L1 weights that are zero: {zeros}", style="dim", markup=False)
    seconds = report["seconds"]
    shown.out.print(
        f"{report['images']} images, features {seconds['features']:.0f} s, fitting {seconds['fitting']:.0f} s",
        style="dim", markup=False,
    )  # fmt: skip


def _tests(of_ways: "Mapping[int, dict[str, Any]]", other: str) -> str:
    """p of both tests for every number of classes, and why one is left out."""
    pairs = [f"{_p(row['p_ttest'][other])} / {_p(row['p_wilcoxon'][other])}" for row in of_ways.values()]
    missing: dict[str, list[str]] = {}
    for n, row in of_ways.items():
        if reason := row["no_ttest"].get(other):
            missing.setdefault(reason, []).append(f"{n}-way")
    why = [f"; no t-test of {', '.join(without)}: {reason}" for reason, without in missing.items()]
    return f"p = {', '.join(pairs)} (t-test / Wilcoxon){''.join(why)}"


def _p(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"
