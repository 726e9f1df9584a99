"""Networks that a model file describes: built by a library's own name alone, no larger than the weights in the file."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from protonmf_cli.errors import ModelFileError
from protonmf_cli.files.networks.hub_access import hub_asked
from protonmf_cli.files.networks.loading import OWN
from protonmf_cli.files.networks.sizes import MOST_NUMBER, OF_LOADERS, no_larger_than, values_in
from protonmf_cli.models.backbone import Source
from protonmf_cli.models.readouts.readout import Network

MOST_VALUES = 2**17
"""In the arguments of a network, class names included."""
OF_A_PLACE = (":", "/", "\\")
"""Signs of names that lie on a hub, on the web or on this machine."""
OF_BACKBONES = frozenset(("backbone", "model_name", "checkpoint", "timm_model_name"))
"""Words of a configuration of transformers that name another network."""
SPARE_NUMBERS, SPARE_MODULES = 2**26, 2000
"""That a network may have beyond those of its file: a classifier that is left out, and layers without weights."""
SPARE_OF_TOWERS = 2**33
"""The same of open_clip, which builds the text tower too; its networks are of its own list, whose sizes are known."""
TOWERS = "open_clip"
MODULES_OF_A_TENSOR = 20


def check_source(source: Source) -> None:
    """Refuse a network that asks for more than its library's own code; a function of the user's own may take anything.

    Raises:
        ModelFileError: it names a place to load something from, or has arguments that no network has.
    """
    if source.library == OWN:
        return
    if any(sign in source.architecture for sign in OF_A_PLACE):
        raise ModelFileError(f"its network {source.architecture[:80]!r} is no name of {source.library}'s own")
    for count, (key, value) in enumerate(values_in(source.model_args, ""), start=1):
        if key in OF_LOADERS and value not in (None, False):
            raise ModelFileError(f"its network wants {key!r}, which says how to load one")
        if count > MOST_VALUES or (isinstance(value, int | float) and not abs(value) <= MOST_NUMBER):
            raise ModelFileError(f"no network has the argument {key[:40]!r} of its file ({str(value)[:40]})")
        followed = source.library != "transformers" or key in OF_BACKBONES  # whose configurations hold notes, too
        if isinstance(value, str) and followed and any(sign in value for sign in OF_A_PLACE):
            raise ModelFileError(f"the argument {key[:40]!r} of its network names a place ({value[:80]!r})")


def built(
    build: Callable[[], Network], weights: Mapping[str, Tensor], *, library: str = "", device: str = "cpu"
) -> Network:
    """What a function builds, without the hub, and no larger than its weights ask for.

    Args:
        build: without arguments.
        weights: that it shall take, by name.
        library: that builds it.
        device: "meta" for a network without memory.

    Raises:
        ModelFileError: it is larger; nothing beyond the limit was allocated.
    """
    spare = SPARE_OF_TOWERS if library == TOWERS else SPARE_NUMBERS
    numbers = spare + 2 * sum(tensor.numel() for tensor in weights.values())
    limited = no_larger_than(
        numbers, SPARE_MODULES + MODULES_OF_A_TENSOR * len(weights),
        ModelFileError("its network is larger than its weights"),
        ModelFileError("its network has more layers than its weights are of"),
    )  # fmt: skip
    with hub_asked(False), limited, torch.device(device), _Bounded(weights, spare):
        return build()


class _Bounded(TorchFunctionMode):
    """Refuses tensors far larger than the largest weight before they are allocated."""

    def __init__(self, weights: Mapping[str, Tensor], spare: int) -> None:
        super().__init__()
        self.most = spare + max((tensor.numel() for tensor in weights.values()), default=0)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in CONSTRUCTORS and kwargs.get("device") is None and _numbers(function, args, kwargs) > self.most:
            raise ModelFileError("its network makes a tensor far larger than its weights")
        return function(*args, **kwargs)


CONSTRUCTORS = _device_constructors() - {torch.tensor, torch.as_tensor, torch.scalar_tensor, torch.asarray}


def _numbers(function: Any, args: Any, kwargs: Any) -> int:
    """How many numbers a tensor will have, which is made without memory to see."""
    try:
        found = function(*args, **{**kwargs, "device": "meta"})
    except (RuntimeError, TypeError, NotImplementedError):  # which the call itself will say
        return 0
    return found.numel() if isinstance(found, Tensor) else 0


def check_shapes(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are not the network's; it may have others.

    Raises:
        ModelFileError: naming the first one.
    """
    own = network.state_dict()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            what = "does not have" if name not in own else f"has as {tuple(own[name].shape)}"
            raise ModelFileError(f"its weights hold {name[:80]!r} {tuple(tensor.shape)}, which its network {what}")
