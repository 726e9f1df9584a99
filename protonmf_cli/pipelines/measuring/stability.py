"""Do the same prototypes come out again: of another seed, of other images of the class?"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from protonmf_cli.maths.metrics import mean_with_interval, median_interval
from protonmf_cli.maths.nmf import match_prototypes
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.class_part import ClassPart, ClassReading, PartExamples
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import logit_parts
from protonmf_cli.models.results import KeptImages
from protonmf_cli.models.sheets import Chart, Column, Table
from protonmf_cli.models.stability import UNSTABLE, is_unstable
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.conversion.factorisation import factorise_readings, half_split

SAMPLED = 8
"""Images of each class whose maps are compared between halves."""


LARGEST = 5
"""Rows of an explanation that are compared between halves."""
COVERED = 0.2
"""Share of the places, the strongest ones, that two maps are compared by."""
OWN_MAPS = f"own maps, overlap of the strongest {COVERED:.0%} (IoU)"


def stability_tables(
    backbone: Backbone,
    model: PrototypeModel,
    readings: Iterable[ClassReading],
    options: ConversionOptions,
    kept: KeptImages,
) -> tuple[Table, ...]:
    """Prototypes matched one to one (Hungarian method) between two seeds and between two halves of the images, and the
    explanations that both halves give of the same labelled images.

    Args:
        backbone: the network.
        model: whose numbers of prototypes are used.
        readings: of the training images, class after class.
        options: of its conversion.
        kept: labelled images.
    """
    halves: list[dict[int, ClassPart]] = [{}, {}]
    table = _stability_table(model, readings, options, halves)
    if not halves[0]:
        return (table,)
    made = [assemble_model(backbone, half, options, data=DataFacts()) for half in halves]
    return table, _explanation_table(made[0].exact, made[1].exact, halves[0], kept, options.seed)


def _half_part(reading: ClassReading, images: Tensor, basis: Tensor, sample: Tensor) -> ClassPart:
    """One half of a class as a finished class, with what the assembly needs of it."""
    nothing = PartExamples(
        score=torch.empty(0, 0), box=torch.empty(0, 0, 4, dtype=torch.int64), map=torch.empty(0, 0, 0, 0),
        image=torch.empty(0, 0, dtype=torch.int64), crops=(), sources=(),
    )  # fmt: skip
    return ClassPart(
        class_index=reading.class_index, prototypes=basis.cpu(), pooled=reading.pooled[images],
        predicted=reading.predicted[images], sample=sample, stability=torch.full((len(basis),), torch.nan),
        examples=nothing, images=tuple(reading.images[n] for n in images.tolist()), skipped=(),
        figures=dict(reading.figures),
    )  # fmt: skip


def _explanation_table(
    one: PrototypeModel, two: PrototypeModel, parts: Mapping[int, ClassPart], kept: KeptImages, seed: int
) -> Table:
    """Whether two models, of two halves of the images, explain labelled images alike.

    Each image is explained for its predicted class; prototypes are matched class by class. Beside it stand two
    controls: explanations of two images of one class by the same half, for one that is the same for every image is
    stable and says nothing; and prototypes of the other half matched at random, own ones among own ones.
    """
    partner, generator = _partners(one, two), torch.Generator().manual_seed(seed)
    pooled = torch.cat(kept.read).double()
    top = logit_parts(one, pooled).logits.argmax(dim=1)
    found: dict[str, list[dict[str, Tensor]]] = {"mean": [], "another": [], "random": []}
    for c in top.unique().tolist():
        x = pooled[top == c, 0]
        first, second = (_rows_of(m, c, x) for m in (one, two))
        if not first.shape[1]:
            continue
        second = second[:, partner]
        used = first.any(dim=0) | second.any(dim=0)
        first, second, own = first[:, used], second[:, used], (one.owner == c)[used]
        found["mean"].append(_alike(first, second))
        found["random"].append(_alike(first, second[:, _drawn_among(own, generator)]))
        if len(x) > 1:
            found["another"].append(_alike(first, first.roll(1, dims=0)))
    values = {
        kind: {name: torch.cat([each[name] for each in classes]) for name in classes[0]} if classes else {}
        for kind, classes in found.items()
    }
    matched, others = _overlaps(one, two, partner, parts)
    values["mean"][OWN_MAPS], values["random"][OWN_MAPS] = matched, others
    return Table(
        name="explanation_stability",
        title="explanations of the same images by prototypes of two halves of the training images",
        columns=(
            Column(key="figure", heading="", kind="text"),
            Column(key="count", heading="compared", kind="count"),
            Column(key="mean", heading="mean"),
            Column(key="another", heading="of another image"),
            Column(key="random", heading="matched at random"),
        ),
        rows=tuple(_explanation_rows(values, seed)),
        charts=(Chart(x="figure", lines=("mean", "another", "random"), y="mean", bars=True),),
        notes=(
            "prototypes are matched one to one within each class; an image is explained for its predicted class",
            "of another image: two images of one class by the same half, what would be as high if explanations were "
            "the same for all images; matched at random: prototypes of the other half, own among own",
        ),
    )


def _explanation_rows(values: Mapping[str, Mapping[str, Tensor]], seed: int) -> Iterable[dict[str, Any]]:
    """One row per figure, with its controls where there are any."""
    for name in values["mean"]:
        numbers = {kind: _defined(found.get(name)) for kind, found in values.items()}
        if len(numbers["mean"]):
            controls = {kind: float(of.mean()) if len(of) else None for kind, of in numbers.items() if kind != "mean"}
            count = len(numbers["mean"])
            yield {"figure": name, "count": count, **mean_with_interval("mean", numbers["mean"], seed=seed), **controls}


def _defined(values: Tensor | None) -> np.ndarray:
    """Those that are numbers."""
    return np.empty(0) if values is None else values[values.isfinite()].double().numpy()


def _partners(one: PrototypeModel, two: PrototypeModel) -> Tensor:
    """(P,) prototype of the second model that is each of the first one's."""
    partner = torch.arange(len(one.prototypes))
    for c in one.active_classes.tolist():
        own, other = one.own(c), two.own(c)
        units = [torch.nn.functional.normalize(m.prototypes[j], dim=1) for m, j in ((one, own), (two, other))]
        partner[own] = torch.tensor(other)[match_prototypes(*units)[0]]
    return partner


def _drawn_among(own: Tensor, generator: torch.Generator) -> Tensor:
    """(s,) the numbers of some rows in random order, own ones (s,) in the places of own ones."""
    order = torch.arange(len(own))
    for places in (own.nonzero()[:, 0], (~own).nonzero()[:, 0]):
        order[places] = places[torch.randperm(len(places), generator=generator)]
    return order


def _alike(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """(n,) how alike n explanations are, of s rows (n, s) each, by every figure."""
    order = [rows.abs().argsort(dim=1, descending=True)[:, :LARGEST] for rows in (first, second)]
    chosen = [torch.zeros_like(first, dtype=torch.bool).scatter(1, each, True) for each in order]
    both, either = chosen[0] & chosen[1], chosen[0] | chosen[1]
    held = [
        (rows.abs() * both).sum(dim=1) / (rows.abs() * each).sum(dim=1)
        for rows, each in zip((first, second), chosen, strict=True)
    ]
    signed = [torch.cat([rows, -rows], dim=1).clamp_min(0) for rows in (first, second)]
    ranks = [float(spearmanr(a, b).statistic) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    return {
        "largest row the same": (order[0][:, 0] == order[1][:, 0]).double(),
        f"{LARGEST} largest rows, Jaccard": both.sum(dim=1) / either.sum(dim=1).double(),
        f"{LARGEST} largest rows, share of their evidence in rows of both": (held[0] + held[1]) / 2,
        "evidence of all rows, overlap (sum of the lesser / sum of the greater)": (
            torch.minimum(*signed).sum(dim=1) / torch.maximum(*signed).sum(dim=1)
        ),
        "rank correlation of the rows (Spearman)": torch.tensor(ranks, dtype=torch.float64),
    }


def _rows_of(model: PrototypeModel, class_index: int, pooled: Tensor) -> Tensor:
    """(n, P) contributions of every prototype to one class; zeros where it has no connection."""
    entries = model.entries(class_index)
    found = pooled.new_zeros(len(pooled), len(model.prototypes))
    found[:, model.weights.prototype[entries]] = model.weights.value[entries] * (pooled @ model.readers(class_index).mT)
    return found


def _overlaps(
    one: PrototypeModel, two: PrototypeModel, partner: Tensor, parts: Mapping[int, ClassPart]
) -> tuple[Tensor, Tensor]:
    """Intersection over union of the strongest places of own maps, on some training images.

    Returns:
        (m,) of matched prototypes, and (k,) of others of the same class.
    """
    matched, others = [torch.empty(0)], [torch.empty(0)]
    for c, part in parts.items():
        count = max(1, round(COVERED * part.sample.shape[1]))
        own = one.own(c)
        if part.sample.shape[1] < 2 or not own:
            continue
        other = [two.own(c).index(int(partner[j])) for j in own]
        sets = []
        for model, order in ((one, list(range(len(own)))), (two, other)):
            maps = part.sample.double() @ model.readers(c)[: len(own)].mT
            chosen = torch.zeros_like(maps).scatter(1, maps.topk(count, dim=1).indices, 1.0)
            sets.append(chosen[:, :, order].bool())
        first, second = sets[0][:, :, :, None], sets[1][:, :, None]
        found = (first & second).sum(dim=1).double() / (first | second).sum(dim=1)
        same = torch.eye(len(own), dtype=torch.bool)
        matched.append(found[:, same].flatten())
        others.append(found[:, ~same].flatten())
    return torch.cat(matched), torch.cat(others)


def _cosine_row(name: str, found: Sequence[Tensor], seed: int) -> dict[str, Any]:
    values = torch.cat(list(found)) if found else torch.empty(0, dtype=torch.float64)
    numbers = values.numpy()
    return {
        "between": name,
        "prototypes": len(numbers),
        "median": float(np.median(numbers)) if len(numbers) else None,
        "median_interval": median_interval(values, seed=seed),
        "low": float(np.quantile(numbers, 0.1)) if len(numbers) else None,
        "unstable": int((numbers < UNSTABLE).sum()),
    }


def _stability_table(
    model: PrototypeModel,
    readings: Iterable[ClassReading],
    options: ConversionOptions,
    halves: Sequence[dict[int, ClassPart]],
) -> Table:
    """Cosines of matched prototypes; `halves` takes both halves of every class."""
    cosines: dict[str, list[Tensor]] = {"two seeds": [], "two halves of the images": []}
    first, second = replace(options, stability=True), replace(options, stability=False, seed=options.seed + 1)
    for reading in readings:
        rank = len(model.own(reading.class_index))
        if not rank:
            continue
        one, two = (factorise_readings([reading], rank, each)[0].factors for each in (first, second))
        cosines["two seeds"].append(match_prototypes(one.basis, two.basis)[1])
        both = one.parts
        if both:
            cosines["two halves of the images"].append(match_prototypes(*both)[1])
            drawn = half_split(len(reading.images), options.seed)
            sample = reading.rows[:SAMPLED].float().cpu()
            for half, images, basis in zip(halves, drawn, both, strict=True):
                half[reading.class_index] = _half_part(reading, images, basis, sample)
    flagged = [
        {"label": model.card.classes[int(model.owner[j])].label, "prototype": model.number(j), "stability": value}
        for j, value in enumerate(() if model.card.conversion is None else model.card.conversion.stability)
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
        rows=tuple(_cosine_row(name, found, options.seed) for name, found in cosines.items()),
        charts=(Chart(x="between", lines=("median", "low"), y="cosine", bars=True),),
        notes=("a start that does not depend on the seed (nndsvda) gives the same prototypes for every seed",),
        facts={"unstable": flagged},
    )
