"""Augmented copies of training images, every one drawn from its own seed.

Reference: Chen et al. 2019, supplement: rotation, skew or shear, and a flip. The transforms are torchvision's. The
original code makes its copies with Augmentor (Bloice et al. 2017, "Augmentor: an image augmentation library for machine
learning"), which cuts away what a transform leaves empty and enlarges the rest.
"""

import math
from typing import Any

import numpy as np
from PIL import Image

from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.options import AugmentationOptions

MARGIN = 0.25
"""Share of its longer side by which a picture is continued by reflection, so that no corner is empty."""


def augmented(picture: Image.Image, options: AugmentationOptions, seed: tuple[int, ...]) -> Image.Image:
    """One copy of a picture, of the same size: rotated, skewed or sheared, and perhaps flipped.

    Args:
        picture: RGB or grey.
        options: how far.
        seed: equal seeds give equal copies; its last number is the copy's, which decides its kind with `equal_kinds`.
    """
    if options.equal_kinds:
        return _enlarged(picture, options, seed)
    import_timm()  # which makes torchvision importable
    from torchvision.transforms import InterpolationMode, functional

    draw = np.random.default_rng(seed)
    width, height = picture.size
    margin = math.ceil(MARGIN * max(width, height))
    pixels = np.asarray(picture)
    around = ((margin, margin), (margin, margin), (0, 0))[: pixels.ndim]
    large: Any = Image.fromarray(np.pad(pixels, around, mode="reflect"))  # also wider than the picture itself
    smooth = InterpolationMode.BILINEAR
    kind = draw.integers(3)
    if kind == 0:
        large = functional.rotate(large, float(draw.uniform(-options.rotation, options.rotation)), smooth)
    elif kind == 1:
        shear = [float(v) for v in draw.uniform(-options.shear, options.shear, 2)]
        large = functional.affine(large, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, interpolation=smooth)
    else:
        corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) + margin
        moved = corners + draw.uniform(-options.skew / 2, options.skew / 2, (4, 2)) * [width, height]
        large = functional.perspective(large, corners.tolist(), moved.round().astype(int).tolist(), smooth)
    result: Image.Image = functional.center_crop(large, [height, width])
    return functional.hflip(result) if draw.random() < options.flip else result


def _enlarged(picture: Image.Image, options: AugmentationOptions, seed: tuple[int, ...]) -> Image.Image:
    """One copy as Augmentor makes it: of a kind that its number decides, no corner empty."""
    import_timm()
    from torchvision.transforms import InterpolationMode, functional

    draw = np.random.default_rng(seed)
    size = np.array(picture.size, dtype=float)
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * size
    seen, shown = (_rotated, _sheared, _skewed)[seed[-1] % 3](corners, size, options, draw)
    whole: Any = picture
    result: Image.Image = functional.perspective(whole, seen.tolist(), shown.tolist(), InterpolationMode.BICUBIC)
    return functional.hflip(result) if draw.random() < options.flip else result


Quads = tuple[np.ndarray, np.ndarray]
"""(4, 2) points of the picture, clockwise from the top left, and where in the copy they are shown."""


def _rotated(corners: np.ndarray, size: np.ndarray, options: AugmentationOptions, draw: np.random.Generator) -> Quads:
    """The largest upright rectangle that a rotated picture fills, up to a tenth of the sides of very long ones."""
    angle = math.radians(draw.uniform(-options.rotation, options.rotation))
    cos, sin = math.cos(angle), math.sin(angle)
    left = np.maximum(size * cos - size[::-1] * abs(sin), 0.1 * size)
    turned = (corners / size - 0.5) * left @ np.array([[cos, sin], [-sin, cos]])
    return turned + size / 2, corners


def _sheared(corners: np.ndarray, size: np.ndarray, options: AugmentationOptions, draw: np.random.Generator) -> Quads:
    """The parallelogram inside a picture whose sides lean along one axis."""
    slope = math.tan(math.radians(draw.uniform(-options.shear, options.shear)))
    axis = int(draw.integers(2))
    lean = min(abs(slope) * size[1 - axis], 0.9 * size[axis])
    at = corners / size
    across = at[:, 1 - axis] if slope >= 0 else 1 - at[:, 1 - axis]
    seen = corners.copy()
    seen[:, axis] = at[:, axis] * (size[axis] - lean) + across * lean
    return seen, corners


def _skewed(corners: np.ndarray, size: np.ndarray, options: AugmentationOptions, draw: np.random.Generator) -> Quads:
    """A picture of which one side or one corner is drawn beyond the edge: three times of four a side."""
    amount = draw.uniform(0, options.skew * size.max())
    outwards = np.sign(corners - size / 2)
    shown, axis = corners.copy(), int(draw.integers(2))
    if draw.random() < 0.75:
        side = outwards[:, 1 - axis] == draw.choice([-1, 1])
        shown[side, axis] += amount * outwards[side, axis]
    else:
        corner = int(draw.integers(4))
        shown[corner, axis] += amount * outwards[corner, axis]
    return corners, shown
