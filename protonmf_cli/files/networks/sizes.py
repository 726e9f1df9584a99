"""How large a network may be that a file describes, and what its description holds."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import get_ident
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as registration

from protonmf_cli.errors import InputError

MOST_NUMBER = 10**6
"""Of a network's arguments: more classes, layers or pixels than any has."""
MOST_MODULES = 20_000
"""Of any network: the largest of timm have 1,757."""
WORDS = frozenset((
    "id2label", "label2id", "label_names", "label_descriptions", "pretrained_cfg", "_name_or_path", "auto_map",
))  # fmt: skip
"""Arguments with words that nobody follows: of a configuration of transformers, which keeps where it came from."""
OF_LOADERS = frozenset((
    "pretrained", "pretrained_custom_load", "pretrained_backbone", "use_pretrained_backbone", "weights",
    "weights_backbone", "checkpoint_path", "cache_dir",
))  # fmt: skip
"""Arguments of any library that say how a network is loaded, not what it is."""


@contextmanager
def of_usual_size(config: Mapping[str, Any], name: str) -> Iterator[None]:
    """Within it a network is built of a configuration that anybody may have written.

    Raises:
        InputError: a number of it is larger, or there are more modules, than in any network that classifies images.
    """
    for key, value in values_in(config, ""):
        if isinstance(value, int | float) and abs(value) > MOST_NUMBER:
            raise InputError(f"no network has the argument {key[:40]!r} that {name} asks for ({str(value)[:40]}).")
    refusal = InputError(f"{name} asks for a network of more than {MOST_MODULES:,} modules, as none has.")
    with no_larger_than(math.inf, MOST_MODULES, refusal, refusal):
        yield


@contextmanager
def no_larger_than(numbers: float, modules: int, too_large: Exception, too_many: Exception) -> Iterator[None]:
    """Within it modules may have so many numbers and parts, and no more."""
    left = [numbers, modules]
    thread = get_ident()  # others may build networks of their own

    def count_tensor(_: nn.Module, __: str, tensor: Tensor | None) -> None:
        left[0] -= math.prod(tensor.shape) if tensor is not None and get_ident() == thread else 0
        if left[0] < 0 and get_ident() == thread:
            raise too_large

    def count_module(_: nn.Module, __: str, ___: nn.Module | None) -> None:
        left[1] -= get_ident() == thread
        if left[1] < 0 and get_ident() == thread:
            raise too_many

    handles = [
        registration.register_module_parameter_registration_hook(count_tensor),
        registration.register_module_buffer_registration_hook(count_tensor),
        registration.register_module_module_registration_hook(count_module),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def values_in(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value of nested arguments, with the name it stands under."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            if name in OF_LOADERS:
                yield name, part
            elif name not in WORDS:
                yield from values_in(part, str(name))
    elif isinstance(value, list | tuple):
        for part in value:
            yield from values_in(part, key)
    else:
        yield key, value
