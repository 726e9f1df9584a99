"""What a prototype model answers to the rows of images: evidence, and logits in parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import assert_never

import torch
from torch import Tensor

from protonmf_cli.maths.similarity import SIMILARITIES, distances
from protonmf_cli.models.evidence import Compared, NearestPatch, SoftMatch, Summed
from protonmf_cli.models.prototype import ClassHead, PrototypeModel, RowSpace


@dataclass(frozen=True, kw_only=True)
class Response:
    """What a model whose evidence does not add up answers to rows (B, T, D)."""

    maps: Tensor
    """(B, T, P) similarities (zero where row and prototype belong to different networks), or what places add to the
    logarithm of the match."""
    evidence: Tensor
    """(B, P) s_j, the maximum of the maps, or the match."""
    logits: Tensor
    """(B, C)"""


@dataclass(frozen=True, kw_only=True)
class LogitParts:
    """Logits of B images, split; the four add up to the logits."""

    prototypes: Tensor
    """(B, C) sum_j w_cj s_j"""
    residual: Tensor
    """(B, C) rho"""
    unplaced: Tensor
    """(B, C) o, "no place": zeros where the prototypes read all rows."""
    bias: Tensor
    """(C,)"""

    @property
    def logits(self) -> Tensor:
        return self.prototypes + self.residual + self.unplaced + self.bias

    @property
    def carried(self) -> Tensor:
        """(B, C) what the prototypes carry alone, with the bias."""
        return self.prototypes + self.bias

    @property
    def left(self) -> Tensor:
        """(B, C) what the prototypes leave, with the bias."""
        return self.residual + self.unplaced + self.bias


def pooled_rows(rows: Tensor, placed: int | None) -> Tensor:
    """(B, S, D) sums of the rows (B, T, D) that prototypes read and, where there are any, of those without a place.

    Args:
        rows: of one or more images, placed ones first.
        placed: how many have a place; None: the prototypes read all of them.
    """
    if placed is None or placed == rows.shape[1]:
        return rows.sum(dim=1, keepdim=True)
    return torch.stack([rows[:, :placed].sum(dim=1), rows[:, placed:].sum(dim=1)], dim=1)


def logit_parts(model: PrototypeModel, pooled: Tensor) -> LogitParts:
    """Split the logits of pooled rows (B, S, D), see `pooled_rows`."""
    return _split(model, pooled, model.prototype_vectors, model.residual, model.bias, model.intercept)


def parts_of_class(model: PrototypeModel, head: ClassHead, pooled: Tensor) -> LogitParts:
    """Split the logit of one class, alone, of pooled rows (B, S, D) in float64: parts are (B, 1), the bias (1,)."""
    bias, intercept = (torch.tensor([value], dtype=torch.float64) for value in (head.bias, head.intercept))
    return _split(model, pooled, head.made[None], head.residual[None], bias, intercept)


def _split(
    model: PrototypeModel, pooled: Tensor, made: Tensor, left: Tensor, bias: Tensor, intercept: Tensor
) -> LogitParts:
    """Of some classes whose rows of the head are made + left, each (n, D)."""
    if model.amounts is None:  # projections are of all rows
        pooled = pooled.sum(dim=1, keepdim=True)
    prototypes, residual = pooled[:, 0] @ made.mT, pooled[:, 0] @ left.mT - intercept
    if pooled.shape[1] == 1 or model.amounts is None:
        nothing = torch.zeros_like(residual)
        return LogitParts(prototypes=prototypes, residual=residual, unplaced=nothing, bias=bias + intercept)
    vectors, mean, rest = made + left, model.amounts.unplaced_mean.to(pooled), pooled[:, 1:].sum(dim=1)
    return LogitParts(
        prototypes=prototypes, residual=residual, unplaced=(rest - mean) @ vectors.mT, bias=bias + vectors @ mean
    )


def parts_of_rows(model: PrototypeModel, rows: Tensor) -> LogitParts:
    """Split the logits of rows (B, T, D) of any kind of model."""
    return parts_of_read(model, read_of(model, rows))


def parts_of_evidence(model: PrototypeModel, evidence: Tensor) -> LogitParts:
    """Split the logits of evidence (B, P) of a model whose prototypes leave no residual."""
    logits = evidence @ model.dense_weights
    nothing = torch.zeros_like(logits)
    return LogitParts(prototypes=logits, residual=nothing, unplaced=nothing, bias=model.bias + model.intercept)


def read_of(model: PrototypeModel, rows: Tensor) -> Tensor:
    """What the decision reads of rows (B, T, D): pooled rows (B, S, D) of an additive model, else evidence (B, P)."""
    return pooled_rows(rows, model.placed) if model.adds_up else evidence_of(model, rows)


def parts_of_read(model: PrototypeModel, read: Tensor) -> LogitParts:
    """Split the logits of what the decision reads: pooled rows (B, S, D) of an additive model, else evidence (B, P)."""
    return logit_parts(model, read) if model.adds_up else parts_of_evidence(model, read)


def respond(model: PrototypeModel, rows: Tensor) -> Response:
    """Maps, evidence and logits of a model whose evidence does not add up for rows (B, T, D)."""
    match compared(model):
        case SoftMatch() as soft:
            evidence, maps = soft.of_rows(rows, model.prototypes)
        case NearestPatch():
            maps = rows.new_zeros(*rows.shape[:2], len(model.prototypes))
            evidence = rows.new_zeros(len(rows), len(model.prototypes))
            for space, chosen, found in _similarities(model, rows):
                maps[:, space.start : space.stop, chosen] = found
                evidence[:, chosen] = found.amax(dim=1)
        case other:
            assert_never(other)
    return Response(maps=maps, evidence=evidence, logits=parts_of_evidence(model, evidence).logits)


def evidence_of(model: PrototypeModel, rows: Tensor) -> Tensor:
    """(B, P) similarity of the most similar row, or match, without the maps, where evidence does not add up."""
    match compared(model):
        case SoftMatch() as soft:
            return soft.of_features(rows.mean(dim=1), model.prototypes)
        case NearestPatch():
            evidence = rows.new_zeros(len(rows), len(model.prototypes))
            for _, chosen, found in _similarities(model, rows):
                evidence[:, chosen] = found.amax(dim=1)
            return evidence
        case other:
            assert_never(other)


def similarity_maps(model: PrototypeModel, rows: Tensor, prototypes: list[int]) -> Tensor:
    """(B, T, p) similarity of every row to some prototypes, or what it adds to their match; for one network."""
    match compared(model):
        case SoftMatch() as soft:
            return soft.of_rows(rows, model.prototypes)[1][:, :, prototypes]
        case NearestPatch():
            (space,) = model.spaces
            return SIMILARITIES[space.similarity](distances(rows, model.prototypes[prototypes], space.similarity))
        case other:
            assert_never(other)


def compared(model: PrototypeModel) -> Compared:
    """How rows are compared with prototypes; of models whose evidence adds up nobody asks that."""
    assert not isinstance(model.evidence, Summed)
    return model.evidence


def summed(model: PrototypeModel) -> Summed:
    """How evidence adds up over rows; of other models nobody asks that."""
    assert not isinstance(model.evidence, Compared)
    return model.evidence


def _similarities(model: PrototypeModel, rows: Tensor) -> Iterator[tuple[RowSpace, Tensor, Tensor]]:
    """For each network its rows' place, its prototypes, and their similarities (B, T_m, P_m)."""
    for number, space in enumerate(model.spaces):
        chosen = model.of_member(number).to(rows.device)
        own = rows[:, space.start : space.stop, : space.width]
        found = distances(own, model.prototypes[chosen, : space.width], space.similarity)
        yield space, chosen, SIMILARITIES[space.similarity](found)
