"""What an attention layer did in one pass: how much of every token its first queries took, and of what.

Attention layers differ in norms, rotary embeddings, biases and masks, but nearly all end in torch's
`scaled_dot_product_attention` or its `MultiheadAttention`, or multiply the values by weights that add up to one over
the tokens. Those are caught here; anything else (causal masks, einsum) is not noted.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from protonmf_cli.models.readouts.hooks import hooked

PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


@dataclass(frozen=True)
class Attended:
    """What one call did for the first Q queries."""

    share: Tensor
    """(B, heads, Q, N) how much of each token; adds up to one over the tokens."""
    value: Tensor
    """(B, heads, N, d)"""

    def writes(self) -> Tensor:
        """(B, Q, N, heads d) what each query takes of each token; their sum over N is the layer's output for it."""
        taken = self.share[..., None] * self.value[:, :, None]
        return taken.permute(0, 2, 3, 1, 4).flatten(3)


class _Catch(TorchFunctionMode):
    """Hands every attention that runs to a function."""

    def __init__(self, queries: int, note: Callable[[Attended], None], is_wanted: Callable[[], bool]) -> None:
        super().__init__()
        self.queries = queries
        self.note = note
        self.is_wanted = is_wanted

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_wanted():
            if func is torch.nn.functional.scaled_dot_product_attention:
                self._note_fused(*args, **kwargs)
            elif func is torch.nn.functional.multi_head_attention_forward:
                self._note_projected(*args, **kwargs)
            elif func in PRODUCTS and _is_share(*args[:2]):
                self.note(Attended(args[0][:, :, : self.queries].clone(), args[1]))
        return func(*args, **kwargs)

    def _note_projected(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        width: int,
        heads: int,
        weight: Tensor | None,
        bias: Tensor | None,
        *others: Any,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        **_: Any,
    ) -> None:
        """torch's own layer, which projects inside: tokens (N, B, D), `others` from its learned keys on."""
        added_keys, added_values, zeros = others[:3]
        masked = key_padding_mask is not None or attn_mask is not None
        if weight is None or masked or added_keys is not None or added_values is not None or zeros:
            return
        biases = (None, None, None) if bias is None else bias.chunk(3)
        projected = (
            nn.functional.linear(tokens, part, shift).unflatten(2, (heads, width // heads)).permute(1, 2, 0, 3)
            for tokens, part, shift in zip((query[: self.queries], key, value), weight.chunk(3), biases, strict=True)
        )
        self._note_fused(*projected)

    def _note_fused(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **_: Any,
    ) -> None:
        if query.ndim != 4 or is_causal:
            return
        grouped = query.shape[1] // key.shape[1]
        if grouped > 1:
            key, value = (part.repeat_interleave(grouped, dim=1) for part in (key, value))
        scores = (query[:, :, : self.queries] * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
        if attn_mask is not None:
            mask = attn_mask if attn_mask.shape[-2] == 1 else attn_mask[..., : self.queries, :]
            scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
        self.note(Attended(scores.softmax(dim=-1), value))


def _is_share(left: Tensor, right: Tensor) -> bool:
    """Whether a product is that of attention weights (B, heads, queries, N) and values (B, heads, N, d)."""
    if left.ndim != 4 or right.ndim != 4 or not left.numel():
        return False
    first = left[:, :, 0]
    return bool((first >= 0).all()) and torch.allclose(first.sum(dim=-1), torch.ones_like(first[..., 0]), atol=1e-4)


@contextmanager
def attention_of(modules: Iterable[nn.Module], queries: int = 1) -> Iterator[dict[nn.Module, list[Attended]]]:
    """Every attention that runs inside some modules, by the innermost of them, in order.

    Args:
        modules: those to watch.
        queries: Q, how many of the first queries to note.
    """
    watched = list(dict.fromkeys(modules))
    found: dict[nn.Module, list[Attended]] = defaultdict(list)
    running: list[nn.Module] = []

    def note(attended: Attended) -> None:
        found[running[-1]].append(attended)

    def watch() -> Iterator[RemovableHandle]:
        for module in watched:
            yield module.register_forward_pre_hook(lambda module, _: running.append(module))
            yield module.register_forward_hook(lambda *_: running.pop() and None, always_call=True)

    with hooked(watch()), _Catch(queries, note, lambda: bool(running)):
        yield found
