"""Let the prototypes of a class take up its residual (ProtoNMF, eq. 8 and 9), and say how much that changes them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.residual_shares import AUGMENTATIONS, residual_shares
from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.models.prototype import PrototypeModel, augmented_basis
from protonmf_cli.models.response import summed
from protonmf_cli.models.sheets import Chart, Column, Table
from protonmf_cli.options import Augment
from protonmf_cli.pipelines.progress import SILENT, Progress

FALLBACK: Augment = "min-norm"
"""For classes where a rule divides by a vanishing sum; it never does itself."""
MANY_CHANGES = 10.0
"""Length of b~ - b, in lengths of b, from which a class is named."""


def augment_model(
    model: PrototypeModel, kind: Augment, finished: Mapping[int, ClassPart], progress: Progress = SILENT
) -> PrototypeModel:
    """The same model with residual shares of the classes with images, and what they do in its card's `augmentation`.

    Args:
        model: not augmented.
        kind: the rule; "none" returns the model as it is.
        finished: class -> part with a sample of its rows.
        progress: told about classes that had to fall back and classes whose prototypes change much.
    """
    if kind == "none":
        return model
    samples = ((c, finished[c].sample) for c in model.active_classes.tolist())
    augmented, report = share_out(model, kind, samples)
    _warn(model, report, progress)
    measured = model.card.conversion
    assert measured is not None
    return augmented.measured_as(replace(measured, augmentation=report))


def class_shares(model: PrototypeModel, kind: str, class_index: int) -> tuple[Tensor, bool]:
    """Shares (s,) of one class's entries, and whether the rule had to give way to `FALLBACK`."""
    weights = model.weights.value[model.entries(class_index)].double()
    found = residual_shares(kind, weights)
    fell_back = found is None
    if found is None:
        found = residual_shares(FALLBACK, weights)
    if found is None:  # a class whose weights are all zero
        found = torch.full_like(weights, 1 / len(weights))
    return found.float(), fell_back


def share_out(
    model: PrototypeModel, kind: str, rows: Iterable[tuple[int, Tensor]]
) -> tuple[PrototypeModel, dict[str, Any]]:
    """Residual shares of every class by one rule, and how much its augmented prototypes differ from the original ones.

    Args:
        model: its own shares are replaced.
        kind: a key of `AUGMENTATIONS`.
        rows: class and (n, T, D) rows to compare presence maps on; one class is in memory at a time.

    Returns:
        The model with shares, and the report. kind; fallback: classes where the rule gave way;
        change: length of b~ - b in lengths of b, median and largest; changed_much: classes above `MANY_CHANGES`;
        presence_correlation: of the maps, median over prototypes, and presence_correlation_low: its 10 % quantile.
    """
    shares = model.weights.residual_share.clone()
    changes: list[Tensor] = []
    correlations: list[Tensor] = []
    much, fallback = [], []
    for class_index, sample in rows:
        entries, basis = model.entries(class_index), model.readers(class_index)
        shares[entries], fell_back = class_shares(model, kind, class_index)
        augmented = augmented_basis(basis, model.weights.value[entries], shares[entries], model.residual[class_index])
        change = (augmented - basis).norm(dim=1) / basis.norm(dim=1).clamp_min(torch.finfo(basis.dtype).tiny)
        if fell_back:
            fallback.append(class_index)
        if float(change.max()) > MANY_CHANGES:
            much.append(class_index)
        changes.append(change)
        flat = sample.flatten(0, 1)
        correlations.append(_correlation(*(summed(model).presence(flat, each) for each in (basis, augmented))))
    change, correlation = torch.cat(changes), torch.cat(correlations)
    defined = correlation[correlation.isfinite()].numpy()
    report = {
        "kind": kind,
        "fallback": fallback,
        "change": {"median": float(change.median()), "largest": float(change.max())},
        "changed_much": much,
        "presence_correlation": float(np.median(defined)) if len(defined) else None,
        "presence_correlation_low": float(np.quantile(defined, 0.1)) if len(defined) else None,
    }
    return replace(model, weights=replace(model.weights, residual_share=shares)), report


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """(s,) Pearson correlation of columns; NaN where one of `first` is constant, 0 where one of `second` is."""
    first, second = (codes.double() - codes.double().mean(dim=0) for codes in (first, second))
    size, other = first.norm(dim=0), second.norm(dim=0)
    product = (first * second).sum(dim=0)
    found = torch.where(other > 0, product / (size * other).clamp_min(1e-300), 0.0)
    return torch.where(size > 0, found, torch.nan)


def _warn(model: PrototypeModel, report: Mapping[str, Any], progress: Progress) -> None:
    def names(classes: Sequence[int]) -> str:
        return ", ".join(model.card.classes[c].shown for c in classes[:5]) + (", ..." if len(classes) > 5 else "")

    if report["fallback"]:
        progress.warn(
            f"{len(report['fallback'])} classes are augmented by {FALLBACK} instead of {report['kind']}, because their "
            f"weights nearly cancel: {names(report['fallback'])}."
        )
    if report["changed_much"]:
        progress.warn(
            f"augmented prototypes of {len(report['changed_much'])} classes are more than {MANY_CHANGES:.0f} times as "
            f"long as the change they started from: {names(report['changed_much'])}. Their small weights leave much "
            "to the residual; use them with --form plain."
        )


def augmentation_table(model: PrototypeModel, rows: Mapping[int, Tensor]) -> Table:
    """Every rule on one model: how far prototypes move, and whether their maps still show the same places.

    Args:
        model: prototypes and head; its own shares are left alone.
        rows: class -> (n, T, D) placed rows of images.
    """
    found = []
    for kind in AUGMENTATIONS:
        _, report = share_out(model, kind, rows.items())
        found.append(
            {
                "rule": kind,
                "classes": len(rows),
                "fallback": len(report["fallback"]),
                "change": report["change"]["median"],
                "largest_change": report["change"]["largest"],
                "presence_correlation": report["presence_correlation"],
                "presence_correlation_low": report["presence_correlation_low"],
            }
        )
    return Table(
        name="augmentation",
        title="augmented against original prototypes",
        columns=(
            Column(key="rule", heading="rule", kind="text"),
            Column(key="classes", heading="classes", kind="count"),
            Column(key="fallback", heading="fell back", kind="count"),
            Column(key="change", heading="change, median"),
            Column(key="largest_change", heading="largest"),
            Column(key="presence_correlation", heading="map correlation"),
            Column(key="presence_correlation_low", heading="10 % quantile"),
        ),
        rows=tuple(found),
        charts=(Chart(x="rule", lines=("presence_correlation", "change"), y="", bars=True),),
        notes=(
            "change: length of b~ - b in lengths of b; correlation: of presence maps, median over prototypes",
            f"a class whose weights nearly cancel falls back from a rule to {FALLBACK}",
        ),
    )
