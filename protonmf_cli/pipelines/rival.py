"""Our prototypes against those of a ProtoPNet, as a basis for a class's features (the paper's Table 1)."""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.errors import ModelFileError
from protonmf_cli.maths.metrics import mean_with_interval
from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.models.part import ClassReading
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Chart, Column, Table
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.factorisation import factorise_readings

MOST = 10
"""Prototypes per class in the paper's Table 1."""


def check_rival(model: PrototypeModel, rival: PrototypeModel, name: str) -> None:
    """Refuse prototypes that do not live among the same features.

    Raises:
        ModelFileError: not a ProtoPNet, another backbone, or another width.
    """
    if rival.card.method != "protopnet":
        raise ModelFileError(f"{name} holds a {rival.card.method} model, but --protopnet needs a ProtoPNet.")
    ours, theirs = model.card.source, rival.card.source
    if ours.digest != theirs.digest or rival.prototypes.shape[1] != model.prototypes.shape[1]:
        raise ModelFileError(
            f"{name} has the backbone {theirs.architecture} (weights {theirs.digest[:12]}, width "
            f"{rival.prototypes.shape[1]}), this model {ours.architecture} (weights {ours.digest[:12]}, width "
            f"{model.prototypes.shape[1]}): their prototypes do not live among the same features."
        )


def rival_table(
    model: PrototypeModel,
    rival: PrototypeModel,
    readings: Iterable[ClassReading],
    options: ConversionOptions,
    seed: int,
) -> Table:
    """Relative error of each class's rows rebuilt from 10 prototypes of either kind, coefficients optimal in both."""
    errors: dict[str, list[float]] = {"NMF prototypes": [], "ProtoPNet prototypes": []}
    for reading in readings:
        theirs = rival.own(reading.class_index)[:MOST]
        if not theirs or not len(reading.images):
            continue
        rows = reading.rows.flatten(0, 1)
        ours = factorise_readings([reading], min(MOST, *rows.shape), replace(options, stability=False))[0].factors.basis
        errors["NMF prototypes"].append(_error(rows, ours))
        errors["ProtoPNet prototypes"].append(_error(rows, rival.prototypes[theirs].to(rows)))
    found = []
    for name, values in errors.items():
        numbers = np.array(values)
        if not len(numbers):
            raise ModelFileError("the ProtoPNet file has no prototypes for the classes of these images.")
        found.append(
            {
                "prototypes": name,
                "classes": len(numbers),
                **mean_with_interval("error", numbers, seed=seed),
                "deviation": float(numbers.std()),
            }
        )
    return Table(
        name="rival",
        title=f"features of a class rebuilt from {MOST} prototypes (squared relative error)",
        columns=(
            Column(key="prototypes", heading="", kind="text"),
            Column(key="classes", heading="classes", kind="count"),
            Column(key="error", heading="error"),
            Column(key="deviation", heading="deviation over classes"),
        ),
        rows=tuple(found),
        charts=(Chart(x="prototypes", lines=("error",), y="squared relative error", bars=True),),
    )


def _error(rows: Tensor, basis: Tensor) -> float:
    left = rows - nonnegative_codes(rows, basis) @ basis
    return float(left.square().sum(dtype=torch.float64) / rows.square().sum(dtype=torch.float64))
