"""What an attention layer did in one pass: how much of every token its first query took, and of what.

timm's attention layers differ in norms, rotary embeddings, biases and masks, but all of them end in torch's
`scaled_dot_product_attention`, whose arguments are caught here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from protonmf_cli.models.readout import Network

FUSED = "fused_attn"
"""Attribute of timm's layers: whether they use torch's own attention."""


@dataclass(frozen=True)
class Attended:
    """The arguments of one call, for the first query alone."""

    query: Tensor
    """(B, heads, 1, d)"""
    key: Tensor
    """(B, heads, N, d)"""
    value: Tensor
    mask: Tensor | None
    """Added to the scores, or True where a token is seen; broadcast to (B, heads, 1, N)."""
    scale: float

    def writes(self) -> Tensor:
        """(B, N, heads d) what the first query takes of each token; their sum is the layer's output for it."""
        scores = (self.query * self.scale) @ self.key.mT
        if self.mask is not None and self.mask.dtype == torch.bool:
            scores = scores.masked_fill(~self.mask, -torch.inf)
        elif self.mask is not None:
            scores = scores + self.mask
        share = scores.softmax(dim=-1)
        return (share.mT * self.value).transpose(1, 2).flatten(2)


class _Caught(TorchFunctionMode):
    """Notes every call of torch's attention."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Attended] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            self.calls.append(_attended(*args, **kwargs))
        return func(*args, **kwargs)


def _attended(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Attended:
    mask = attn_mask if attn_mask is None or attn_mask.shape[-2] == 1 else attn_mask[..., :1, :]
    return Attended(query[:, :, :1], key, value, mask, query.shape[-1] ** -0.5 if scale is None else scale)


@contextmanager
def attention_of(module: Network) -> Iterator[list[Attended]]:
    """Every attention inside a module, in order, while it runs once."""
    changed = [each for each in module.modules() if getattr(each, FUSED, True) is False]
    for each in changed:
        setattr(each, FUSED, True)
    caught = _Caught()
    entered = []

    def begin(*_: object) -> None:
        caught.__enter__()
        entered.append(True)

    def end(*_: object) -> None:
        if entered:
            entered.pop()
            caught.__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
    try:
        yield caught.calls
    finally:
        for handle in handles:
            handle.remove()
        for each in changed:
            setattr(each, FUSED, False)
