"""protonmf's own conversions, and its controls: prototypes that mean less."""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from protonmf_cli.maths.amounts import dual
from protonmf_cli.models.class_part import ClassPart
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.response import logit_parts
from protonmf_cli.options import RECIPES, ConversionOptions, NearAs
from protonmf_cli.pipelines.measuring.parts import CONTROLS, control_models, finished_by_count, models_of

from .features import Images, Network
from .measures import Dictionary, Explainer


def options_of(recipe: str, prototypes: int, seed: int) -> ConversionOptions:
    """A recipe as it comes, with a number of prototypes and a seed."""
    return replace(RECIPES[recipe], prototypes=prototypes, seed=seed, stability=False, examples=0, augment="none")


def converted(
    network: Network, prototypes: int, seed: int, recipe: str, *, near: int | None = None, near_as: NearAs = "wholes"
) -> Explainer:
    """What `protonmf convert --recipe RECIPE` makes of the network, with --near if it is given; -1: all classes."""
    options, parts = _parts(network, prototypes, seed, recipe)
    if near is not None:
        options = replace(options, near=near if near >= 0 else len(network.classes) - 1, near_as=near_as)
    return explainer_of(models_of(network.backbone, {prototypes: parts}, options)[prototypes], network)


def control(network: Network, prototypes: int, seed: int, kind: str) -> Explainer:
    """The default conversion with prototypes of a control, of `CONTROLS`."""
    return explainer_of(_controls(network, prototypes, seed)[kind], network, CONTROLS[kind])


@lru_cache(maxsize=1)
def _controls(network: Network, prototypes: int, seed: int) -> dict[str, PrototypeModel]:
    options, parts = _parts(network, prototypes, seed, "default")
    return control_models(network.backbone, parts, options, prototypes)


@lru_cache(maxsize=1)
def _parts(
    network: Network, prototypes: int, seed: int, recipe: str
) -> tuple[ConversionOptions, Mapping[int, ClassPart]]:
    options = options_of(recipe, prototypes, seed)
    return options, finished_by_count(network.backbone, network.readings(), options, [prototypes])[prototypes]


def read_by(model: PrototypeModel, images: Images) -> Tensor:
    """(N, S, D) pooled rows as the model reads them."""
    if model.placed is None:
        return (images.pooled + images.rest)[:, None]
    return torch.stack([images.pooled, images.rest], dim=1)


def explainer_of(model: PrototypeModel, network: Network, said: str = "") -> Explainer:
    """A prototype model as concepts.

    Amounts: code = amount x . d_k, concept = the prototype b_k (less what its ridge leaves to others), so that its
    share of the class's logit is weight x amount. The paper's projections: code = x . b_k, concept = d_k, as
    V . d_k = a_k.
    """
    vectors, by_class = network.vectors, {}
    for c in network.classes:
        basis = model.basis(c).double()
        found = dual(basis, 0.0 if model.amounts is None else model.amounts.ridge)
        if model.amounts is None:
            readers, atoms = basis, found.readers
        else:
            readers, atoms = found.readers, found.carried[:, None] * basis
        by_class[c] = Dictionary(
            atoms=atoms.float(), weights=vectors @ atoms.float().mT, offset=model.bias + _usual(model, vectors),
            encode=partial(_codes, model, readers.float()), shown=model.basis(c),
        )  # fmt: skip
    differences = (logit_parts(model, read_by(model, network.val)).logits - network.val.logits).abs()
    return Explainer(
        by_class=by_class,
        everywhere=None if model.amounts is None else lambda images: logit_parts(model, read_by(model, images)).carried,
        exactness=float(differences.max()),
        said=said or (f"ridge {model.amounts.ridge:g}" if model.amounts else ""),
    )


def _codes(model: PrototypeModel, readers: Tensor, images: Images) -> Tensor:
    return read_by(model, images)[:, 0] @ readers.mT


def _usual(model: PrototypeModel, vectors: Tensor) -> Tensor:
    """(C,) what the rows without a place usually add; nothing where prototypes read all rows."""
    if model.amounts is None or model.placed is None:
        return torch.zeros(len(vectors))
    return vectors @ model.amounts.unplaced_mean
