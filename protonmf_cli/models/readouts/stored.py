"""A readout that was proved, as plain values and tensors: a model file keeps it, so that opening proves nothing anew.

Its tensors are mostly weights of the network itself; those are named instead of being kept twice.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from protonmf_cli.models.aligned import aligned
from protonmf_cli.models.readouts.attention_pool import LatentPoolReadout, MeanQueryReadout
from protonmf_cli.models.readouts.branches import BranchesReadout
from protonmf_cli.models.readouts.class_token import MeanBesideReadout, TokenWritesReadout, VotedReadout
from protonmf_cli.models.readouts.frozen_head import FrozenNorm, FrozenReadout, Gate
from protonmf_cli.models.readouts.image_row import ImageRowReadout
from protonmf_cli.models.readouts.normed_vector import NormedVectorReadout
from protonmf_cli.models.readouts.norms import FoldedNorm
from protonmf_cli.models.readouts.pooled_heads import AveragedReadout, JoinedReadout, Layout, PositionWeights
from protonmf_cli.models.readouts.readout import Network, Readout
from protonmf_cli.models.readouts.residual_stream import Layer, NamedNorm, Stream
from protonmf_cli.models.readouts.selecting_heads import SelectingReadout
from protonmf_cli.models.strict_json import strict_json
from protonmf_cli.versions import installed_versions, packages_of

READOUT = "readout."
"""Prefix of what a file keeps of a readout."""
PLAN = READOUT + "plan"
"""JSON, as bytes."""
PARTS: dict[str, Any] = {
    each.__name__: each
    for each in (
        AveragedReadout, JoinedReadout, FrozenReadout, LatentPoolReadout, MeanQueryReadout, BranchesReadout,
        SelectingReadout, ImageRowReadout, TokenWritesReadout, VotedReadout,
        MeanBesideReadout, NormedVectorReadout, Layout, PositionWeights, FoldedNorm, Gate,
        FrozenNorm, Stream, Layer, NamedNorm,
    )
}  # fmt: skip
"""What a readout is made of, by name."""


def stored_readout(readout: Readout, network: Network, difference: float) -> dict[str, Tensor]:
    """What `restored_readout` makes the same readout of, by prefixed name; nothing of one that is not in `PARTS`.

    Args:
        readout: proved.
        network: that it reads, in the same dtype.
        difference: relative, of its logits in float64.
    """
    if type(readout).__name__ not in PARTS:
        return {}
    kept: dict[str, Tensor] = {}
    plan = {
        "versions": _versions(network),
        "difference": difference,
        "readout": _plain(readout, _by_size(network), kept),
    }
    text = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
    return {PLAN: torch.frombuffer(bytearray(text), dtype=torch.uint8), **kept}


def restored_readout(stored: Mapping[str, Tensor], network: Network) -> tuple[Readout, float] | None:
    """The readout of a file, and its relative difference in float64.

    Args:
        stored: tensors by prefixed name, at least those of `stored_readout`, covered by a checksum together with the
            network's weights.
        network: with these weights.

    Returns:
        None where the file keeps none, or other versions of torch, timm or this package proved it: those may compute
        something else.

    Raises:
        ValueError, KeyError, TypeError: what is stored is no readout.
    """
    if PLAN not in stored:
        return None
    plan = strict_json(bytes(stored[PLAN].numpy()).decode())
    if plan["versions"] != _versions(network):
        return None
    readout = _made(plan["readout"], network.state_dict(), stored)
    if not isinstance(readout, Readout):
        raise TypeError(f"the stored readout is {type(readout).__name__}")
    return readout.to(dtype=next(network.parameters()).dtype), float(plan["difference"])


def _versions(network: Network) -> dict[str, str]:
    return installed_versions(packages_of(getattr(network, "library", "timm")))


def _by_size(network: Network) -> dict[int, list[tuple[str, Tensor]]]:
    """Weights of a network by how many numbers they have."""
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for name, tensor in network.state_dict().items():
        found.setdefault(tensor.numel(), []).append((name, tensor))
    return found


def _plain(value: Any, weights: Mapping[int, list[tuple[str, Tensor]]], kept: dict[str, Tensor]) -> Any:
    """A part as JSON; tensors that are no weights are put into `kept`."""
    if isinstance(value, Tensor):
        for name, weight in weights.get(value.numel(), ()):
            if weight.dtype == value.dtype and torch.equal(weight.reshape(value.shape), value):
                return {"weight": name, "shape": list(value.shape)}
        name = f"{READOUT}{len(kept)}"
        kept[name] = value
        return {"tensor": name}
    if is_dataclass(value):
        inside = {each.name: _plain(getattr(value, each.name), weights, kept) for each in fields(value)}
        return {"part": type(value).__name__, "with": inside}
    if isinstance(value, tuple):
        return [_plain(each, weights, kept) for each in value]
    if isinstance(value, dict):
        return {"named": {key: _plain(each, weights, kept) for key, each in value.items()}}
    return value


def _made(value: Any, weights: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> Any:
    """The inverse of `_plain`."""
    if isinstance(value, list):
        return tuple(_made(each, weights, kept) for each in value)
    if not isinstance(value, dict):
        return value
    if "weight" in value:
        return weights[value["weight"]].detach().reshape(value["shape"])
    if "tensor" in value:
        return aligned(kept[value["tensor"]])
    if "named" in value:
        return {key: _made(each, weights, kept) for key, each in value["named"].items()}
    found = PARTS[value["part"]](**{key: _made(each, weights, kept) for key, each in value["with"].items()})
    for name, hint in _hints(type(found)).items():
        if not _fits(getattr(found, name), hint):
            raise TypeError(f"{name} of {type(found).__name__} is {type(getattr(found, name)).__name__}")
    return found


_hints: Callable[[Any], dict[str, Any]] = cache(get_type_hints)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a part that was made is of the type of its field."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is tuple:
        each = inner[:1] * len(value) if isinstance(value, tuple) and inner[-1] is Ellipsis else inner
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if origin is dict:
        return isinstance(value, dict) and all(_fits(part, inner[1]) for part in value.values())
    if hint in (int, float):
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    return isinstance(value, hint)
