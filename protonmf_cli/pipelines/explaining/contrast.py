"""Why this class and not that one: both logits on the same amounts."""

import torch

from protonmf_cli.errors import InputError
from protonmf_cli.maths.amounts import dual, weights_of
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Contrast, ContrastRow
from protonmf_cli.pipelines.explaining.explanation import Answer


def contrast_of(model: PrototypeModel, answer: Answer, first: int, second: int) -> Contrast:
    """Where the difference of two logits comes from, row by row; the rows add up to it.

    Amounts are read once, by the dual of all prototypes that either class is connected to, so the classes differ by
    their weights alone. Neither class is there as a whole, for its parts are.

    Args:
        model: that reads amounts.
        answer: of this model.
        first, second: classes.

    Raises:
        InputError: the model does not read amounts, or a class is compared with itself.
    """
    if model.amounts is None:
        raise InputError("this model does not read amounts, so two classes cannot be compared on the same ones.")
    if first == second:
        raise InputError(f"{model.card.classes[first].shown} cannot be compared with itself; name another class.")
    heads = [model.class_head(c) for c in (first, second)]
    together = sorted({j for head in heads for j in head.prototypes if not _is_in_parts(model, j, (first, second))})
    prototypes = model.prototypes[together].cpu().double()
    found = dual(prototypes, model.amounts.ridge)
    read = answer.rows[: model.placed].sum(dim=0)
    amounts = found.readers @ read
    vectors = torch.stack([head.vector for head in heads])
    weights = torch.stack([weights_of(v, prototypes, found.carried) for v in vectors])
    parts = [answer.parts(model, head) for head in heads]
    residual = vectors @ read - weights @ amounts
    order = ((weights[0] - weights[1]) * amounts).abs().argsort(descending=True, stable=True).tolist()
    return Contrast(
        first=first,
        second=second,
        names=(model.card.classes[first].shown, model.card.classes[second].shown),
        rows=tuple(
            ContrastRow(
                prototype=model.number(j),
                prototype_id=j,
                owner_index=int(model.owner[j]),
                owner_name=model.card.classes[int(model.owner[j])].shown,
                amount=float(amounts[k]),
                weights=(float(weights[0, k]), float(weights[1, k])),
            )
            for k, j in ((k, together[k]) for k in order)
        ),
        residual=(float(residual[0]), float(residual[1])),
        unplaced=(float(parts[0].unplaced), float(parts[1].unplaced)),
        bias=(float(parts[0].bias), float(parts[1].bias)),
    )


def _is_in_parts(model: PrototypeModel, prototype: int, classes: tuple[int, int]) -> bool:
    """Whether a prototype is one of two classes as a whole."""
    return bool(model.wholes[prototype]) and int(model.owner[prototype]) in classes
