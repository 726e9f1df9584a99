"""How a model makes evidence of the rows of an image: one of four kinds, and there are no others.

Who adds a kind adds it to `Evidence` and to `EvidenceKind`; mypy then names every `match` that must tell it apart.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from protonmf_cli.maths.nnls import nonnegative_codes
from protonmf_cli.models.amounts import Amounts
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.soft_matching import SoftMatch

__all__ = ["Amounts", "Compared", "Evidence", "NearestPatch", "Projections", "SoftMatch", "Summed"]


@dataclass(frozen=True, kw_only=True)
class Projections:
    """ProtoNMF as published: s_j = sum_n r_n . b_j over all rows."""

    kind: ClassVar[Literal[EvidenceKind.PROJECTIONS]] = EvidenceKind.PROJECTIONS

    def presence(self, rows: Tensor, readers: Tensor) -> Tensor:
        """(T, s) what maps show: non-negative codes of the places (T, D), as projections cannot tell parts apart."""
        return nonnegative_codes(rows.clamp_min(0), readers)


@dataclass(frozen=True, kw_only=True, eq=False)
class NearestPatch:
    """ProtoPNet: s_j = max_n similarity(r_n, b_j) over the rows of the prototype's network."""

    kind: ClassVar[Literal[EvidenceKind.SIMILARITIES]] = EvidenceKind.SIMILARITIES
    member: Tensor | None = None
    """(P,) int64, which of `card.members` a prototype belongs to; None where there is one network."""

    def network_of(self, prototype: int) -> int:
        """Number of the network that a prototype belongs to."""
        return 0 if self.member is None else int(self.member[prototype])

    def of_member(self, number: int, count: int) -> Tensor:
        """Which of `count` prototypes belong to one network."""
        return torch.arange(count) if self.member is None else (self.member == number).nonzero()[:, 0]


Summed = Projections | Amounts
"""Evidence that is a sum over rows."""
Compared = NearestPatch | SoftMatch
"""Evidence that is no sum over rows: such a model has neither residual nor bias."""
Evidence = Summed | Compared
