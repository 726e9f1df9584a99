"""EPIC: channels made pure by an invertible matrix (Borycki et al. 2026, arXiv 2505.12897).

No package of it installs, so this is written from the paper: rows z become U z, the head V becomes V U^-1, and the
logits stay what they were. U = exp(A), A from zero, makes the channels pure: for channel k and the images with the
largest channel k, the purity at its strongest place is (U z)_k / ||U z||, and its mean is raised by Adam. Five
prototypes a channel, batches of 512, rate 1e-3, decay 1e-5 and one pass are the authors' options. Readings: a
channel's value in an image, by which its prototypes are chosen, is its largest over the places; rows are the
readout's.

A concept is a channel, so the method has D of them; with fewer only some are kept: of each class those with the largest
mean of weight x max(value, 0) on its training images (the authors' order), a channel counting for one class.
"""

import math
from functools import lru_cache, partial

import torch
from torch import Tensor

from .features import Images, Network
from .measures import Dictionary, Explainer

PROTOTYPES, BATCH, RATE, DECAY = 5, 512, 1e-3, 1e-5


def exponential(raw: Tensor) -> Tensor:
    """exp of a matrix by scaling and squaring of the fourth-order series; its gradient costs a tenth of torch's own."""
    squarings = max(0, math.ceil(math.log2(max(float(torch.linalg.matrix_norm(raw.detach(), 1)), 1e-9) / 0.25)))
    small, one = raw / 2**squarings, torch.eye(len(raw))
    found = one + small @ (one + small @ (one / 2 + small @ (one / 6 + small / 24)))
    for _ in range(squarings):
        found = found @ found
    return found


def purity(rows: Tensor, matrix: Tensor, channels: Tensor) -> Tensor:
    """(B,) purity of a channel of each image at its strongest place.

    Args:
        rows: (B, T, D)
        matrix: (D, D) U.
        channels: (B,)
    """
    with torch.no_grad():
        place = (rows @ matrix[channels][..., None])[..., 0].argmax(dim=1)
    turned = rows[torch.arange(len(rows)), place] @ matrix.mT
    return turned.gather(1, channels[:, None])[:, 0] / turned.norm(dim=1).clamp_min(1e-8)


def strongest(rows: Tensor, matrix: Tensor | None, count: int) -> Tensor:
    """(count, D) images with the largest value of each channel; of the rows' own ones where there is no matrix."""
    values = torch.cat([(part if matrix is None else part @ matrix.mT).amax(dim=1) for part in rows.split(32)])
    return values.topk(count, dim=0).indices


def disentangled(rows: Tensor, seed: int, passes: int = 1) -> tuple[Tensor, float]:
    """(D, D) U, and the mean purity of its channels' prototypes before it is trained.

    Args:
        rows: (N, T, D) of the training images.
        seed: of the order of the batches.
        passes: over the prototypes.
    """
    width = rows.shape[2]
    raw = torch.zeros(width, width, requires_grad=True)
    generator = torch.Generator().manual_seed(seed)
    images = strongest(rows, None, min(PROTOTYPES, len(rows)))
    channels = torch.arange(width).expand_as(images).flatten()
    images = images.flatten()
    optimiser = torch.optim.Adam([raw], lr=RATE, weight_decay=DECAY)
    first = _mean(rows, torch.eye(width), images, channels)
    for _ in range(passes):
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            optimiser.zero_grad()
            matrix = exponential(raw)
            (-purity(rows[images[batch]], matrix, channels[batch]).mean()).backward()
            optimiser.step()
    return exponential(raw.detach()), first


def mean_purity(rows: Tensor, matrix: Tensor) -> float:
    """Mean purity of the prototypes of all channels."""
    images = strongest(rows, matrix, min(PROTOTYPES, len(rows)))
    return _mean(rows, matrix, images.flatten(), torch.arange(len(matrix)).expand_as(images).flatten())


def _mean(rows: Tensor, matrix: Tensor, images: Tensor, channels: Tensor) -> float:
    found = [
        purity(rows[chosen], matrix, which)
        for chosen, which in zip(images.split(BATCH), channels.split(BATCH), strict=True)
    ]
    return float(torch.cat(found).mean())


def kept_channels(values: Tensor, labels: Tensor, head: Tensor, prototypes: int) -> Tensor:
    """Channels that a class's images hold most of, `prototypes` a class, class after class, none twice.

    Args:
        values: (N, D) channels of training images.
        labels: (N,)
        head: (C, D) V U^-1.
        prototypes: a class.
    """
    classes = labels.unique().tolist()
    said = torch.stack([(head[c] * values[labels == c].clamp_min(0)).mean(dim=0) for c in classes])
    chosen: list[list[int]] = [[] for _ in classes]
    for _ in range(prototypes):
        for row, mine in zip(said, chosen, strict=True):
            best = int(row.argmax())
            mine.append(best)
            said[:, best] = -torch.inf
    return torch.tensor([channel for mine in chosen for channel in mine])


@lru_cache(maxsize=1)
def of_network(network: Network, seed: int) -> tuple[Tensor, str]:
    """(D, D) U of its training images, and the purity before and after."""
    rows = network.train.rows
    matrix, before = disentangled(rows, seed)
    return matrix, f"purity {before:.3f} -> {mean_purity(rows, matrix):.3f}"


def epic(network: Network, prototypes: int, seed: int, *, whole: bool = False) -> Explainer:
    """EPIC with as many channels as all classes have prototypes, or the whole of it: with all its channels."""
    matrix, said = of_network(network, seed)
    inverse = torch.linalg.inv(matrix.double()).float()
    head = network.vectors @ inverse
    kept = torch.arange(len(matrix))
    if not whole:
        kept = kept_channels(network.train.pooled @ matrix.mT, network.train.labels, head, prototypes)
    val = network.val
    logits = (val.pooled @ matrix.mT) @ head.mT + (val.rest @ matrix.mT) @ head.mT + network.backbone.readout.bias
    dictionary = Dictionary(
        atoms=inverse.mT[kept], weights=head[:, kept], offset=network.offset,
        encode=partial(_channels, matrix[kept]),
    )  # fmt: skip
    return Explainer(
        by_class=dict.fromkeys(network.classes, dictionary),
        exactness=float((logits - val.logits).abs().max()),
        said=said,
    )


def _channels(matrix: Tensor, images: Images) -> Tensor:
    return images.pooled @ matrix.mT
