"""protonmf evaluate: is it still the classifier, and how much do the prototypes carry?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import GateError

if TYPE_CHECKING:
    from protonmf_cli.models.prototype import PrototypeModel
    from protonmf_cli.models.results import Scores

NAMES = {
    "black_box": "black box",
    "prototype_model": "prototype model",
    "prototypes_only": "prototypes only",
    "residual_only": "residual only",
}


def evaluate(
    data: arguments.Data,
    model: arguments.Model = arguments.DEFAULT_MODEL,
    split: arguments.Split = "val",
    class_map: arguments.ClassMapFile = None,
    class_order: arguments.ClassOrder = False,
    min_accuracy: Annotated[float | None, typer.Option("--min-accuracy", min=0, max=1, help="Exit 5 when the prototype model is below.")] = None,
    min_agreement: Annotated[float | None, typer.Option("--min-agreement", min=0, max=1, help="Exit 5 when it agrees less with the black box.")] = None,
    max_residual_share: Annotated[float | None, typer.Option("--max-residual-share", help="Exit 5 when the residual carries more.")] = None,
    max_skipped: arguments.MaxSkipped = 0.01,
    batch_size: arguments.BatchSize = 32,
    workers: arguments.Workers = None,
    device: arguments.Device = "auto",
    dtype: arguments.Dtype = "float32",
    threads: arguments.Threads = None,
    offline: arguments.Offline = False,
    as_json: arguments.Json = False,
    quiet: arguments.Quiet = False,
) -> None:  # fmt: skip
    """Measure accuracy, agreement and exactness on labelled images, in one pass."""
    shown = Shown(quiet=quiet)
    from protonmf_cli.cli.opened import open_model
    from protonmf_cli.cli.reading import SkipWatch

    loaded = open_model(
        model, device=device, dtype=dtype, threads=threads, offline=offline, batch_size=batch_size, workers=workers
    )
    from protonmf_cli.files.datasets import ClassMapping, find_images
    from protonmf_cli.pipelines.evaluation import evaluate_model

    images = find_images(data, split, loaded.model.card.classes, ClassMapping(file=class_map, by_order=class_order))
    for note in images.notes:
        shown.note(note)
    watch = SkipWatch()
    with shown.progress() as bars:
        bars.stage("evaluating", sum(images.counts.values()))
        batches = watch.over(loaded.reader.batches(images.of(images.files)))
        scores = evaluate_model(loaded.backbone, loaded.model, batches, images.files, bars)
    watch.check(max_skipped, scores.images, shown)
    if as_json:
        shown.json(evaluation_json(loaded.model, scores))
    else:
        _show(loaded.model, scores, shown)
    _check_gates(scores, min_accuracy, min_agreement, max_residual_share)


def evaluation_json(model: "PrototypeModel", scores: "Scores") -> dict[str, Any]:
    """`protonmf.evaluation/1`."""
    measured = model.card.measured
    unknown = {"augmented": None}
    return {
        "schema": "protonmf.evaluation/1",
        "images": scores.images,
        "classes": scores.classes,
        "accuracy": scores.accuracy | unknown,
        "agreement": scores.agreement | unknown,
        "logit_share": {"prototypes_only": scores.logit_share},
        "restricted": {name: values | unknown for name, values in scores.restricted.items()},
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


def _show(model: "PrototypeModel", scores: "Scores", shown: Shown) -> None:
    everything, present = len(model.card.classes), scores.classes
    partial = present < everything
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"{scores.images} images", no_wrap=True)
    heads = ["accuracy", "(95 %)", "agreement"] + (
        [f"accuracy of {present}", f"agreement of {present}"] if partial else []
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for key, name in NAMES.items():
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
    shown.out.print(f"largest difference of a logit from the black box: {scores.max_abs_logit_difference:.1e}")
    if partial:
        shown.out.print(f'accuracy is among all {everything} classes; "of {present}" only among the classes present')
    bare = everything - len(model.active_classes)
    if bare:
        shown.note(
            f"{bare} classes have no prototypes: with the prototypes alone they answer with their bias, and with the "
            f"residual alone they have their whole logit. Compare those two rows among the {present} classes."
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


def _check_gates(
    scores: "Scores", min_accuracy: float | None, min_agreement: float | None, max_residual_share: float | None
) -> None:
    """Raise GateError naming every threshold that was not met."""
    failed = []
    accuracy, agreement = scores.accuracy["prototype_model"], scores.agreement["prototype_model"]
    if min_accuracy is not None and accuracy < min_accuracy:
        failed.append(f"accuracy {accuracy:.4f} is below --min-accuracy {min_accuracy:g}")
    if min_agreement is not None and agreement < min_agreement:
        failed.append(f"agreement {agreement:.4f} is below --min-agreement {min_agreement:g}")
    if max_residual_share is not None:
        share = None if scores.logit_share is None else 1 - scores.logit_share
        if share is None or share > max_residual_share:
            said = "not defined" if share is None else f"{share:.4f}"
            failed.append(f"residual share {said} is above --max-residual-share {max_residual_share:g}")
    if failed:
        raise GateError("; ".join(failed) + ".")
