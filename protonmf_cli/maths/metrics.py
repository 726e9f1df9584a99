"""Figures of merit over images."""

import numpy as np
import torch
from torch import Tensor


def logit_share(part: Tensor, whole: Tensor, target: Tensor, among: Tensor) -> Tensor:
    """Share of the centred target logit that a part of the model carries, image by image.

    share = (part_y - mean_c part_c) / (whole_y - mean_c whole_c), c over `among`.

    Args:
        part: (B, C) logits of the part alone, biases included.
        whole: (B, C) full logits.
        target: (B,) the class y of each image.
        among: class indices that the mean runs over.

    Returns:
        (B,) shares; NaN where fewer than two classes are compared or the centred logit is zero.

    >>> whole = torch.tensor([[4.0, 0.0]])
    >>> logit_share(whole / 2, whole, torch.tensor([0]), torch.tensor([0, 1])).item()
    0.5
    """
    if len(among) < 2:
        return torch.full(target.shape, torch.nan, dtype=torch.float64)
    row = torch.arange(len(target))

    def centred(logits: Tensor) -> Tensor:
        logits = logits.double()
        return logits[row, target] - logits[:, among].mean(dim=1)

    size = centred(whole)
    return torch.where(size == 0, torch.nan, centred(part) / size)


def median_share(shares: Tensor) -> float | None:
    """Median over the images whose share is defined; None when there is none."""
    defined = shares[shares.isfinite()]
    return float(np.median(defined.numpy())) if len(defined) else None


def bootstrap_interval(values: np.ndarray, *, seed: int, draws: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean over images (Efron 1979).

    Args:
        values: (n,) one number per image, n >= 1.
        seed: of the resampling.
        draws: bootstrap samples.

    >>> bootstrap_interval(np.ones(5), seed=0)
    (1.0, 1.0)
    """
    generator = np.random.default_rng(seed)
    values = np.asarray(values, dtype=np.float64)
    means = np.array([values[generator.integers(0, len(values), len(values))].mean() for _ in range(draws)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mean_with_interval(name: str, values: np.ndarray, *, seed: int) -> dict[str, float | list[float]]:
    """Two entries of a table's row: the mean, and under `name + "_interval"` its 95 % bootstrap interval.

    >>> mean_with_interval("accuracy", np.ones(5), seed=0)
    {'accuracy': 1.0, 'accuracy_interval': [1.0, 1.0]}
    """
    return {name: float(values.mean()), f"{name}_interval": list(bootstrap_interval(values, seed=seed))}


def median_interval(values: Tensor, *, seed: int, draws: int = 1000) -> list[float] | None:
    """95 % percentile bootstrap interval of the median over the defined values; None when there is none."""
    defined = values[values.isfinite()].double().numpy()
    if not len(defined):
        return None
    generator = np.random.default_rng(seed)
    drawn = defined[generator.integers(0, len(defined), (draws, len(defined)))]
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return [float(low), float(high)]


def wilson_interval(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share of which `hits` of `trials` were seen (Wilson 1927); [0, 1] without trials.

    >>> low, high = wilson_interval(0, 10)
    >>> low, round(high, 4)
    (0.0, 0.2775)
    """
    if not trials:
        return 0.0, 1.0
    share, squared = hits / trials, Z_95**2 / trials
    centre = share + squared / 2
    spread = Z_95 * (share * (1 - share) / trials + squared / (4 * trials)) ** 0.5
    return max(0.0, (centre - spread) / (1 + squared)), min(1.0, (centre + spread) / (1 + squared))


Z_95 = 1.959964
"""Of the normal distribution."""
