"""Which samples a cross-validation holds out."""

import torch
from torch import Tensor


def fold_numbers(labels: Tensor, folds: int, seed: int) -> Tensor:
    """(N,) the fold in which a sample is held out, by class; -1: never, because its class has no other sample.

    >>> fold_numbers(torch.tensor([0, 0, 0, 1, 1, 2]), 5, 0).tolist()[-1]
    -1
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.full((len(labels),), -1)
    for c in labels.unique():
        own = (labels == c).nonzero()[:, 0]
        if len(own) > 1:
            numbers[own[torch.randperm(len(own), generator=generator)]] = torch.arange(len(own)) % folds
    return numbers
