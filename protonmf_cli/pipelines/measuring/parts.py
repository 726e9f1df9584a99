"""The whole method for several numbers of prototypes, the network run once (the paper's Table 3 and Figure 5)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.maths.amounts import cancellation
from protonmf_cli.maths.metrics import logit_share, mean_with_interval, median_interval, median_share
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.class_part import ClassPart, ClassReading
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import LogitParts, logit_parts
from protonmf_cli.models.results import KeptImages
from protonmf_cli.models.sheets import Chart, Column, Table
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.conversion.classes import factorise_classes
from protonmf_cli.pipelines.conversion.factorisation import factorise_rows
from protonmf_cli.pipelines.progress import SILENT, Progress

PARTS = ("prototypes_only", "residual_only", "augmented", "black_box")


def finished_by_count(
    backbone: Backbone, readings: Iterable[ClassReading], options: ConversionOptions, counts: Iterable[int]
) -> dict[int, dict[int, ClassPart]]:
    """Number of prototypes -> class -> finished part; a class with too few rows takes as many as it can.

    Args:
        backbone: the network.
        readings: of the training images, class after class.
        options: everything but the number.
        counts: prototypes per class.
    """
    plain = replace(options, examples=0, stability=False)
    parts: dict[int, dict[int, ClassPart]] = {count: {} for count in counts}
    for reading in readings:
        images, places, width = reading.rows.shape
        most = min(images * places, width)
        for count, finished in parts.items():
            wanted = replace(plain, prototypes=min(count, most))
            finished[reading.class_index] = factorise_classes(backbone, [reading], wanted, _no_picture)[0]
    return parts


def models_of(
    backbone: Backbone,
    finished: Mapping[int, Mapping[int, ClassPart]],
    options: ConversionOptions,
    progress: Progress = SILENT,
) -> dict[int, PrototypeModel]:
    """One model per number of prototypes, from `finished_by_count`."""
    return {count: _model_of(backbone, parts, options, count, progress) for count, parts in finished.items()}


def _model_of(
    backbone: Backbone, parts: Mapping[int, ClassPart], options: ConversionOptions, count: int, progress: Progress
) -> PrototypeModel:
    wanted = replace(options, prototypes=count, examples=0, stability=False)
    return assemble_model(backbone, parts, wanted, data=DataFacts(), progress=progress)


def _no_picture(_: Tensor) -> bytes:
    return b""


CONTROLS = {
    "shuffled": "of label-shuffled images",
    "gaussian": "Gaussian directions",
    "patches": "patches at random",
}
"""Prototypes that mean less than those of a class, which every share and accuracy stands beside."""


def control_models(
    backbone: Backbone, parts: Mapping[int, ClassPart], options: ConversionOptions, count: int
) -> dict[str, PrototypeModel]:
    """One model per control, of as many prototypes as the classes' own.

    Controls: factorised from images of which each class gets as many as it has samples, drawn from all classes;
    Gaussian directions, without their sign where no row is signed; rows of the class at random.

    Args:
        backbone: the network.
        parts: class -> finished part with `count` prototypes, of `finished_by_count`.
        options, count: as there.
    """
    return {
        kind: _model_of(backbone, _control_parts(kind, parts, options), options, count, SILENT) for kind in CONTROLS
    }


def _control_parts(kind: str, parts: Mapping[int, ClassPart], options: ConversionOptions) -> dict[int, ClassPart]:
    """The finished classes with prototypes of a control in place of their own."""
    generator = torch.Generator().manual_seed(options.seed)
    pool = torch.cat([part.sample for part in parts.values()])
    signed = bool((pool < 0).any()) and options.reconstruction != "paper"
    drawn = {}
    for c, part in parts.items():
        count = len(part.prototypes)
        if kind == "shuffled":
            rows = pool[torch.randperm(len(pool), generator=generator)[: max(len(part.sample), count)]]
            found = factorise_rows(rows, count, options, options.seed + c).basis
        elif kind == "gaussian":
            found = torch.randn(part.prototypes.shape, generator=generator)
            found = found if signed else found.abs()
        else:
            rows = part.sample.flatten(0, 1)
            found = rows[torch.randperm(len(rows), generator=generator)[:count]]
            found = found.clamp_min(0) if options.reconstruction == "paper" else found
        drawn[c] = replace(part, prototypes=torch.nn.functional.normalize(found.float(), dim=1))
    return drawn


def parts_table(
    models: dict[int, PrototypeModel], controls: Mapping[str, PrototypeModel], kept: KeptImages, seed: int
) -> Table:
    """Accuracy and agreement of each part of the models on labelled images, over all classes and among those present.

    Args:
        models: number of prototypes -> model.
        controls: of `control_models`, in the same table.
        kept: labelled images.
        seed: of the intervals.
    """
    pooled, target = torch.cat(kept.read), torch.cat(kept.target)
    named = [(str(count), count, model) for count, model in models.items()]
    named += [(CONTROLS[kind], len(model.own(int(model.owner[0]))), model) for kind, model in controls.items()]
    rows = [
        {"prototypes": count, "named": name, **_part_scores(model, pooled, target, seed)}
        for name, count, model in named
    ]
    for row in rows[len(models) :]:
        row["feature_relative_error"] = None  # controls describe no features
    headings = {"prototypes_only": "prototypes only", "residual_only": "residual only", "augmented": "augmented"}
    return Table(
        name="parts",
        title="what each part decides alone, by number of prototypes per class, beside prototypes that mean nothing",
        columns=(
            Column(key="named", heading="p", kind="text"),
            *(Column(key=key, heading=text, kind="percent") for key, text in headings.items()),
            *(
                Column(key=f"restricted_{key}", heading=f"{text}, present", kind="percent")
                for key, text in headings.items()
            ),
            Column(key="restricted_agreement", heading="agreement of prototypes only, present", kind="percent"),
            Column(key="logit_share", heading="logit share", kind="percent"),
            Column(key="feature_relative_error", heading="feature error"),
            Column(key="head_relative_error", heading="head error"),
        ),
        rows=tuple(rows),
        charts=(
            Chart(
                x="named", bars=True, y="accuracy, classes present",
                lines=tuple(f"restricted_{key}" for key in PARTS if key != "augmented"),
            ),
            Chart(x="named", bars=True, lines=("head_relative_error", "logit_share"), y="share"),
        ),
        notes=(
            "augmented prototypes carry the residual, so their accuracy is the black box's",
            "feature and head errors are of the training images (Figure 5 of the paper)",
            f"controls have {named[-1][1] if controls else 0} prototypes per class: "
            f"{'; '.join(CONTROLS.values())}. A share says something beside theirs",
        ),
        facts={"reconstruction": models[next(iter(models))].card.stored_options["reconstruction"]},
    )  # fmt: skip


def _part_scores(model: PrototypeModel, pooled: Tensor, target: Tensor, seed: int) -> dict[str, Any]:
    """Accuracy and agreement of each part of one model, with intervals."""
    parts = logit_parts(model, pooled)
    answers = _answers(model, parts, pooled)
    shares = logit_share(answers["prototypes_only"], parts.logits, target, model.active_classes)
    row: dict[str, Any] = {}
    present = target.unique()
    for part, logits in answers.items():
        everywhere = (logits.argmax(dim=1) == target).double().numpy()
        among = present[logits[:, present].argmax(dim=1)]
        same = among == present[answers["black_box"][:, present].argmax(dim=1)]
        for key, right in ((part, everywhere), (f"restricted_{part}", (among == target).double().numpy())):
            row |= mean_with_interval(key, right, seed=seed)
        if part == "prototypes_only":
            row |= mean_with_interval("restricted_agreement", same.double().numpy(), seed=seed)
    row |= {"logit_share": median_share(shares), "logit_share_interval": median_interval(shares, seed=seed)}
    figures = model.card.conversion
    assert figures is not None
    return row | {
        "feature_relative_error": figures.feature_relative_error,
        "head_relative_error": figures.head_relative_error,
    }


def _answers(model: PrototypeModel, parts: LogitParts, pooled: Tensor) -> dict[str, Tensor]:
    augmented = model.augmented_vectors() if model.is_augmented else model.head_vectors().float()
    return {
        "prototypes_only": parts.carried,
        "residual_only": parts.left,
        "augmented": pooled.sum(dim=1) @ augmented.mT + model.bias,
        "black_box": parts.logits,
    }


def cancellation_table(model: PrototypeModel, kept: KeptImages, seed: int) -> Table:
    """How far the rows of explanations cancel, and whose row is the largest, on labelled images.

    Each image is explained for its predicted class. Of several labels there is no right or wrong one to tell apart.
    """
    pooled, target = torch.cat(kept.read).double(), torch.cat(kept.target)
    top = logit_parts(model.exact, pooled).logits.argmax(dim=1)
    kinds = {"all images": torch.ones(len(top), dtype=torch.bool)}
    if not model.multi_label:
        kinds |= {"right": top == target, "wrong": top != target}
    sizes, own, negative, five = _row_figures(model.exact, pooled, top)
    rows = []
    for name, among in kinds.items():
        chosen = among & sizes.isfinite()
        if not chosen.any():
            continue
        numbers = sizes[chosen].numpy()
        row: dict[str, Any] = {"images_are": name, "images": int(chosen.sum())}
        row |= {"median": float(np.median(numbers)), "high": float(np.quantile(numbers, 0.9))}
        row |= {"five": float(five[chosen].median())}
        row |= mean_with_interval("own", own[chosen].numpy(), seed=seed)
        row |= mean_with_interval("negative", negative[chosen].numpy(), seed=seed)
        rows.append(row)
    if not rows:
        raise InputError("no image is predicted to be a class whose explanation has rows.")
    return Table(
        name="cancellation",
        title="how far the rows of an explanation of the predicted class cancel",
        columns=(
            Column(key="images_are", heading="images", kind="text"),
            Column(key="images", heading="number", kind="count"),
            Column(key="median", heading="sum of sizes / size of sum, median"),
            Column(key="high", heading="90 % quantile"),
            Column(key="own", heading="largest row is the class's own", kind="percent"),
            Column(key="five", heading="five largest hold", kind="percent"),
            Column(key="negative", heading="of these five against", kind="percent"),
        ),
        rows=tuple(rows),
        charts=(Chart(x="images_are", lines=("median", "high"), y="sum of sizes / size of sum", bars=True),),
        notes=("1: all rows have one sign",),
    )


def _row_figures(exact: PrototypeModel, pooled: Tensor, top: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of each image's rows for its predicted class; NaN where that has none.

    Args:
        exact: the model in float64.
        pooled: (N, S, D)
        top: (N,) predicted classes.

    Returns:
        (N,) sum of sizes over size of the sum; whether the largest row is the class's own; share of the five largest
        that speak against the class; what the five largest hold.
    """
    sizes, own, negative, five = (torch.full((len(top),), torch.nan, dtype=torch.float64) for _ in range(4))
    for c in top.unique().tolist():
        entries, hit = exact.entries(c), top == c
        if not entries:
            continue
        found = exact.weights.value[entries] * (pooled[hit, 0] @ exact.stored_readers(c).mT)
        order = found.abs().argsort(dim=1, descending=True)
        sizes[hit] = cancellation(found)
        mine = exact.owner[exact.weights.prototype[entries]] == c
        own[hit] = mine[order[:, 0]].double()
        largest = found.gather(1, order[:, :5])
        negative[hit] = (largest < 0).double().mean(dim=1)
        five[hit] = largest.sum(dim=1) / found.sum(dim=1)
    return sizes, own, negative, five
