"""The whole method for several numbers of prototypes, the network run once (the paper's Table 3 and Figure 5)."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.maths.metrics import logit_share, mean_with_interval, median_interval, median_share
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.part import ClassPart, ClassReading
from protonmf_cli.models.prototype import LogitParts, PrototypeModel, logit_parts
from protonmf_cli.models.results import Chart, Column, KeptImages, Table
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.assembly import assemble_model
from protonmf_cli.pipelines.conversion import factorise_classes
from protonmf_cli.pipelines.progress import SILENT, Progress

COUNTS = (1, 3, 5, 10)
"""Numbers of prototypes per class in the paper's Table 3."""
PARTS = ("prototypes_only", "residual_only", "augmented", "black_box")


def convert_with_counts(
    backbone: Backbone,
    readings: Iterable[ClassReading],
    options: ConversionOptions,
    counts: Sequence[int] = COUNTS,
    progress: Progress = SILENT,
) -> dict[int, PrototypeModel]:
    """One model per number of prototypes; a class with too few rows takes as many as it can.

    Args:
        backbone: the network.
        readings: of the training images, class after class.
        options: everything but the number.
        counts: prototypes per class.
    """
    plain = replace(options, examples=0, stability=False)
    parts: dict[int, dict[int, ClassPart]] = {count: {} for count in counts}
    for reading in readings:
        most = min(reading.rows.flatten(0, 1).shape)
        for count in counts:
            wanted = replace(plain, prototypes=min(count, most))
            parts[count][reading.class_index] = factorise_classes(backbone, [reading], wanted, _no_picture)[0]
    models = {}
    for count, finished in parts.items():
        sizes = [len(part.prototypes) for part in finished.values()]
        others = sum(sizes) - max(sizes)
        wanted = replace(plain, prototypes=count, borrow=min(plain.borrow, others))
        models[count] = assemble_model(backbone, finished, wanted, data={"left_out": {}}, progress=progress)
    return models


def _no_picture(_: Tensor) -> bytes:
    return b""


def parts_table(models: dict[int, PrototypeModel], kept: KeptImages, seed: int) -> Table:
    """Accuracy of each part of the models on labelled images, over all classes and among those present."""
    pooled, target = torch.cat(kept.read), torch.cat(kept.target)
    rows = []
    for count, model in models.items():
        parts = logit_parts(model, pooled)
        answers = _answers(model, parts, pooled)
        shares = logit_share(answers["prototypes_only"], parts.logits, target, model.active_classes)
        row: dict[str, Any] = {"prototypes": count}
        present = target.unique()
        for name, logits in answers.items():
            everywhere = (logits.argmax(dim=1) == target).double().numpy()
            among = (present[logits[:, present].argmax(dim=1)] == target).double().numpy()
            for key, right in ((name, everywhere), (f"restricted_{name}", among)):
                row |= mean_with_interval(key, right, seed=seed)
        row |= {"logit_share": median_share(shares), "logit_share_interval": median_interval(shares, seed=seed)}
        row |= {key: model.card.measured[key] for key in ("feature_relative_error", "head_relative_error")}
        rows.append(row)
    headings = {"prototypes_only": "prototypes only", "residual_only": "residual only", "augmented": "augmented"}
    return Table(
        name="parts",
        title="what each part decides alone, by number of prototypes per class",
        columns=(
            Column(key="prototypes", heading="p", kind="count"),
            *(Column(key=key, heading=text, kind="percent") for key, text in headings.items()),
            *(
                Column(key=f"restricted_{key}", heading=f"{text}, present", kind="percent")
                for key, text in headings.items()
            ),
            Column(key="logit_share", heading="logit share", kind="percent"),
            Column(key="feature_relative_error", heading="feature error"),
            Column(key="head_relative_error", heading="head error"),
        ),
        rows=tuple(rows),
        charts=(
            Chart(x="prototypes", lines=tuple(f"restricted_{key}" for key in PARTS), y="accuracy, classes present"),
            Chart(x="prototypes", lines=("feature_relative_error", "head_relative_error"), y="squared relative error"),
        ),
        notes=(
            "augmented prototypes carry the residual, so their accuracy is the black box's",
            "feature and head errors are of the training images (Figure 5 of the paper)",
        ),
        facts={"reconstruction": models[next(iter(models))].card.options["reconstruction"]},
    )


def _answers(model: PrototypeModel, parts: LogitParts, pooled: Tensor) -> dict[str, Tensor]:
    augmented = model.augmented_vectors() if model.is_augmented else model.head_vectors().float()
    return {
        "prototypes_only": parts.prototypes + parts.bias,
        "residual_only": parts.residual + parts.bias,
        "augmented": pooled @ augmented.mT + model.bias,
        "black_box": parts.logits,
    }
