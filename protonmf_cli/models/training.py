"""Where a training run is: everything that decides how it goes on."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(kw_only=True)
class TrainingState:
    """Everything that decides how a run goes on: what is saved after each step."""

    done: int = 0
    """Steps of the plan."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """The network ("net."), the optimisers' moments ("warm.", "joint.", "head.") and the best cycle ("best.")."""
    log: list[dict[str, Any]] = field(default_factory=list)
    pushes: list[dict[str, Any]] = field(default_factory=list)
    sources: list[dict[str, Any] | None] = field(default_factory=list)
    """Of the prototypes after the last push."""
    best: dict[str, Any] | None = None
    """cycle, accuracy and sources of the best cycle so far."""
