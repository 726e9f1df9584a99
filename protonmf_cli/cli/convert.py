"""protonmf convert: black box -> prototype model."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import GateError, InputError, UsageError
from protonmf_cli.options import ConversionOptions, Init, NmfOptions, RowsOption, Solver

if TYPE_CHECKING:
    from protonmf_cli.files.datasets import LabelledImages
    from protonmf_cli.models.backbone import Backbone
    from protonmf_cli.models.prototype import PrototypeModel

DEFAULTS = ConversionOptions()
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


def convert(
    model: Annotated[str, typer.Argument(help="timm name, hf-hub:org/name, local-dir:PATH, or a name without its size.")],
    data: arguments.Data,
    output: Annotated[Path, typer.Option("--output", "-o", help="Prototype model file to write.")] = arguments.DEFAULT_MODEL,
    prototypes: Annotated[int, typer.Option("--prototypes", "-p", min=1, help="Prototypes per class.")] = DEFAULTS.prototypes,
    rows: Annotated[RowsOption, typer.Option("--rows", help="Which rows the head is read through.")] = DEFAULTS.rows,
    init: Annotated[Init, typer.Option("--init", help="Start of the factorisation.")] = DEFAULTS.nmf.init,
    solver: Annotated[
        Solver, typer.Option("--solver", help="Multiplicative updates or HALS.")
    ] = DEFAULTS.nmf.solver,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Training patches kept per prototype.")] = DEFAULTS.examples,
    weights: Annotated[Path | None, typer.Option("--weights", help="Checkpoint to load (safetensors, or a pickle of tensors).")] = None,
    num_classes: Annotated[int | None, typer.Option("--num-classes", min=1, help="Classes of the checkpoint given with --weights.")] = None,
    model_arg: Annotated[list[str] | None, typer.Option("--model-arg", help="key=value for timm, e.g. pad_type=same. Repeatable.")] = None,
    img_size: Annotated[int | None, typer.Option("--img-size", min=1, help="Image side in pixels, instead of the checkpoint's.")] = None,
    exif_transpose: Annotated[bool, typer.Option("--exif-transpose", help="Turn images as their camera says.")] = False,
    split: arguments.Split = "train",
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    max_skipped: arguments.MaxSkipped = 0.01,
    memory: Annotated[float, typer.Option("--memory", min=0.001, help="GiB one class may take; larger ones are subsampled.")] = DEFAULTS.memory / 2**30,
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
    arguments_of_model = _model_arguments(model_arg or []) | extra
    if not data.exists():
        raise InputError(f"the data {data} does not exist. Give a folder of class folders with --data.")
    from protonmf_cli.cli import machine
    from protonmf_cli.files.atomic import check_writable

    if not dry_run:
        check_writable(output, force)
    machine.set_threads(threads)
    with shown.progress() as bars:
        bars.stage("loading the model")
        from protonmf_cli.files.backbones import BackboneRequest, load_backbone
        from protonmf_cli.files.datasets import ClassMapping, find_images
        from protonmf_cli.pipelines.conversion import check_counts
        from protonmf_cli.pipelines.features import images_that_fit

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
        options = ConversionOptions(
            prototypes=prototypes,
            nmf=NmfOptions(init=init, solver=solver),
            rows=rows,
            examples=examples,
            batch_size=batch_size,
            group=max(1, min(MOST_CLASSES_AT_ONCE, fitting // largest)) if place.type == "cuda" else 1,
            memory=int(memory * 2**30),
            seed=seed,
        )
        for note in (*notes, *images.notes):
            shown.note(note)
        _warn_about(backbone, images, shown)
        check_counts(backbone, images.counts, options)
        job = _Job(
            backbone,
            images,
            options,
            output,
            embed_backbone,
            machine.worker_count(workers),
            _digest(backbone, images, options),
        )
        if dry_run:
            _show_plan(job, shown, as_json)
            return
        result, seconds, size = _run(job, max_skipped, shown, bars)
    summary = conversion_summary(result, output) | {"seconds": seconds | {"total": time.monotonic() - started}}
    _check_accuracy(summary, len(backbone.classes), shown)
    if as_json:
        shown.json(summary)
    else:
        _show_summary(summary, size, shown)


def _run(
    job: _Job, max_skipped: float, shown: Shown, bars: Bars
) -> tuple["PrototypeModel", dict[str, float | None], int]:
    """Convert, assemble, save; returns the model, seconds by stage and the file's size in bytes."""
    from protonmf_cli.files.images import encode_jpeg
    from protonmf_cli.files.shards import Shards
    from protonmf_cli.files.store import save_model
    from protonmf_cli.library import image_reader
    from protonmf_cli.pipelines.assembly import assemble_model
    from protonmf_cli.pipelines.conversion import ConversionImages, convert_classes

    reader = image_reader(job.backbone, batch_size=job.options.batch_size, workers=job.workers)
    source = ConversionImages(
        counts=job.images.counts, open=lambda classes: reader.batches(job.images.of(classes)), encode=encode_jpeg
    )
    left_out = {str(c): n for c, n in job.images.left_out.items()}
    with Shards(job.output, job.digest) as shards:
        if others := shards.others():
            shown.note(
                f"{shards.work} also holds {others} unfinished conversion(s) with other options, data or weights; "
                "they are kept. Remove the folder if you do not need them."
            )
        if done := len(shards):
            shown.note(f"{done} of {len(source.counts)} classes were finished before and are kept")
        clock = time.monotonic()
        timing: dict[str, float | None] = dict(convert_classes(job.backbone, source, job.options, shards, bars))
        shown.detail(f"classes done after {time.monotonic() - clock:.1f} s")
        clock = time.monotonic()
        data = {"split": job.images.root.name, "left_out": left_out}
        result = assemble_model(job.backbone, shards, job.options, data=data, progress=bars)
        timing |= {"head": time.monotonic() - clock, "residual": None}
        check_skipped(result.card.data["skipped"], result.card.data["images"], max_skipped)
        size = save_model(job.output, result, job.backbone.network.state_dict() if job.embed else None)
        shards.discard()
    return result, timing, size


def check_skipped(skipped: list[Mapping[str, str]], read: int, most: float) -> None:
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


def conversion_summary(model: "PrototypeModel", output: Path) -> dict[str, Any]:
    """The figures of `protonmf.conversion/1`, without the times."""
    card = model.card
    return {
        "schema": "protonmf.conversion/1",
        "model": card.source.name,
        "output": str(output),
        "classes": len(card.classes),
        "classes_with_images": len(model.active_classes),
        "prototypes": len(model.prototypes),
        "images": card.data["images"],
        "skipped": card.data["skipped"],
        "left_out": card.data["left_out"],
        "readout": card.readout,
        "max_abs_logit_difference": card.readout["max_abs_logit_difference"],
        **card.measured,
    }


def _digest(backbone: "Backbone", images: "LabelledImages", options: ConversionOptions) -> str:
    """Of everything that decides the result: shards of another conversion are never mixed in."""
    import hashlib
    import json

    from protonmf_cli.versions import installed_versions

    parts = {
        "options": asdict(options),
        "weights": backbone.source.digest,
        "rows": [backbone.readout.kind, backbone.rows_option],
        "preprocessing": asdict(backbone.preprocessing),
        "data": images.fingerprint(),
        "number": [str(backbone.dtype), backbone.device.type],
        "versions": installed_versions(("protonmf", "torch", "timm")),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _model_arguments(pairs: list[str]) -> dict[str, Any]:
    """key=value words as Python values: numbers, true/false, else text."""
    import ast

    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"--model-arg {pair!r} is not of the form key=value.")
        try:
            found[key] = {"true": True, "false": False}.get(text.lower(), ast.literal_eval(text))
        except (ValueError, SyntaxError):
            found[key] = {"true": True, "false": False}.get(text.lower(), text)
    return found


def _warn_about(backbone: "Backbone", images: "LabelledImages", shown: Shown) -> None:
    if not backbone.readout.spatial:
        shown.warn(
            f"{backbone.source.name} is read through one row per image ({backbone.readout.kind}; spatial = false): "
            "contributions are exact, but no position can be shown."
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


def _show_plan(job: _Job, shown: Shown, as_json: bool) -> None:
    """What would be done: readout, classes, disk and time, from one small batch."""
    from protonmf_cli.library import image_reader

    files = job.images.of(job.images.counts)
    reader = image_reader(job.backbone, batch_size=8, workers=job.workers)
    start = time.monotonic()
    batch = next(reader.batches(files[:8]))
    if len(batch.crops):
        job.backbone.read(batch.crops)
    per_image = (time.monotonic() - start) / max(1, len(batch.sources) + len(batch.skipped))
    width = job.backbone.readout.vectors.shape[1]
    prototypes = job.options.prototypes * len(job.images.counts)
    plan = {
        "schema": "protonmf.plan/1",
        "model": job.backbone.source.name,
        "output": str(job.output),
        "readout": job.backbone.readout.kind,
        "spatial": job.backbone.readout.spatial,
        "classes": len(job.backbone.classes),
        "classes_with_images": len(job.images.counts),
        "images": len(files),
        "prototypes": prototypes,
        "bytes_while_working": len(files) * 4 * width + prototypes * job.options.examples * 20_000,
        "seconds": per_image * len(files),
    }
    if as_json:
        shown.json(plan)
        return
    for key, value in plan.items():
        if key != "schema":
            shown.out.print(
                f"{key.replace('_', ' '):>22}  {value:,.0f}"
                if isinstance(value, float)
                else f"{key.replace('_', ' '):>22}  {value}"
            )


def _show_summary(summary: Mapping[str, Any], size: int, shown: Shown) -> None:
    readout, seconds = summary["readout"], summary["seconds"]
    grid = f"{readout['grid'][0]} x {readout['grid'][1]} places" if readout["grid"] else "no places"
    share = summary["residual_share"]
    whole = summary["classes"] - summary["classes_with_images"]
    lines = {
        "classes": f"{summary['classes_with_images']} with images"
        + (f", {whole} without (kept whole, all residual)" if whole else ""),
        "prototypes": f"{summary['prototypes']} from {summary['images']} images"
        + (f", {len(summary['skipped'])} skipped" if summary["skipped"] else ""),
        "readout": f"{readout['kind']}, {grid}, width {readout['width']}",
        "exactness": f"max |logit difference| {summary['max_abs_logit_difference']:.1e}, agreement {summary['agreement']:.2%}",
        "accuracy on these": f"{summary['accuracy_black_box']:.1%} black box, {summary['accuracy_prototype_model']:.1%} prototype model",
        "residual share": "not defined for one class" if share is None else f"{share:.0%} of the logit (median)",
        "time": f"{seconds['total']:.1f} s (network {seconds['extract']:.1f}, NMF {seconds['factorise']:.1f}, head {seconds['head']:.1f})",
    }
    shown.out.print(f"[bold]{summary['output']}[/bold]  {size / 2**20:.1f} MiB, from {summary['model']}")
    for name, text in lines.items():
        shown.out.print(f"{name:>18}  {text}", markup=False)
    for skip in summary["skipped"][:5]:
        shown.note(f"skipped {skip['path']}: {skip['reason']}")
