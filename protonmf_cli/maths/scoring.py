"""From a coarse map over positions to pixels: up-sampling and the box around its peak."""

import numpy as np
import scipy
import torch
from torch import Tensor


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bicubic up-sampling of maps (..., h, w) to pixels (..., height, width).

    >>> upsample(torch.ones(1, 2, 2), (4, 6)).shape
    torch.Size([1, 4, 6])
    """
    flat = maps.reshape(1, -1, *maps.shape[-2:]).float()
    large = torch.nn.functional.interpolate(flat, size=size, mode="bicubic", align_corners=False)
    return large.reshape(*maps.shape[:-2], *size)


def peak_box(grid: Tensor, size: tuple[int, int], percentile: float = 95.0) -> tuple[int, int, int, int]:
    """Smallest rectangle around the strongest region of a map.

    The map is up-sampled and cut at its percentile (ProtoPNet's rule, Chen et al. 2019, section 2.5) or at half
    its maximum, whichever is higher: a map that is zero nearly everywhere has a percentile of zero. Of what
    stays, the connected region that holds the maximum is boxed.

    Args:
        grid: (h, w) map.
        size: (height, width) of the crop in pixels.
        percentile: share of pixels below the cut, in percent.

    Returns:
        (left, top, right, bottom) in pixels of the crop, right and bottom exclusive.

    >>> peak_box(torch.tensor([[0.0, 0.0], [0.0, 9.0]]), (100, 100))[2:]
    (100, 100)
    """
    pixels = upsample(grid, size).cpu().numpy()
    return _box_around_peak(pixels, max(np.percentile(pixels, percentile), pixels.max() / 2))


def _box_around_peak(pixels: np.ndarray, cut: float) -> tuple[int, int, int, int]:
    """Around the connected region of pixels at or above a cut that holds the strongest one."""
    regions, _ = scipy.ndimage.label(pixels >= cut)
    peak = np.unravel_index(int(pixels.argmax()), pixels.shape)
    return _bounds(regions == regions[peak])


def _bounds(inside: np.ndarray) -> tuple[int, int, int, int]:
    """Around all pixels of a mask (height, width)."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


def percentile_box(
    grid: Tensor, size: tuple[int, int], percentile: float = 95.0, *, connected: bool = True
) -> tuple[int, int, int, int]:
    """Smallest rectangle around the region at or above a percentile of the up-sampled map that holds its peak.

    ProtoPNet's own percentile (Chen et al. 2019, section 2.5), without `peak_box`'s cut at half the peak. The original
    boxes all regions together, which often is most of the image, while only the most similar patch counts: it is in
    this region. A constant map gives the whole image. Ranks between two pixels are interpolated linearly.

    Args:
        grid: (h, w) map.
        size: (height, width) of the crop in pixels.
        percentile: share of pixels below the cut, in percent.
        connected: only the region of the peak; False: all regions together, as the original code.

    Returns:
        (left, top, right, bottom) in pixels of the crop, right and bottom exclusive.

    >>> percentile_box(torch.zeros(7, 7), (32, 48))
    (0, 0, 48, 32)
    """
    if bool(grid.max() == grid.min()):  # whose up-sampled pixels would differ by rounding
        return 0, 0, size[1], size[0]
    pixels = upsample(grid, size).cpu().numpy()
    cut = float(np.percentile(pixels, percentile))
    return _box_around_peak(pixels, cut) if connected else _bounds(pixels >= cut)


def strongest_images(codes: Tensor, count: int) -> Tensor:
    """For each prototype the images where it is strongest.

    Args:
        codes: (n, T, p) how much of each prototype each row of each image holds.
        count: images wanted.

    Returns:
        (p, min(count, n)) image numbers, strongest first; ties go to the earlier image.

    >>> strongest_images(torch.tensor([[[1.0], [5.0]], [[3.0], [0.0]], [[7.0], [0.0]]]), 2).tolist()
    [[2, 0]]
    """
    best = codes.amax(dim=1).T
    return torch.argsort(best, dim=1, descending=True, stable=True)[:, :count]
