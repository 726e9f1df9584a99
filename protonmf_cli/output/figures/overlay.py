"""Maps on pictures: heat, boxes and one colour per prototype. Arrays in, arrays out."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

PALETTE = ("#E69F00", "#56B4E9", "#CC79A7", "#009E73", "#D55E00", "#0072B2", "#C2A800", "#8C564B", "#9467BD", "#17BECF")
"""Okabe and Ito's colours, distinct for colour-blind readers, then more; prototype n has colour (n - 1) mod 10."""

RAMP = "plasma"
"""Matplotlib's colours of maps >= 0: even in brightness, so that colour-blind readers see the same order."""
DIVERGING = "RdBu_r"
"""Of signed maps: blue against, red for."""


def colour(number: int) -> str:
    """Colour of the prototype with a number from 1.

    >>> colour(1) == colour(11)
    True
    """
    return PALETTE[(number - 1) % len(PALETTE)]


def as_rgb(pixels: Pixels) -> Pixels:
    """Grey (h, w, 1) or RGB (h, w, 3) pixels as RGB."""
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def enlarge(grid: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float64]:
    """A map (h, w) up-sampled to (height, width), bicubic.

    >>> enlarge(np.ones((2, 2)), (4, 6)).shape
    (4, 6)
    """
    picture = Image.fromarray(np.asarray(grid, dtype=np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BICUBIC), dtype=np.float64)


def heat(
    pixels: Pixels, grid: NDArray[Any], *, signed: bool = False, strength: float = 0.62, full: float | None = None
) -> Pixels:
    """A map over a picture: the stronger, the more colour covers the picture.

    Args:
        pixels: (height, width, 3).
        grid: (h, w) map; where it is not signed, negative values are drawn as nothing.
        signed: red for positive, blue for negative values.
        strength: opacity of the strongest value, in [0, 1].
        full: value that is drawn at this strength, so that a faint map is drawn faint; the map's own maximum if None.
    """
    large = enlarge(grid, pixels.shape[:2])
    top = np.abs(large).max() if full is None else full
    relative = (large / top).clip(-1, 1) if top > 0 else np.zeros_like(large)
    if signed:
        shade = matplotlib.colormaps[DIVERGING]((relative + 1) / 2)[..., :3]
        opacity = strength * np.abs(relative)
    else:
        relative = relative.clip(0, 1)
        shade = matplotlib.colormaps[RAMP](relative)[..., :3]
        opacity = strength * np.clip(relative**1.5 * 1.6, 0, 1)
    grey = pixels / 255 * 0.9
    mixed = grey * (1 - opacity[..., None]) + shade * opacity[..., None]
    return as_bytes(mixed)


def as_bytes(colours: NDArray[Any]) -> Pixels:
    """Numbers from 0 to 1 as bytes."""
    found: Pixels = (colours * 255).round().clip(0, 255).astype(np.uint8)
    return found


def composite(
    pixels: Pixels,
    grids: Sequence[NDArray[Any]],
    colours: Sequence[str],
    floor: float = 0.25,
    full: Sequence[float | None] | None = None,
) -> Pixels:
    """All prototypes in one picture: each pixel has the colour of the one that is strongest there.

    Each map is divided by `full` first, or by its own maximum as in the paper's Figures 3 and 4.
    """
    if not grids:
        return pixels
    large = [enlarge(grid, pixels.shape[:2]).clip(0) for grid in grids]
    tops = [found.max() if top is None else top for found, top in zip(large, full or [None] * len(large), strict=True)]
    relative = np.stack([found / max(top, 1e-12) for found, top in zip(large, tops, strict=True)])
    winner = relative.argmax(axis=0)
    opacity = 0.75 * np.clip((relative.max(axis=0) - floor) / 0.5, 0, 1)[..., None]
    shades = np.array([matplotlib.colors.to_rgb(name) for name in colours])
    grey = np.repeat((pixels / 255).mean(axis=2, keepdims=True), 3, axis=2)
    mixed = grey * (1 - opacity) + shades[winner] * opacity
    return as_bytes(mixed)
