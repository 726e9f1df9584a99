"""Augmented copies of training images, every one drawn from its own seed.

Reference: Chen et al. 2019, supplement: rotation, skew or shear, and a flip. The transforms are torchvision's.
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
        seed: equal seeds give equal copies.
    """
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
