"""Logits without a prototype, for many images and prototypes at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from protonmf_cli.models.prototype import PrototypeModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Removal:
    """What each prototype's edit takes from logits: L' = L - s_k u_k, for images with the scores s_k.

    Of models that read amounts the edit is that of every class, so s_k = (x - m) . e_k and u_k = V b_k, with x the sum
    of all rows of an image and m the mean of those without a place (see `apply_edits`); of others it is that of the
    prototype's own class alone.
    """

    model: PrototypeModel
    effects: Tensor
    """(P, C) u_k"""
    readers: Tensor | None
    """(P, D) what scores are read with; None where evidence does not add up."""

    def scores(self, read: Tensor) -> Tensor:
        """(N, P) of pooled rows (N, S, D), see `models.response.read_of`, or of evidence (N, P)."""
        if self.readers is None:
            return read
        whole = read.sum(dim=1)
        amounts = self.model.amounts
        return (whole if amounts is None else whole - amounts.unplaced_mean) @ self.readers.mT

    def without(self, logits: Tensor, scores: Tensor, prototypes: slice) -> Tensor:
        """(N, p, C) logits of every image with each of p prototypes taken out, one at a time.

        Args:
            logits: (N, C) of the model.
            scores: (N, P) of the same images.
            prototypes: which ones.
        """
        return logits[:, None] - scores[:, prototypes, None] * self.effects[prototypes]

    def each_without(self, logits: Tensor, scores: Tensor, prototype: Tensor) -> Tensor:
        """(N, C) logits of every image with a prototype (N,) of its own taken out."""
        return logits - scores.gather(1, prototype[:, None]) * self.effects[prototype]


def removal_of(model: PrototypeModel) -> Removal:
    """Of every prototype, on the device of the model's tensors."""
    if (amounts := model.amounts) is not None:
        scale = (amounts.edit_readers * model.prototypes).sum(dim=1, keepdim=True)
        head = model.prototype_vectors + model.residual
        return Removal(model=model, effects=model.prototypes @ head.mT, readers=amounts.edit_readers / scale)
    own = torch.nn.functional.one_hot(model.owner, len(model.bias)).to(model.bias)
    readers = model.prototypes if model.adds_up else None
    return Removal(model=model, effects=model.dense_weights * own, readers=readers)
