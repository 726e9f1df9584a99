"""Every hyper-parameter with its default: the only place where defaults live."""

from dataclasses import dataclass, field
from typing import Literal

Init = Literal["abs", "nndsvda", "paper"]
Solver = Literal["mu", "hals"]
RowsOption = Literal["auto", "all-layers", "last-block", "cls", "image"]
MapKind = Literal["contribution", "presence"]
Reconstruction = Literal["functional", "paper"]
Augment = Literal["none", "min-norm", "dynamic", "paper"]
Recipe = Literal["default", "paper"]
Form = Literal["plain", "augmented"]


@dataclass(frozen=True, kw_only=True)
class NmfOptions:
    """Non-negative matrix factorisation of one class's rows (ProtoNMF, eq. 1-3)."""

    init: Init = "nndsvda"
    """Start: |Gaussian|, NNDSVD with filled zeros, or the paper's clipped Gaussian."""
    solver: Solver = "mu"
    """Multiplicative updates, or hierarchical alternating least squares."""
    inner_updates: int = 8
    """Updates of one factor per product with the data (Gillis and Glineur 2012); 1 is the plain rule."""
    balance: float = 0.7
    """Each row's squared error is divided by its norm to twice this power; 0 is the plain objective."""
    tolerance: float = 1e-5
    """Stop when the squared error falls by less than this share of the error at the start."""
    max_iterations: int = 400
    """Stop after this many products with the data in any case."""


PAPER_NMF = NmfOptions(init="paper", inner_updates=1, balance=0.0, tolerance=1e-4, max_iterations=200)
"""Start, update and stopping rule of ProtoNMF as printed."""


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """Black box to prototype model."""

    prototypes: int | None = 3
    """Prototypes per class; None chooses a number for each class, up to `max_prototypes`."""
    max_prototypes: int = 8
    """Largest number that is tried for a class."""
    nmf: NmfOptions = field(default_factory=NmfOptions)
    reconstruction: Reconstruction = "functional"
    """Match the logits on the training images, or the head's weights (ProtoNMF, eq. 4)."""
    borrow: int = 5
    """Most prototypes of other classes that one class may use (functional only)."""
    own_weight: float = 0.05
    """Functional: extra weight of a class's own images, in [0, 1]."""
    augment: Augment = "none"
    """Whether and how prototypes take up the residual (ProtoNMF, eq. 8)."""
    stability: bool = True
    """Whether each prototype is compared between two halves of its class's images."""
    rows: RowsOption = "auto"
    """Which rows the head is read through."""
    examples: int = 5
    """Training patches kept with each prototype, each from another image."""
    batch_size: int = 32
    """Images per pass of the network; a batch never crosses a class."""
    group: int = 1
    """Classes factorised in one batch (1 on a CPU)."""
    memory: int = 4 * 2**30
    """Bytes that one class may take; a larger class is subsampled with the seed."""
    seed: int = 0


RECIPES: dict[str, ConversionOptions] = {
    "default": ConversionOptions(),
    "paper": ConversionOptions(nmf=PAPER_NMF, reconstruction="paper", borrow=0, augment="paper"),
}
"""Whole sets of options; "paper" is ProtoNMF as printed: start, stopping rule, own prototypes, parameter space,
equal distribution of the residual."""
