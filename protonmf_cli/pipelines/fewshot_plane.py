"""The picture of a few-shot model: its training images and prototypes on their two principal axes."""

import torch

from protonmf_cli.maths.spread import spread_of
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Plane
from protonmf_cli.pipelines.fewshot_interpretation import interpret, matching_of


def plane_of(model: PrototypeModel) -> Plane:
    """Principal component analysis of the normalised training features; prototypes are projected onto the same axes.

    Raises:
        InputError: it is a model of another method.
    """
    matching = matching_of(model)
    rows = matching.known
    spread = spread_of(rows)
    count = min(2, len(spread.variances))

    def places(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(spread.positions(values)[:, :count], (0, 2 - count))

    facts = interpret(model).prototypes
    shares = [float(v) / spread.total for v in spread.variances[:count]] + [0.0] * (2 - count)
    return Plane(
        samples=places(rows).numpy(),
        labels=matching.samples.labels.numpy(),
        prototypes=places(model.prototypes.double()).numpy(),
        means=places(torch.stack([f.spread.mean for f in facts])).numpy(),
        winners=tuple(model.owner.tolist()),
        names=tuple(name.shown for name in model.card.classes),
        shares=(shares[0], shares[1]),
        flagged=tuple(f.prototype for f in facts if f.kind != "pure"),
    )
