"""Where a training run is: everything that decides how it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn


@dataclass(kw_only=True)
class TrainingState:
    """Everything that decides how a run goes on: what is saved after each step."""

    done: int = 0
    """Steps of the plan."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The network ("net."), the optimisers' moments (by their names) and the best cycle ("best.")."""
    log: list[dict[str, Any]] = field(default_factory=list)
    pushes: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any] | None] = field(default_factory=list)
    """Of the prototypes after the last push."""
    best: dict[str, Any] | None = None
    """cycle, accuracy and sources of the best cycle so far."""


def tensors_of(net: nn.Module, optimisers: Mapping[str, Any]) -> dict[str, Tensor]:
    """Copies of a network ("net.") and of its optimisers' moments (by the optimiser's name), on the CPU."""
    found = {f"net.{name}": tensor.detach().cpu().clone() for name, tensor in net.state_dict().items()}
    for name, optimiser in optimisers.items():
        for number, moments in optimiser.state_dict()["state"].items():
            for key, value in moments.items():
                found[f"{name}.{number}.{key}"] = value.detach().cpu().clone()
    return found


def restore_tensors(tensors: Mapping[str, Tensor], net: nn.Module, optimisers: Mapping[str, Any]) -> None:
    """The inverse of `tensors_of`."""
    net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
    for name, optimiser in optimisers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, number, what = key.split(".")
                moments.setdefault(int(number), {})[what] = value.clone()
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": moments, "param_groups": groups})
