"""Training images that stand for prototypes in a model file: which image for which prototype, gathered in the end."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples

FoundExamples = dict[tuple[int, int], tuple[float, tuple[int, ...], Tensor, int]]
"""(prototype, rank) -> score, box, map (h, w), number of the crop."""


ALIKE, SAME = 0.7, 0.99
"""Cosines of what the network sums up of two images of a class, less the class's mean: from which they are alike, and
the same picture. Of nine pairs of Caltech-101's images that are one photograph, cut or scaled in another way, nine are
alike to DeiT-tiny and to ResNet18 and five to MobileNetV2; without the mean their cosines, 0.76 to 0.99, are in another
network those of any two images."""
AT_ONCE = 64
"""Candidates that are looked at before further ones are."""


Centred = Callable[[Sequence[int]], Tensor]
"""Numbers of k images of a class -> (k, D) float64 what the network sums up of each, less the class's mean."""


def centred_rows(pooled: Tensor) -> Centred:
    """Of a class's images (n, S, D), see `models.response.pooled_rows`; large classes are not copied."""
    mean = pooled.sum(dim=0).double().sum(dim=0) / max(1, len(pooled))
    return lambda numbers: pooled[list(numbers)].double().sum(dim=1) - mean


def first_different(order: Tensor, images: Sequence[ImageSource], count: int, rows: Centred | None = None) -> list[int]:
    """The first images of an order of which no two show the same.

    Images of equal bytes are the same, and images of a class by the cosine of their rows. Those that are only alike
    come last, where there are too few others.

    Args:
        order: (m,) int64 numbers of images.
        images: all of them.
        count: most that are wanted.
        rows: of the images, where they are of one class; None: bytes alone count.
    """
    found: list[int] = []
    for cosine in (ALIKE, SAME) if rows is not None else (SAME,):
        for n in (n for some in order.split(AT_ONCE) for n in some.tolist()):
            if len(found) == count:
                return found
            if n not in found and not _is_again(n, found, images, rows, cosine):
                found.append(n)
    return found


def _is_again(n: int, found: Sequence[int], images: Sequence[ImageSource], rows: Centred | None, cosine: float) -> bool:
    """Whether one image shows what some of others shows, or nearly, from a cosine."""
    if any(images[n].sha256 and images[n].sha256 == images[other].sha256 for other in found):
        return True
    if rows is None or not found:
        return False
    every = rows([n, *found])
    one, others = every[0], every[1:]
    return bool((others @ one > cosine * others.norm(dim=1) * one.norm()).any())


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
