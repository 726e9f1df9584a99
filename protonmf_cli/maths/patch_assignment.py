"""Projecting prototypes onto training patches: which patch each one becomes, and what that does to decisions.

Reference: Chen et al. 2019, section 2.2 (projection) and Theorem 2.1.
"""

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import torch
from torch import Tensor


def distinct_patches(distance: Tensor, patch: Tensor, per_image: int) -> list[tuple[int, int]]:
    """One patch for each prototype of a class, all different, at the least total distance.

    A minimum-cost flow from prototypes over patches to images. Where every prototype may have the nearest patch of its
    image it is an assignment of prototypes to images; else a linear programme, whose corners are whole numbers. The q
    nearest patches of every image suffice: of them at most q - 1 are taken by others.

    Args:
        distance: (n, q, p) distances of the q nearest patches of each of n images to each of p prototypes, nearest
            first; on the CPU.
        patch: (n, q, p) their positions.
        per_image: most patches that one image may give; at most q.

    Returns:
        (image, rank) per prototype, so that its patch is `patch[image, rank, prototype]`.

    Raises:
        ValueError: the images have too few patches.

    >>> near = torch.tensor([[[0.1, 0.2]], [[0.3, 0.9]]])
    >>> distinct_patches(near, torch.zeros(2, 1, 2, dtype=torch.int64), 1)
    [(1, 0), (0, 0)]
    """
    found = _assigned(distance[:, 0].double().numpy(), patch[:, 0].numpy(), per_image)
    return _flow(distance, patch, per_image) if found is None else found


def _assigned(nearest: np.ndarray, place: np.ndarray, per_image: int) -> list[tuple[int, int]] | None:
    """Each prototype at the nearest patch of one image; None where two would need the same patch of an image.

    Args:
        nearest: (n, p) distance of the nearest patch of each image.
        place: (n, p) its position.
        per_image: places of each image.
    """
    images, prototypes = nearest.shape
    if images * per_image < prototypes:
        return None
    # an image's second place costs as much as its first
    _, slot = scipy.optimize.linear_sum_assignment(np.repeat(nearest.T, per_image, axis=1))
    image = slot // per_image
    taken = {(int(i), int(place[i, j])) for j, i in enumerate(image)}
    return [(int(i), 0) for i in image] if len(taken) == prototypes else None


def _flow(distance: Tensor, patch: Tensor, per_image: int) -> list[tuple[int, int]]:
    images, ranks, prototypes = distance.shape
    cost = distance.double().cpu().permute(2, 0, 1).reshape(prototypes, -1).numpy()
    place = patch.cpu().permute(2, 0, 1).reshape(prototypes, -1).numpy()
    of_image = np.repeat(np.arange(images), ranks)
    edges = prototypes * images * ranks
    edge_prototype = np.repeat(np.arange(prototypes), images * ranks)
    edge_image = np.tile(of_image, prototypes)
    _, edge_patch = np.unique(np.stack([edge_image, place.ravel()]), axis=1, return_inverse=True)
    ones = np.ones(edges)
    columns = np.arange(edges)
    each = scipy.sparse.csr_matrix((ones, (edge_prototype, columns)))
    once = scipy.sparse.csr_matrix((ones, (edge_patch.ravel(), columns)))
    few = scipy.sparse.csr_matrix((ones, (edge_image, columns)))
    found = scipy.optimize.linprog(
        cost.ravel(),
        A_ub=scipy.sparse.vstack([once, few]),
        b_ub=np.concatenate([np.ones(once.shape[0]), np.full(images, per_image)]),
        A_eq=each,
        b_eq=np.ones(prototypes),
        bounds=(0, 1),
        method="highs-ds",
    )
    if not found.success:
        raise ValueError(f"{prototypes} prototypes cannot have different patches of {images} images")
    chosen = found.x.reshape(prototypes, -1).argmax(axis=1)
    return [(int(number) // ranks, int(number) % ranks) for number in chosen]


@dataclass(frozen=True, kw_only=True)
class TheoremCounts:
    """What a projection did to the decisions for N images; the first two promise what the third counts."""

    images: int
    correct: int
    """Classified correctly before, with weights 1 and 0."""
    certified_by_theorem: int
    """Of those: Theorem 2.1 promises the same class afterwards, with weights 1 and 0."""
    certified_by_bound: int
    """Changes of the similarities, weighted by the real last layer, are too small to change the class."""
    changed: int
    """The class under the real last layer is another one afterwards."""


@dataclass(frozen=True, kw_only=True)
class Projected:
    """N images before and after a projection of P prototypes."""

    before: Tensor
    """(N, P) smallest distances to the old prototypes."""
    after: Tensor
    """(N, P) smallest distances to the new ones."""
    same_patch: Tensor
    """(N, P) whether the nearest patch is the same."""
    moved: Tensor
    """(P,) Euclidean distance between the old and the new prototype."""


def theorem_counts(
    projected: Projected, weights: Tensor, owner: Tensor, labels: Tensor, *, epsilon: float
) -> TheoremCounts:
    """Theorem 2.1 and the direct bound, image by image.

    Args:
        projected: distances before and after; squared Euclidean, log similarity.
        weights: (C, P) of the real last layer.
        owner: (P,) class of each prototype.
        labels: (N,) classes of the images.
        epsilon: of the log similarity.
    """
    before, after = (torch.log((d + 1) / (d + epsilon)).double() for d in (projected.before, projected.after))
    classes = len(weights)
    plain = torch.zeros(classes, len(owner), dtype=torch.float64)
    owned = owner >= 0
    plain[owner[owned], owned.nonzero()[:, 0]] = 1.0
    simple = before @ plain.mT
    correct = simple.argmax(dim=1) == labels
    certified = _certified(projected, simple, owner, labels, epsilon) & correct
    weights = weights.double()
    logits, later = before @ weights.mT, after @ weights.mT
    reach = (after - before).abs() @ weights.abs().mT
    top = logits.argmax(dim=1, keepdim=True)
    low = (logits - reach).gather(1, top)
    high = (logits + reach).scatter(1, top, -math.inf).amax(dim=1, keepdim=True)
    return TheoremCounts(
        images=len(labels),
        correct=int(correct.sum()),
        certified_by_theorem=int(certified.sum()),
        certified_by_bound=int((low > high).sum()),
        changed=int((logits.argmax(dim=1) != later.argmax(dim=1)).sum()),
    )


DELTAS = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
"""Values of the theorem's delta that are tried."""


def _certified(projected: Projected, logits: Tensor, owner: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """(N,) whether A1-A3 hold for some delta and the two best logits are 2 Delta_max apart."""
    counts = torch.bincount(owner[owner >= 0], minlength=logits.shape[1])
    if len(counts) < 2 or int(counts.min()) != int(counts.max()):
        return torch.zeros(len(labels), dtype=torch.bool)
    size = projected.before.double().sqrt()
    moved = projected.moved.double()
    own = owner == labels[:, None]
    best = logits.topk(2, dim=1).values
    gap = best[:, 0] - best[:, 1]
    found = torch.zeros(len(labels), dtype=torch.bool)
    one_patch = projected.same_patch.all(dim=1)
    for delta in DELTAS.tolist():
        theta = min(math.sqrt(1 + delta) - 1, 1 - 1 / math.sqrt(2 - delta))
        others = moved <= theta * size - math.sqrt(epsilon)
        near = (moved <= (math.sqrt(1 + delta) - 1) * size) & (size <= math.sqrt(1 - delta))
        limit = 2 * int(counts[0]) * math.log((1 + delta) * (2 - delta))
        found |= one_patch & torch.where(own, near, others).all(dim=1) & (gap >= limit)
    return found
