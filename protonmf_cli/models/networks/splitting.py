"""At which module a classifier is split into features and head: found by trying, proved by numbers."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.models.backbone import MISFITS, probe_readout, unreadable
from protonmf_cli.models.networks.last_squash import gives_probabilities
from protonmf_cli.models.networks.split_network import (
    Call,
    SplitNetwork,
    first_tensor,
    logits_of,
    prefix_tokens,
    record_calls,
)
from protonmf_cli.models.readouts.readout import (
    FORMULA_NOISE,
    Readout,
    in_float64,
    relative_difference,
)

MOST_TRIED = 8
"""Feature tensors that are tried, from the logits backwards."""
FAILURES = (*MISFITS, TypeError, AttributeError, KeyError)
"""What networks raise that are run again from a place where they cannot be split."""


def split_network(
    network: nn.Module,
    config: Mapping[str, Any],
    input_size: tuple[int, int, int],
    name: str,
    *,
    library: str,
    rows: str = "auto",
    at: str | None = None,
) -> SplitNetwork:
    """Split a classifier where its head can be read by places, else where it can be read at all.

    Args:
        network: pixels (B, channels, H, W) -> logits, on the CPU, in evaluation mode.
        config: as timm's `pretrained_cfg`, with num_classes.
        input_size: channels, height, width of an image.
        name: of the model, for messages.
        library: that built it.
        rows: a key of `CANDIDATES`.
        at: module that the features come out of; found where it is None.

    Raises:
        InputError: it reads no images of this size, or has no such module, or gives something else in a second pass.
        NotExactError: nowhere can its head be written as a sum over rows.
    """
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randn(2, *input_size, generator=generator).to(next(network.parameters()).dtype)
    calls = _checked_calls(network, pixels, name)
    if at is not None:
        return _chosen(network, config, library, calls, pixels, name, at)
    exact: SplitNetwork | None = None
    tried: list[str] = []
    for place in _places(calls, len(pixels)):
        found = _tried(network, config, library, calls, pixels, place)
        if found is None:
            continue
        try:
            readout, _ = probe_readout(found, input_size, rows, name)
        except NotExactError as failure:
            tried.append(f"{place}: {failure}")
            continue
        if _is_by_place(readout):
            return found
        exact = exact or found
    if exact is not None:
        return exact
    if gives_probabilities(network, pixels):
        raise NotExactError(
            f"{name} gives numbers between 0 and 1, as after a sigmoid or softmax that is no module of it, and cannot "
            "be read through them: give a network that returns what goes into that."
        )
    if tried:
        raise NotExactError(f"the head of {name} could not be read. From its last features, {tried[0]}")
    raise NotExactError(
        f"no module of {name} gives features from which the rest of it can be run alone: tensors of several places or "
        "one vector per image were looked for. Name the module whose output are the features with --features."
    )


def _is_by_place(readout: Readout) -> bool:
    """Whether rows have places, and are features rather than the logits of every place."""
    identity = readout.vectors.shape[0] == readout.vectors.shape[1] and torch.equal(
        readout.vectors, torch.diag(readout.vectors.diagonal())
    )
    return readout.spatial and not identity


def _checked_calls(network: nn.Module, pixels: Tensor, name: str) -> list[Call]:
    """Calls of one pass, of a network that does the same in every pass."""
    try:
        with torch.no_grad():
            first, second = (logits_of(network(pixels)) for _ in range(2))
        if not torch.equal(first, second):
            raise InputError(
                f"{name} gives other logits to the same images in a second pass, though it is in evaluation mode: it "
                "draws at random or keeps a state. Mend that first."
            )
        return record_calls(network, pixels)
    except (*MISFITS, TypeError) as failure:
        raise unreadable(name, (pixels.shape[1], pixels.shape[2], pixels.shape[3]), failure) from failure


def _chosen(
    network: nn.Module, config: Mapping[str, Any], library: str, calls: list[Call], pixels: Tensor, name: str, at: str
) -> SplitNetwork:
    if at not in dict(network.named_modules()):
        close = [each for each, _ in network.named_modules() if each.rpartition(".")[2] == at.rpartition(".")[2]][:3]
        hint = f" There is {', '.join(close)}." if close else ""
        raise InputError(f"{name} has no module {at!r}, which --features names.{hint}")
    if sum(call.name == at for call in calls) != 1:
        raise InputError(
            f"the module {at!r} of {name} does not run exactly once for an image; --features wants one that does."
        )
    found = _tried(network, config, library, calls, pixels, at)
    if found is None:
        raise NotExactError(
            f"the rest of {name} cannot be run from the output of {at!r} alone: it gives other logits then. "
            "Name a later module with --features, or leave it out."
        )
    return found


def _tried(
    network: nn.Module, config: Mapping[str, Any], library: str, calls: list[Call], pixels: Tensor, at: str
) -> SplitNetwork | None:
    """The network split at a module; None where the rest of it does not give the same logits."""
    call = next(each for each in calls if each.name == at)
    try:
        features = first_tensor(call.output)
        found = SplitNetwork(
            network, at, config, library=library, prefix=prefix_tokens(network, features, pixels)
        ).eval()
        with in_float64(network), torch.no_grad():
            whole = found(pixels.double())
            halves = found.forward_head(found.forward_features(pixels.double()))
    except FAILURES:
        return None
    return found if relative_difference(halves, whole) <= FORMULA_NOISE else None


def _places(calls: list[Call], images: int) -> Iterator[str]:
    """Names of modules that give different feature tensors, the last first: those with several places before others.

    Of modules that give the same tensor it is the outermost one whose output is that tensor alone.
    """
    once = {call.name for call in calls if call.name and sum(other.name == call.name for other in calls) == 1}
    chosen: dict[tuple[int, tuple[int, ...]], tuple[bool, int, str, bool]] = {}
    for call in calls:
        if call.name not in once:
            continue
        try:
            tensor = first_tensor(call.output)
        except TypeError:
            continue
        if tensor.ndim not in (2, 3, 4) or len(tensor) != images or not tensor.is_floating_point():
            continue
        alone = isinstance(call.output, Tensor)
        key = (tensor.data_ptr(), tuple(tensor.shape))
        known = chosen.get(key)
        if known is None or (alone and (not known[0] or call.end > known[1])):
            end = call.end if known is None else max(call.end, known[1])
            chosen[key] = (alone, end, call.name, _has_places(tensor))
    ordered = sorted(chosen.values(), key=lambda each: (not each[3], -each[1]))
    yield from (name for _, _, name, _ in ordered[:MOST_TRIED])


def _has_places(tensor: Tensor) -> bool:
    """Whether a tensor (B, ...) has several positions beside its channels."""
    sizes = tensor.shape[1:]
    return len(sizes) >= 2 and (min(sizes[1:]) > 1 or min(sizes[:-1]) > 1)
