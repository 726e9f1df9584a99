"""protonmf evaluate: is it still the classifier, and how much do the prototypes carry?"""

import math
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import UsageError
from protonmf_cli.jobs.gates import Gate, check, write_junit
from protonmf_cli.jobs.tables import (
    TableJob,
    check_fit,
    check_names,
    draw_tables,
    make_folder,
    run_tables,
    show_table,
    table_json,
)

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.jobs.images import SkipWatch
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Scores

NAMES = {
    "black_box": "black box",
    "prototype_model": "prototype model",
    "prototypes_only": "prototypes only",
    "residual_only": "residual only",
    "augmented": "augmented prototypes",
}


def evaluate(
    data: arguments.Data,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    split: arguments.Split = "val",
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    table: Annotated[list[str] | None, typer.Option("--table", help="A further table: parts, stability, cancellation, oracle, augmentation, faithfulness, part-quality, pictures, rival. Repeatable.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a figure of each table.")] = None,
    counts: Annotated[str, typer.Option("--counts", help="Numbers of prototypes per class of the table parts.")] = "1,3,5,10",
    limit: Annotated[int, typer.Option("--images", min=1, help="Images of the table faithfulness, as many of each class.")] = 96,
    protopnet: Annotated[list[Path] | None, typer.Option("--protopnet", help="ProtoPNet model file for the table rival, e.g. one per training cycle. Repeatable.")] = None,
    boxes: Annotated[Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: folder or zip of CUB-200-2011's text files.")] = None,
    parts: Annotated[Path | None, typer.Option("--parts", help="Part annotations (folder or zip of CUB-200-2011's text files) for the table part-quality.")] = None,
    cache_features: Annotated[Path | None, typer.Option("--cache-features", help="Folder for what the network gave for the training images.")] = None,
    junit_xml: Annotated[Path | None, typer.Option("--junit-xml", help="Write every gate as a JUnit test case.")] = None,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", min=0, max=1, help="Exit 5 when the prototype model is below.")] = None,
    min_agreement: Annotated[float | None, typer.Option("--min-agreement", min=0, max=1, help="Exit 5 when it agrees less with the black box.")] = None,
    max_residual_share: Annotated[float | None, typer.Option("--max-residual-share", min=-1e9, max=1, help="Exit 5 when the residual carries more.")] = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    offline: arguments.Offline = False,
    as_json: arguments.Json = False,
    force: arguments.Force = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Measure accuracy, agreement and exactness on labelled images in one pass; further tables on request."""
    started = time.monotonic()
    shown = Shown(quiet=quiet)
    for limit_given in (min_accuracy, min_agreement, max_residual_share, max_skipped):
        if limit_given is not None and math.isnan(limit_given):
            raise UsageError("a gate's value is not a number.")
    names = table or []
    check_names(names)
    wanted_counts = _counts(counts)
    if junit_xml is not None:
        from protonmf_cli.files.atomic import check_writable

        check_writable(junit_xml, force)
    if figures is not None:
        make_folder(figures)
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.jobs.images import SkipWatch

    loaded = open_model(
        model, device=device, dtype=dtype, threads=threads, offline=offline, batch_size=batch_size, workers=workers
    )
    check_fit(names, loaded.model)
    from protonmf_cli.files.images.bounding_boxes import images_for
    from protonmf_cli.files.images.datasets import ClassMapping
    from protonmf_cli.models.results import KeptImages
    from protonmf_cli.pipelines.measuring.evaluation import evaluate_model

    mapping = ClassMapping(file=class_map, by_order=class_order)

    def find(wanted: str, of: "PrototypeModel") -> "LabelledImages":
        return images_for(of.card, data, wanted, mapping, boxes)

    images = find(split, loaded.model)
    for note in images.notes:
        shown.note(note)
    watch, kept = SkipWatch(), KeptImages()
    with shown.progress() as bars:
        bars.stage("evaluating", sum(images.counts.values()))
        batches = watch.over(loaded.reader.batches(images.of(images.files)))
        keep = kept if names else None
        scores = evaluate_model(loaded.backbone, loaded.model, batches, images.files, bars, keep=keep)
        gates = _gates(scores, watch, min_accuracy, min_agreement, max_residual_share, max_skipped)
        if junit_xml is not None:
            write_junit(junit_xml, gates, time.monotonic() - started)
            shown.note(f"wrote {junit_xml}")
        watch.check(max_skipped, scores.images, shown)
        job = TableJob(
            loaded=loaded, images=images, kept=kept, counts=wanted_counts, limit=limit, seed=seed, cache=cache_features,
            rivals=tuple(protopnet or ()), annotations=parts, figures=figures, bars=bars,
            find_train=partial(find, "train"),
        )  # fmt: skip
        tables = run_tables(names, job)
    if as_json:
        shown.json(evaluation_json(loaded.model, scores) | {"tables": {n: table_json(t) for n, t in tables.items()}})
    else:
        _show(loaded.model, scores, shown)
        for made in tables.values():
            show_table(made, shown)
    if figures is not None:
        draw_tables(tables, figures, shown)
    check(gates)


def evaluation_json(model: "PrototypeModel", scores: "Scores") -> dict[str, Any]:
    """`protonmf.evaluation/1`."""
    measured = model.card.measured
    unknown = {name: None for name in NAMES if name not in scores.accuracy}
    without = {name: None for name in NAMES if name not in scores.agreement and name != "black_box"}
    return {
        "schema": "protonmf.evaluation/1",
        "model_digest": decision_digest(model),
        "images": scores.images,
        "classes": scores.classes,
        "accuracy": scores.accuracy | unknown,
        "agreement": scores.agreement | without,
        "logit_share": {"prototypes_only": scores.logit_share},
        "restricted": {
            "accuracy": scores.restricted["accuracy"] | unknown,
            "agreement": scores.restricted["agreement"] | without,
        },
        "exactness": {
            "max_abs_logit_difference": scores.max_abs_logit_difference,
            "relative_difference": scores.relative_difference,
        },
        "feature_relative_error": measured.get("feature_relative_error"),
        "head_relative_error": measured.get("head_relative_error"),
        "intervals": scores.intervals,
        "per_class": [
            {"class_index": c, "label": model.card.classes[c].label, **row} for c, row in scores.per_class.items()
        ],
        "tables": {},
    }


def decision_digest(model: "PrototypeModel") -> str:
    """sha256 of what a model decides by: a report knows by it whether an evaluation is of the model it shows."""
    from protonmf_cli.files.atomic import digest_of_tensors

    weights = model.weights
    tensors = {
        "prototypes": model.prototypes, "class": weights.class_index, "prototype": weights.prototype,
        "value": weights.value, "residual": model.residual, "bias": model.bias,
    }  # fmt: skip
    return digest_of_tensors(tensors, model.card.source.digest)


def _show(model: "PrototypeModel", scores: "Scores", shown: Shown) -> None:
    everything, present = len(model.card.classes), scores.classes
    partial = present < everything
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"{scores.images} images", no_wrap=True)
    heads = ["accuracy", "(95 %)", "agreement"]
    if partial:
        heads += [f"accuracy of {present}", f"agreement of {present}"]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for key, name in NAMES.items():
        if key not in scores.accuracy:
            continue
        low, high = scores.intervals["accuracy"][key]
        row = [_percent(scores.accuracy[key]), f"{low:.1%}-{high:.1%}", _percent(scores.agreement.get(key))]
        if partial:
            among = scores.restricted
            row += [_percent(among["accuracy"][key]), _percent(among["agreement"].get(key))]
        table.add_row(name, *row)
    shown.out.print(table)
    if scores.logit_share is not None:
        shown.out.print(
            f"the prototypes carry {scores.logit_share:.0%} of the true class's logit (median), the residual the rest"
        )
    if scores.max_abs_logit_difference is not None:
        shown.out.print(f"largest difference of a logit from the black box: {scores.max_abs_logit_difference:.1e}")
    if partial:
        shown.out.print(f'accuracy is among all {everything} classes; "of {present}" only among the classes present')
    bare = everything - len(model.active_classes)
    if bare and model.is_additive:
        shown.note(
            f"{bare} classes have no prototypes: with the prototypes alone they answer with their bias, and with the "
            f"residual alone they have their whole logit. Compare those two rows among the {present} classes."
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _gates(
    scores: "Scores",
    watch: "SkipWatch",
    min_accuracy: float | None,
    min_agreement: float | None,
    max_residual_share: float | None,
    max_skipped: float,
) -> list[Gate]:
    """The thresholds that were given, with what was measured; --max-skipped always counts."""
    skipped = len(watch.skipped)
    measured = {
        "min-accuracy": (min_accuracy, scores.accuracy["prototype_model"]),
        "min-agreement": (min_agreement, scores.agreement.get("prototype_model")),
        "max-residual-share": (max_residual_share, None if scores.logit_share is None else 1 - scores.logit_share),
        "max-skipped": (max_skipped, skipped / (scores.images + skipped)),
    }
    return [Gate(name=n, limit=limit, value=value) for n, (limit, value) in measured.items() if limit is not None]


def _counts(words: str) -> tuple[int, ...]:
    found = [word.strip() for word in words.split(",")]
    if not all(word.isdecimal() and int(word) for word in found):
        raise UsageError(f"--counts {words!r} is not a list of numbers from 1, e.g. 1,3,5,10.")
    return tuple(sorted({int(word) for word in found}))
