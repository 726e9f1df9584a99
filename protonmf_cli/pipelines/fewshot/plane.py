"""The picture of a few-shot model: its training images and prototypes on their two principal axes."""

import torch
from torch import Tensor

from protonmf_cli.maths.principal_axes import Spread
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Plane
from protonmf_cli.pipelines.fewshot.interpretation import Interpretation, interpret, matching_of


def plane_of(model: PrototypeModel, found: Interpretation | None = None) -> Plane:
    """Principal component analysis of the normalised training features; prototypes are projected onto the same axes.

    Args:
        model: a few-shot model.
        found: its interpretation, where it is known already.

    Raises:
        InputError: it is a model of another method.
    """
    matching = matching_of(model)
    facts, spread = (found or interpret(model)).prototypes, matching.spread
    shares = [float(v) / spread.total for v in spread.variances[:2]] + [0.0] * 2
    return Plane(
        samples=_places(spread, matching.known).numpy(),
        labels=matching.samples.labels.numpy(),
        prototypes=_places(spread, model.prototypes.double()).numpy(),
        means=_places(spread, torch.stack([f.spread.mean for f in facts])).numpy(),
        winners=tuple(model.owner.tolist()),
        names=tuple(name.shown for name in model.card.classes),
        shares=(shares[0], shares[1]),
        flagged=tuple(f.prototype for f in facts if f.kind != "pure"),
    )


def place_of(model: PrototypeModel, rows: Tensor) -> tuple[float, float]:
    """Where an image lies on the same axes.

    Args:
        model: a few-shot model.
        rows: (T, D) of the image.

    Raises:
        InputError: it is a model of another method.
    """
    matching = matching_of(model)
    feature = matching.normaliser(rows.double().mean(dim=0, keepdim=True))
    x, y = _places(matching.spread, feature)[0].tolist()
    return x, y


def _places(spread: Spread, values: Tensor) -> Tensor:
    """(N, 2) on the first two axes; zero on axes that do not exist."""
    found = spread.positions(values)[:, :2]
    return torch.nn.functional.pad(found, (0, 2 - found.shape[1]))
