"""protonmf convert: black box -> prototype model."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import GateError, InputError, UsageError
from protonmf_cli.options import RECIPES, Augment, ConversionOptions, Init, Recipe, Reconstruction, RowsOption, Solver
from protonmf_cli.output.text.conversion import conversion_summary, show_plan, show_summary

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.files.work.cached_features import CachedFeatures
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.models.prototype import PrototypeModel

DEFAULTS = RECIPES["default"]
MOST_CLASSES_AT_ONCE = 8
"""Classes factorised in one batch on a GPU, where they fit into --memory together."""


@dataclass(frozen=True)
class _Job:
    """Everything that is known before the network runs."""

    backbone: "Backbone"
    images: "LabelledImages"
    options: ConversionOptions
    output: Path
    embed: bool
    workers: int
    digest: str
    cache: Path | None


def convert(
    model: Annotated[str, typer.Argument(help="timm name, hf-hub:org/name, local-dir:PATH, or a name without its size.")],
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Prototype model file to write.")] = arguments.DEFAULT_MODEL,
    prototypes: Annotated[str, typer.Option("--prototypes", "-p", metavar="N|auto", help="Prototypes per class; auto chooses a number for each.")] = str(DEFAULTS.prototypes),
    max_prototypes: Annotated[int, typer.Option("--max-prototypes", min=1, help="Most that auto tries.")] = DEFAULTS.max_prototypes,
    recipe: Annotated[Recipe, typer.Option("--recipe", help="paper: everything as ProtoNMF was printed; single options still count.")] = "default",
    reconstruction: Annotated[Reconstruction | None, typer.Option("--reconstruction", show_default=DEFAULTS.reconstruction, help="Amounts of parts, or ProtoNMF's fit of the head by a class's own prototypes.")] = None,
    near: Annotated[int | None, typer.Option("--near", min=0, show_default=str(DEFAULTS.near), help="Amounts: nearest classes of the head whose prototypes are weighed along.")] = None,
    augment: Annotated[Augment | None, typer.Option("--augment", show_default=DEFAULTS.augment, help="How prototypes take up the residual.")] = None,
    stability: Annotated[bool, typer.Option("--stability/--no-stability", help="Compare the prototypes of two halves of the images.")] = DEFAULTS.stability,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Which rows the head is read through.")] = DEFAULTS.rows,
    init: Annotated[Init | None, typer.Option("--init", show_default=DEFAULTS.nmf.init, help="Start of the factorisation.")] = None,
    solver: Annotated[Solver | None, typer.Option("--solver", show_default=DEFAULTS.nmf.solver, help="Multiplicative updates or HALS.")] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training patches kept per prototype.")] = DEFAULTS.examples,
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint to load (safetensors, or a pickle of tensors).")] = None,
    num_classes: arguments.NumClasses = None,
    model_arg: arguments.ModelArg = None,
    img_size: arguments.ImgSize = None,
    exif_transpose: Annotated[bool, typer.Option("--exif-transpose", help="Turn images as their camera says.")] = False,
    split: arguments.Split = "train",
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    max_skipped: arguments.MaxSkipped = 0.01,
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="GiB one class may take; larger ones are subsampled.")] = DEFAULTS.memory / 2**30,
    cache_features: Annotated[Path | None, typer.Option("--cache-features", help="Folder for what the network gave: the next conversion of the same images does not run it.")] = None,
    embed_backbone: Annotated[bool, typer.Option("--embed-backbone/--no-embed-backbone", help="Keep the network's weights in the file.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Resolve everything, write nothing.")] = False,
    batch_size: arguments.BatchSize = DEFAULTS.batch_size,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    seed: arguments.Seed = DEFAULTS.seed,
    offline: arguments.Offline = False,
    force: arguments.Force = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
    verbose: arguments.Verbose = False,
) -> None:  # fmt: skip
    """Convert a trained classifier into a prototype model; its logits stay exactly equal."""
    started = time.monotonic()
    shown = Shown(quiet=quiet, verbose=verbose)
    extra = {"num_classes": num_classes} if num_classes else {}
    arguments_of_model = arguments.model_arguments(model_arg or []) | extra
    chosen = _with_recipe(recipe, init=init, solver=solver, reconstruction=reconstruction, augment=augment, near=near)
    if near and chosen.reconstruction == "paper":
        raise UsageError(
            f"--near {near} needs --reconstruction amounts; the paper's uses a class's own prototypes alone."
        )
    chosen = replace(
        chosen, prototypes=_count(prototypes), max_prototypes=max_prototypes, stability=stability, rows=rows,
        examples=examples, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    arguments.check_kept(weights, embed_backbone)
    if not data.exists():
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    from protonmf_cli.cli import machine
    from protonmf_cli.files.atomic import check_writable

    if not dry_run:
        check_writable(output, force)
    machine.set_threads(threads)
    with shown.progress() as bars:
        bars.stage("loading the model")
        from protonmf_cli.files.images.datasets import ClassMapping, find_images
        from protonmf_cli.files.networks.backbones import load_backbone
        from protonmf_cli.files.networks.loading import BackboneRequest
        from protonmf_cli.pipelines.conversion.classes import check_counts
        from protonmf_cli.pipelines.conversion.rows import images_that_fit

        place = machine.choose_device(device)
        number = machine.choose_dtype(dtype, place)
        request = BackboneRequest(
            name=model, weights=weights, model_args=arguments_of_model, rows=rows,
            img_size=img_size, exif_transpose=exif_transpose, offline=offline,
        )  # fmt: skip
        backbone, notes = load_backbone(request)
        backbone = backbone.to(place, number)
        images = find_images(data, split, backbone.classes, ClassMapping(file=class_map, by_order=class_order))
        fitting = images_that_fit(backbone, int(memory * 2**30))
        images = images.limited(fitting, seed)
        largest = max(images.counts.values())
        options = replace(
            chosen,
            group=max(1, min(MOST_CLASSES_AT_ONCE, fitting // largest)) if place.type == "cuda" else 1,
            memory=int(memory * 2**30),
        )
        for note in (*notes, *images.notes):
            shown.note(note)
        _warn_about(backbone, images, options, shown)
        check_counts(backbone, images.counts, options)
        job = _Job(
            backbone,
            images,
            options,
            output,
            embed_backbone,
            machine.worker_count(workers),
            _digest(backbone, images, asdict(options)),
            cache_features,
        )
        if dry_run:
            cached = cache_features is not None
            show_plan(
                backbone, images, options, output, workers=job.workers, cached=cached, shown=shown, as_json=as_json
            )
            return
        result, seconds, size = _run(job, max_skipped, shown, bars)
    summary = conversion_summary(result, output) | {"seconds": seconds | {"total": time.monotonic() - started}}
    _check_accuracy(summary, len(backbone.classes), shown)
    if as_json:
        shown.json(summary)
    else:
        show_summary(summary, size, shown)


def _run(
    job: _Job, max_skipped: float, shown: Shown, bars: Bars
) -> tuple["PrototypeModel", dict[str, float | None], int]:
    """Convert, assemble, save; returns the model, seconds by stage and the file's size in bytes."""
    from protonmf_cli.files.images.reader import encode_jpeg
    from protonmf_cli.files.store import save_model
    from protonmf_cli.files.work.finished_classes import Shards
    from protonmf_cli.jobs.loaded import image_reader
    from protonmf_cli.pipelines.conversion.assembly import assemble_model
    from protonmf_cli.pipelines.conversion.classes import ConversionImages, convert_classes

    reader = image_reader(job.backbone.preprocessing, batch_size=job.options.batch_size, workers=job.workers)
    source = ConversionImages(
        counts=job.images.counts, open=lambda classes: reader.batches(job.images.of(classes)), encode=encode_jpeg
    )
    left_out = {str(c): n for c, n in job.images.left_out.items()}
    with Shards(job.output, job.digest) as shards:
        if others := shards.others():
            shown.note(
                f"{shards.work} also holds {len(others)} unfinished conversion(s) with other options, data or weights; "
                "they are kept. Remove the folder if you do not need them."
            )
        if done := len(shards):
            shown.note(f"{done} of {len(source.counts)} classes were finished before and are kept")
        clock = time.monotonic()
        known = None if job.cache is None else cached_features(job.cache, job.backbone, job.images, job.options)
        if known:
            shown.note(f"{len(known)} of {len(source.counts)} classes are taken from {job.cache}, without the network")
        found = convert_classes(job.backbone, source, job.options, shards, bars, known=known)
        timing: dict[str, float | None] = dict(found)
        shown.detail(f"classes done after {time.monotonic() - clock:.1f} s")
        clock = time.monotonic()
        data = {"split": job.images.root.name, "left_out": left_out}
        result = assemble_model(job.backbone, shards, job.options, data=data, progress=bars)
        timing |= {"head": time.monotonic() - clock, "residual": None}
        check_skipped(result.card.data["skipped"], result.card.data["images"], max_skipped)
        size = save_model(job.output, result, job.backbone.weights() if job.embed else None)
        shards.discard()
    return result, timing, size


def cached_features(
    folder: Path, backbone: "Backbone", images: "LabelledImages", options: ConversionOptions
) -> "CachedFeatures":
    """What the network gave before for these images, under a name that changes with everything it depends on."""
    from protonmf_cli.files.work.cached_features import CachedFeatures

    facts = {"batch_size": options.batch_size, "memory": options.memory, "seed": options.seed}
    return CachedFeatures(folder, _digest(backbone, images, facts))


def check_skipped(skipped: Sequence[Mapping[str, str]], read: int, most: float) -> None:
    """Give up when too many images could not be read.

    Raises:
        GateError: with the files and what to do.
    """
    share = len(skipped) / max(1, read + len(skipped))
    if share > most:
        names = "; ".join(f"{skip['path']} {skip['reason']}" for skip in skipped[:3])
        raise GateError(
            f"{len(skipped)} of {read + len(skipped)} images could not be read ({share:.1%}, at most {most:.1%} is allowed): "
            f"{names}. Repair or remove them, or give --max-skipped {min(1.0, share + 0.01):.2f}."
        )


def _count(words: str) -> int | None:
    """A number of prototypes, None for "auto"."""
    if words == "auto":
        return None
    if not words.isdecimal() or int(words) < 1:
        raise UsageError(f"-p {words!r} is neither a number from 1 nor auto.")
    return int(words)


def _with_recipe(recipe: Recipe, *, init: Init | None, solver: Solver | None, **single: Any) -> ConversionOptions:
    """A recipe's options with those that were given one by one."""
    found = RECIPES[recipe]
    return replace(
        found,
        nmf=replace(found.nmf, init=init or found.nmf.init, solver=solver or found.nmf.solver),
        **{name: value for name, value in single.items() if value is not None},
    )


def _digest(backbone: "Backbone", images: "LabelledImages", options: Mapping[str, Any]) -> str:
    """Of everything that decides the result: shards of another conversion are never mixed in."""
    from protonmf_cli.files.work.folder import digest_of_facts
    from protonmf_cli.versions import installed_versions

    parts = {
        "options": options,
        "weights": backbone.source.digest,
        "rows": [backbone.readout.kind, backbone.rows_option],
        "preprocessing": asdict(backbone.preprocessing),
        "data": images.fingerprint(),
        "number": [str(backbone.dtype), backbone.device.type],
        "versions": installed_versions(("protonmf", "torch", "timm")),
    }
    return digest_of_facts(parts)


def _warn_about(backbone: "Backbone", images: "LabelledImages", options: ConversionOptions, shown: Shown) -> None:
    few = [c for c, count in images.counts.items() if count < (options.prototypes or 1)]
    if few and backbone.readout.spatial:
        names = ", ".join(backbone.classes[c].shown for c in few[:5]) + (", ..." if len(few) > 5 else "")
        shown.warn(
            f"{len(few)} classes have fewer images than prototypes ({options.prototypes}): {names}. Their prototypes are "
            "parts of single images; give more images, a smaller -p, or -p auto."
        )
    if not backbone.readout.spatial:
        shown.warn(
            f"{backbone.source.name} is read through one row per image ({backbone.readout.kind}; spatial = false): "
            "contributions are exact, but no position can be shown."
            + (
                f" Leave out --rows {options.rows} to read it by places if its head has any."
                if options.rows != "auto"
                else ""
            )
        )
    for c, count in images.left_out.items():
        shown.warn(
            f"class {backbone.classes[c].shown} is larger than --memory: {count} of its images are left out "
            f"(drawn with --seed)"
        )


def _check_accuracy(summary: Mapping[str, Any], classes: int, shown: Shown) -> None:
    if summary["classes_with_images"] > 1 and summary["accuracy_black_box"] <= max(2 / classes, 0.02):
        shown.warn(
            f"the classifier itself gets only {summary['accuracy_black_box']:.1%} of these images right, about chance: "
            "the class map may be permuted, or the preprocessing may not fit (--model-arg)."
        )
