"""Every hyper-parameter with its default: the only place where defaults live."""

from dataclasses import dataclass, field
from typing import Literal

Init = Literal["abs", "nndsvda", "paper"]
Solver = Literal["mu", "hals"]
RowsOption = Literal["auto", "all-layers", "last-block", "cls", "image"]
MapKind = Literal["contribution", "presence"]


@dataclass(frozen=True, kw_only=True)
class NmfOptions:
    """Non-negative matrix factorisation of one class's rows (ProtoNMF, eq. 1-3)."""

    init: Init = "nndsvda"
    """Start: |Gaussian|, NNDSVD with filled zeros, or the paper's clipped Gaussian."""
    solver: Solver = "mu"
    """Multiplicative updates, or hierarchical alternating least squares."""
    inner_updates: int = 8
    """Updates of one factor per product with the data (Gillis and Glineur 2012); 1 is the plain rule."""
    tolerance: float = 1e-4
    """Stop when the squared error falls by less than this share of the error at the start."""
    max_iterations: int = 200
    """Stop after this many products with the data in any case."""


@dataclass(frozen=True, kw_only=True)
class ConversionOptions:
    """Black box to prototype model."""

    prototypes: int = 3
    """Prototypes per class."""
    nmf: NmfOptions = field(default_factory=NmfOptions)
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
