"""A checkpoint file into a network, also where a training framework put a prefix before the names of its tensors."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.readouts.readout import Network

Weights = Mapping[str, Tensor]
Rename = Callable[[Weights, Network], Weights]


def check_checkpoint(file: Path) -> None:
    """Refuse a checkpoint that is not there.

    Raises:
        InputError: no file is called so.
    """
    if not file.is_file():
        raise InputError(f"the checkpoint {file} {'is a folder, not a file' if file.is_dir() else 'does not exist'}.")


def load_weights(network: Network, file: Path, rename: Rename | None = None) -> list[str]:
    """Load a checkpoint (safetensors, or a pickle of tensors) into a network.

    The tensors may lie under state_dict, model or their averages, as timm reads them, and have a common prefix
    (Lightning's `model.`, DataParallel's `module.`); what lies outside of the prefix is left out.

    Args:
        network: takes the weights.
        file: exists.
        rename: from the names of another library to the network's, tried where the names do not fit.

    Returns:
        Notes for the user, where something was left out.

    Raises:
        InputError: it holds no tensors.
        RuntimeError: they do not fit, as torch says it.
    """
    if file.suffix.lower() in (".npz", ".npy"):
        import_timm().models.load_checkpoint(network, str(file))
        return []
    found = import_timm().models.load_state_dict(str(file), weights_only=True)
    if not isinstance(found, Mapping) or not all(isinstance(each, Tensor) for each in found.values()):
        raise InputError(f"{file} holds no state dict: names with tensors, alone or under state_dict or model.")
    own = network.state_dict()
    fitting = (way for way in _ways(found, own, network, rename) if _shapes(way[1]) == _shapes(own))
    nearest = next(_prefixes(found, own), "")
    prefix, tensors = next(fitting, (nearest, _under(found, nearest)))
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as failure:
        if not prefix:
            raise
        raise RuntimeError(f"{failure}\n(without the prefix {prefix!r} of its names)") from failure
    return [_said(file, prefix, [name for name in found if not name.startswith(prefix)])] if prefix else []


def _said(file: Path, prefix: str, others: list[str]) -> str:
    rest = f", and {len(others)} other tensors (first {others[0]})" if others else ""
    return f"of {file} the prefix {prefix!r} is left out of the names{rest}"


def _ways(found: Weights, own: Weights, network: Network, rename: Rename | None) -> Iterator[tuple[str, Weights]]:
    """Prefixes, and the tensors without them: as they are first, then under another library's names."""
    ways = [("", found), *((prefix, _under(found, prefix)) for prefix in _prefixes(found, own))]
    yield from ways
    for prefix, tensors in ways if rename else ():
        try:
            yield prefix, rename(dict(tensors), network)  # type: ignore[misc]
        except (KeyError, AttributeError, TypeError, ValueError, RuntimeError, IndexError):  # names of a third library
            continue


def _shapes(tensors: Weights) -> dict[str, torch.Size]:
    return {name: each.shape for name, each in tensors.items()}


def _under(found: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): each for name, each in found.items() if name.startswith(prefix)}


def _prefixes(found: Weights, own: Weights) -> Iterator[str]:
    """Prefixes under which most of a network's own names are, the most common and then the shortest first."""
    names = [f".{name}" for name in own]
    counts = Counter(name[: len(name) - len(ending) + 1] for name in found for ending in names if name.endswith(ending))
    most = max(counts.values(), default=0)
    yield from sorted((prefix for prefix, count in counts.items() if count == most), key=len)
