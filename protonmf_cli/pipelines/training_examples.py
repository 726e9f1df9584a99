"""Training images that stand for prototypes in a model file: which image for which prototype, gathered in the end."""

from collections.abc import Sequence

import torch
from torch import Tensor

from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples

FoundExamples = dict[tuple[int, int], tuple[float, tuple[int, ...], Tensor, int]]
"""(prototype, rank) -> score, box, map (h, w), number of the crop."""


def wanted_of(chosen: Sequence[Sequence[ImageSource]]) -> dict[ImageSource, list[tuple[int, int]]]:
    """Image -> (rank, prototype) of the examples it gives, from each prototype's images in order of rank."""
    wanted: dict[ImageSource, list[tuple[int, int]]] = {}
    for j, images in enumerate(chosen):
        for rank, image in enumerate(images):
            wanted.setdefault(image, []).append((rank, j))
    return wanted


def gathered_examples(found: FoundExamples, crops: Sequence[bytes], images: Sequence[ImageSource]) -> Examples:
    """Examples of all prototypes; `crops` are JPEG files, one per image, shared by the examples that show it."""
    blob = bytearray(b"".join(crops))
    ends = torch.tensor([0, *(len(c) for c in crops)]).cumsum(dim=0)
    keys = sorted(found)
    numbers = [found[key][3] for key in keys]
    return Examples(
        prototype=torch.tensor([j for j, _ in keys], dtype=torch.int64),
        score=torch.tensor([found[key][0] for key in keys], dtype=torch.float32),
        box=torch.tensor([found[key][1] for key in keys], dtype=torch.int64).reshape(-1, 4),
        map=torch.stack([found[key][2] for key in keys]) if keys else torch.empty(0, 0, 0),
        crop=torch.stack([ends[:-1][numbers], ends[1:][numbers]], dim=1),
        jpeg=torch.frombuffer(blob, dtype=torch.uint8) if blob else torch.empty(0, dtype=torch.uint8),
        sources=tuple(images[n] for n in numbers),
    )
