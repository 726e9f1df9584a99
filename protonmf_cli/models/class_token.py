"""Class-token vision transformers: what every token wrote into the class token, layer by layer.

With t_n the sum over layers of token n's attention write into the class token, e the class token that
enters the first block plus all attention output biases, and m the sum of the MLP writes,

    final class token = sum_n t_n + e + m

and the last norm, folded over the sum, turns each part into a row that the classifier reads. The patches'
rows have a place; the class token's write to itself, registers, e and m have none.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from protonmf_cli.models.norms import FoldedNorm
from protonmf_cli.models.pooled_heads import patch_grid, token_names
from protonmf_cli.models.readout import Network, Reading, Readout, find_classifier, record_head, weight_and_bias


@dataclass(frozen=True, kw_only=True)
class TokenWritesReadout(Readout):
    """Rows of all blocks from `first_block` on; earlier blocks stay inside the start row."""

    first_block: int
    prefix: int
    norm: FoldedNorm

    def read(self, network: Network, pixels: Tensor) -> Reading:
        with _Recorder(network, self.first_block) as seen:
            logits = network.forward_head(network.forward_features(pixels))
        tokens = seen.writes
        parts = torch.cat(
            [tokens[:, self.prefix :], tokens[:, : self.prefix], seen.start[:, None], seen.mlp[:, None]], dim=1
        )
        return Reading(rows=self.norm.rows(parts, seen.final), logits=logits)


def token_writes(network: Network, features: object, *, first_block: int = 0) -> Readout | None:
    """Readout through the tokens' writes, for a plain VisionTransformer read at its class token; else None."""
    if not isinstance(features, Tensor) or not _is_plain(network):
        return None
    logits, calls = record_head(network, features)
    classifier = find_classifier(calls, logits)
    if classifier is None or not torch.equal(classifier.inputs, features[:, 0]):
        return None
    probe = _random_tokens(features)
    norm = FoldedNorm.identify(network.norm, probe, network.norm(probe))
    prefix = int(network.num_prefix_tokens)
    grid = patch_grid(network, features.shape[1] - prefix)
    if norm is None or grid is None:
        return None
    vectors, bias = weight_and_bias(classifier.module)
    first = range(len(network.blocks))[first_block]
    return TokenWritesReadout(
        kind="token-writes",
        vectors=vectors,
        bias=bias + vectors @ norm.shift,
        grid=grid,
        unplaced=(*token_names(prefix), "start and biases", "MLP writes"),
        first_block=first,
        prefix=prefix,
        norm=norm,
    )


def _is_plain(network: Network) -> bool:
    """Pre-norm blocks x + ls1(attn(norm1 x)), x + ls2(mlp(norm2 x)) with one fused qkv and no extra gate."""
    blocks = getattr(network, "blocks", None)
    if not isinstance(blocks, nn.Sequential) or not len(blocks) or getattr(network, "global_pool", "") != "token":
        return False
    return all(
        type(block).__name__ == "Block"
        and type(block.attn).__name__ == "Attention"
        and isinstance(getattr(block.attn, "norm", nn.Identity()), nn.Identity)
        and getattr(block.attn, "gate", None) is None
        for block in blocks
    )


def _random_tokens(features: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(4, features.shape[-1], generator=generator, dtype=torch.float64).to(features)


@dataclass
class _Recorder:
    """Hooks that add up the class token's incoming writes during one forward pass."""

    network: Network
    first_block: int
    writes: Tensor = field(init=False)
    """(B, N, D) sum over layers of each token's attention write."""
    start: Tensor = field(init=False)
    """(B, D) class token entering the first block, plus output biases."""
    mlp: Tensor = field(init=False)
    """(B, D) sum of the MLP writes."""
    final: Tensor = field(init=False)
    """(B, D) class token entering the last norm."""

    def __enter__(self) -> "_Recorder":
        blocks = list(self.network.blocks)[self.first_block :]
        self._handles = [
            blocks[0].register_forward_pre_hook(self._begin),
            self.network.norm.register_forward_pre_hook(self._end),
        ]
        for block in blocks:
            self._handles.append(block.attn.qkv.register_forward_hook(self._attention(block)))
            self._handles.append(block.mlp.register_forward_hook(self._mlp(block)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _begin(self, _: nn.Module, args: tuple) -> None:
        self.start = args[0][:, 0].clone()
        self.writes = torch.zeros_like(args[0])
        self.mlp = torch.zeros_like(self.start)

    def _end(self, _: nn.Module, args: tuple) -> None:
        self.final = args[0][:, 0].clone()

    def _attention(self, block: Network) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_: nn.Module, __: tuple, qkv: Tensor) -> None:
            attn = block.attn
            batch, count, width = qkv.shape
            heads = attn.num_heads
            query, key, value = qkv.reshape(batch, count, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)
            query, key = attn.q_norm(query[:, :, :1]), attn.k_norm(key)
            share = ((query * attn.scale) @ key.mT).softmax(dim=-1)  # (B, heads, 1, N)
            moved = (share.mT * value).transpose(1, 2).reshape(batch, count, -1)
            self.writes += _scaled(block, "ls1", moved @ attn.proj.weight.mT)
            if attn.proj.bias is not None:
                self.start += _scaled(block, "ls1", attn.proj.bias)

        return hook

    def _mlp(self, block: Network) -> Callable[[nn.Module, tuple, Tensor], None]:
        def hook(_: nn.Module, __: tuple, output: Tensor) -> None:
            self.mlp += _scaled(block, "ls2", output[:, 0])

        return hook


def _scaled(block: Network, name: str, tensor: Tensor) -> Tensor:
    gamma = getattr(getattr(block, name, None), "gamma", None)
    return tensor if gamma is None else tensor * gamma
