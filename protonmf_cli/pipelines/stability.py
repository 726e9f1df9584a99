"""Do the same prototypes come out again: of another seed, of other images of the class?"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from protonmf_cli.maths.matching import match_prototypes
from protonmf_cli.maths.metrics import median_interval
from protonmf_cli.models.part import ClassReading
from protonmf_cli.models.prototype import UNSTABLE, PrototypeModel, is_unstable
from protonmf_cli.models.results import Chart, Column, Table
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.factorisation import factorise_readings, halves_of


def stability_table(model: PrototypeModel, readings: Iterable[ClassReading], options: ConversionOptions) -> Table:
    """Prototypes matched one to one (Hungarian method) between two seeds and between two halves of the images.

    Args:
        model: whose numbers of prototypes are used.
        readings: of the training images, class after class.
        options: of its factorisation.
    """
    cosines: dict[str, list[Tensor]] = {"two seeds": [], "two halves of the images": []}
    plain = replace(options, stability=False)
    for reading in readings:
        rank = len(model.own(reading.class_index))
        if not rank:
            continue
        one, two = (
            factorise_readings([reading], rank, replace(plain, seed=seed))[0].factors.basis
            for seed in (options.seed, options.seed + 1)
        )
        cosines["two seeds"].append(match_prototypes(one, two)[1])
        halves = halves_of(reading, rank, plain, options.seed)
        if halves is not None:
            cosines["two halves of the images"].append(match_prototypes(*halves)[1])
    rows = []
    for name, found in cosines.items():
        values = torch.cat(found) if found else torch.empty(0, dtype=torch.float64)
        numbers = values.numpy()
        rows.append(
            {
                "between": name,
                "prototypes": len(numbers),
                "median": float(np.median(numbers)) if len(numbers) else None,
                "median_interval": median_interval(values, seed=options.seed),
                "low": float(np.quantile(numbers, 0.1)) if len(numbers) else None,
                "unstable": int((numbers < UNSTABLE).sum()),
            }
        )
    flagged = [
        {"label": model.card.classes[int(model.owner[j])].label, "prototype": model.number(j), "stability": value}
        for j, value in enumerate(model.card.measured.get("stability", []))
        if is_unstable(value)
    ]
    return Table(
        name="stability",
        title="cosine of matched prototypes",
        columns=(
            Column(key="between", heading="between", kind="text"),
            Column(key="prototypes", heading="prototypes", kind="count"),
            Column(key="median", heading="median"),
            Column(key="low", heading="10 % quantile"),
            Column(key="unstable", heading=f"below {UNSTABLE}", kind="count"),
        ),
        rows=tuple(rows),
        charts=(Chart(x="between", lines=("median", "low"), y="cosine", bars=True),),
        notes=("a start that does not depend on the seed (nndsvda) gives the same prototypes for every seed",),
        facts={"unstable": flagged},
    )
