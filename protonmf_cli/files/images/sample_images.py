"""Two photographs that come with scikit-learn, for a look at a network without any data at hand."""

from typing import Any

import torch
from torch import Tensor

from protonmf_cli.files.images.reader import Crop


def sample_crops(crop: Crop, channels: int) -> Tensor:
    """(2, channels, height, width) uint8: a Chinese temple and a flower, in colour (3) or grey (1)."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    found: Any = load_sample_images()
    return torch.stack(
        [crop(Image.fromarray(pixels).convert("RGB" if channels == 3 else "L")) for pixels in found.images]
    )
