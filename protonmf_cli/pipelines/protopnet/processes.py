"""Data parallelism over processes that torchrun started."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True, kw_only=True)
class Processes:
    """This process among those that train together; one of one by default."""

    rank: int = 0
    world: int = 1
    device: str = "cpu"
    """Where this process computes: NCCL moves nothing else."""

    @property
    def leads(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Add the gradients of all processes; losses are already divided by the images of the whole step."""
        if self.world == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)

    def add(self, values: Tensor) -> Tensor:
        """The sum over all processes, on the CPU."""
        if self.world == 1:
            return values
        whole = values.to(self.device)
        distributed.all_reduce(whole)
        return whole.cpu()

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Everybody gets the tensors of the leading process."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            distributed.barrier()


def join(device: torch.device) -> Processes:
    """Join the other processes that torchrun started, once: NCCL between GPUs, Gloo between CPUs."""
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Processes(rank=distributed.get_rank(), world=distributed.get_world_size(), device=str(device))


PATIENCE = timedelta(hours=12)
"""How long processes wait for the leading one while it pushes."""

ALONE = Processes()
"""One process."""
