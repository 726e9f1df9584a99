"""The oracle intervention of the paper's Table 4, and what the same edit costs where nothing was wrong."""

from typing import Any, assert_never

import torch
from torch import Tensor

from protonmf_cli.maths.metrics import mean_with_interval
from protonmf_cli.models.evidence import Amounts, NearestPatch, Projections, SoftMatch
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import parts_of_read
from protonmf_cli.models.results import KeptImages
from protonmf_cli.models.sheets import Chart, Column, Table

RULES = ("coefficient", "contribution")


def oracle_table(model: PrototypeModel, kept: KeptImages, seed: int) -> Table:
    """Zero, once, the strongest prototype of the predicted class: in wrong predictions (oracle), and in all.

    The oracle knows which predictions are wrong; the second column shows the edit's price without that knowledge.
    In augmented form a prototype takes its share of the residual with it.
    """
    exact = model.exact
    read, target = torch.cat(kept.read).double(), torch.cat(kept.target)
    present = target.unique()
    rows = []
    for scope, among in (("all classes", torch.arange(len(model.bias))), ("classes present", present)):
        logits = parts_of_read(exact, read).logits[:, among]
        top = logits.argmax(dim=1)
        right = among[top] == target
        for rule in RULES:
            lost = _lost(exact, read, among[top], rule)
            edited = logits.clone()
            edited[torch.arange(len(top)), top] -= lost
            after = among[edited.argmax(dim=1)] == target
            row: dict[str, Any] = {"scope": scope, "rule": rule, "images": len(target)}
            outcomes = {"before": right, "oracle": right | after, "everywhere": after}
            for key, value in outcomes.items():
                row |= mean_with_interval(key, value.double().numpy(), seed=seed)
            row |= {"repaired": int((~right & after).sum()), "broken": int((right & ~after).sum())}
            rows.append(row)
    return Table(
        name="oracle",
        title="zero the strongest prototype of the predicted class, once",
        columns=(
            Column(key="scope", heading="among", kind="text"),
            Column(key="rule", heading="strongest by", kind="text"),
            Column(key="before", heading="before", kind="percent"),
            Column(key="oracle", heading="edited where wrong", kind="percent"),
            Column(key="everywhere", heading="edited everywhere", kind="percent"),
            Column(key="repaired", heading="repaired", kind="count"),
            Column(key="broken", heading="broken if everywhere", kind="count"),
        ),
        rows=tuple(rows),
        charts=(Chart(x="rule", by="scope", lines=("before", "oracle", "everywhere"), y="accuracy", bars=True),),
        notes=(
            "the oracle knows which predictions are wrong: its gain is not free, "
            "the same edit on right predictions breaks some of them",
        ),
    )


def _evidence(model: PrototypeModel, read: Tensor, class_index: int) -> tuple[Tensor, Tensor]:
    """(B, s) evidence of a class's connections, and what the rows without a place add to it."""
    nothing = torch.zeros(())
    match model.evidence:
        case NearestPatch() | SoftMatch():
            return read[:, model.weights.prototype[model.entries(class_index)]], nothing
        case Projections():
            return read[:, 0] @ model.stored_readers(class_index).mT, nothing
        case Amounts(unplaced_mean=mean):
            readers = model.stored_readers(class_index)
            beside = (read[:, 1:].sum(dim=1) - mean) @ readers.mT if read.shape[1] > 1 else nothing
            return read[:, 0] @ readers.mT, beside
        case other:
            assert_never(other)


def _lost(model: PrototypeModel, read: Tensor, predicted: Tensor, rule: str) -> Tensor:
    """(B,) what zeroing a prototype takes from each image's predicted class; 0 where it has none.

    That is its contribution and, of amounts, what it has of "no place".
    """
    lost = torch.zeros(len(read), dtype=torch.float64)
    for class_index in predicted.unique().tolist():
        entries = model.entries(class_index)
        if not entries:
            continue
        weights = model.weights.value[entries]
        hit = predicted == class_index
        evidence, unplaced = _evidence(model, read[hit], class_index)
        contribution, beside = evidence * weights, unplaced * weights
        strongest = weights.argmax().expand(int(hit.sum())) if rule == "coefficient" else contribution.argmax(dim=1)
        lost[hit] = (contribution + beside).gather(1, strongest[:, None])[:, 0]
    return lost
