"""Where soft prototypes start: how many parts the samples of a class have, their means, and which of them are shared.

Of two parts of different classes that lie no further apart than the noise of their means, one goes: a cluster that two
classes share has one prototype for both.
"""

import math
from collections.abc import Sequence

import torch
from sklearn.cluster import AgglomerativeClustering
from torch import Tensor


def span_of(rows: Tensor) -> Tensor:
    """(r, D) orthonormal axes of what rows (N, D) span."""
    _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
    found: Tensor = axes[sizes > 1e-10 * sizes[0]]
    return found


def split_in_parts(rows: Tensor, count: int) -> list[Tensor]:
    """The parts of samples (n, D) by Ward's method, min(count, n) of them in the order of their means."""
    count = min(count, len(rows))
    if count == 1:
        return [rows]
    labels = torch.from_numpy(AgglomerativeClustering(count).fit(rows.numpy()).labels_)
    parts = [rows[labels == k] for k in range(count)]
    return sorted(parts, key=lambda part: part.mean(dim=0).tolist())


def part_means(rows: Tensor, count: int) -> Tensor:
    """(k, D) means of the parts of samples (n, D), see `split_in_parts`."""
    return torch.stack([part.mean(dim=0) for part in split_in_parts(rows, count)])


def number_of_parts(distances: Sequence[float], dimensions: int, remote: float) -> int:
    """How many prototypes the samples of one class ask for.

    Parts of one cluster also come closer to their means, by (n / m)^(-2 / d) for m and n parts in d dimensions (the
    rate of quantisation); n parts instead of m must save the share `remote` beyond that.

    Args:
        distances: mean squared distance of held-out samples to the nearest mean of 1, 2, ... parts.
        dimensions: d, that the samples span.
        remote: in [0, 1].

    >>> number_of_parts([9.0, 1.0, 0.9, 0.8], dimensions=10, remote=0.5)
    2
    >>> number_of_parts([9.0, 5.0, 3.5, 2.6], dimensions=2, remote=0.5)
    1
    """
    chosen = 1
    for n in range(2, len(distances) + 1):
        expected = (n / chosen) ** (-2 / dimensions) * distances[chosen - 1]
        if distances[n - 1] < (1 - remote) * expected:
            chosen = n
    return chosen


def scatter_of(parts: Sequence[Sequence[Tensor]]) -> float:
    """Pooled variance of the samples around the means of their parts, summed over the dimensions."""
    every = [part for own in parts for part in own]
    freedom = sum(len(part) - 1 for part in every)
    return sum(float((part - part.mean(dim=0)).square().sum()) for part in every) / max(1, freedom)


def without_shared(means: Tensor, owner: Tensor, sizes: Tensor, scatter: float) -> tuple[Tensor, Tensor]:
    """One start for every two that the noise of their means cannot tell apart, while their class has another one.

    Two means of n and m samples of one cluster lie scatter (1 / n + 1 / m) apart (squared), give or take its deviation
    in d dimensions, a share sqrt(2 / d).
    """
    limit = 1 + 3 * math.sqrt(2 / means.shape[1])
    while True:
        noise = scatter * (1 / sizes[:, None] + 1 / sizes)
        ratio = torch.cdist(means, means).square() / noise.clamp_min(torch.finfo(means.dtype).tiny)
        counts = owner.bincount()
        free = counts[owner] > 1
        allowed = (owner[:, None] != owner) & free[None, :]  # the second of a pair goes
        ratio = torch.where(allowed, ratio, torch.inf)
        kept, gone = divmod(int(ratio.argmin()), len(means))
        if not float(ratio[kept, gone]) <= limit:
            return means, owner
        total = sizes[kept] + sizes[gone]
        means[kept] = (sizes[kept] * means[kept] + sizes[gone] * means[gone]) / total
        sizes[kept] = total
        rest = torch.arange(len(means)) != gone
        means, owner, sizes = means[rest], owner[rest], sizes[rest]
