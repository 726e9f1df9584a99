"""FACE: NMF of a class's rows that also keeps what the classifier says (Bhusal et al. 2025, arXiv 2510.11675).

No package of it installs, so this is written from the paper's objective

    min_{U, W >= 0}  ||A - U W||_F^2 / (entries)  +  lambda KL(h(A) || h(U W))

by projected Adam on U and W, as the authors do. Readings: A are a class's rows before pooling, scaled to a mean
square of 1, and h is the head with its pooling, so KL is over images; codes of new rows are the U >= 0 of least
squares for the W found. It is fitted on 20 images a class, and starts from scikit-learn's NMF instead of bare NNDSVD,
so that few steps do. lambda is chosen on a fifth of the training images (the authors' code has 1e-5, for activations
of another scale).
"""

from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from .factorisations import codes_from_products, fitted_classes, of_classes
from .features import Images, Network, held_out
from .measures import Coded, Explainer, divergence, rebuilt

LAMBDAS = (0.01, 0.1, 1.0)
MOST_IMAGES = 20
"""Of a class, that it is fitted on."""
STEPS, RATE = 60, 0.01


def regularised(
    rows: Tensor, start: Tensor, head: Callable[[Tensor], Tensor], told: Tensor, weight: float
) -> tuple[Tensor, Tensor]:
    """(p, D) W >= 0, and (n, p) the sums over places of the codes U that were fitted with it.

    Args:
        rows: (n, T, D) of a class's images, >= 0.
        start: (p, D) W of a plain NMF.
        head: (n, p) sums of codes and (p, D) W of rows as they are -> (n, C) logits.
        told: (n, C) the network's logits.
        weight: lambda.
    """
    size = rows.square().mean().sqrt()
    A = rows.flatten(0, 1) / size
    whole, entries = A.square().sum(), A.numel()
    W = (start / size).clone()
    U = codes_from_products(A @ W.mT, W @ W.mT)
    W.requires_grad_()
    U.requires_grad_()
    target = told.log_softmax(dim=1)
    optimiser = torch.optim.Adam([U, W], lr=RATE)
    for _ in range(STEPS):
        optimiser.zero_grad()
        error = whole - 2 * (A @ W.mT * U).sum() + ((U.mT @ U) * (W @ W.mT)).sum()
        found = head(U.reshape(len(rows), -1, len(W)).sum(dim=1), W * size).log_softmax(dim=1)
        divergence_ = (target.exp() * (target - found)).sum(dim=1).mean()
        (error / entries + weight * divergence_).backward()
        optimiser.step()
        with torch.no_grad():
            U.clamp_(min=0)
            W.clamp_(min=0)
    return (W.detach() * size).contiguous(), U.detach().reshape(len(rows), -1, len(W)).sum(dim=1)


def fitted(network: Network, train: Images, starts: dict[int, Tensor], weight: float) -> Explainer:
    """Concepts of all classes for one lambda."""
    vectors, offset, atoms = network.vectors, network.offset, {}
    for c, start in starts.items():
        own = train.of((train.labels == c).nonzero()[:MOST_IMAGES, 0])

        def head(codes: Tensor, W: Tensor) -> Tensor:
            return codes @ (W @ vectors.mT) + offset

        atoms[c], _ = regularised(own.rows.clamp_min(0), start, head, own.logits, weight)
    return of_classes(network, atoms, f"lambda {weight:g}")


@lru_cache(maxsize=1)
def face(network: Network, prototypes: int, seed: int) -> Explainer:
    """FACE with the lambda whose rebuilt logits diverge least from the network's on a fifth of the training images."""
    starts = {c: torch.from_numpy(found.components_) for c, found in fitted_classes(network, prototypes, seed).items()}
    out = held_out(network.train.labels)
    fit_on, judged = network.train.of(~out), network.train.of(out)
    losses = {}
    for weight in LAMBDAS:
        found = fitted(network, fit_on, starts, weight)
        losses[weight] = float(
            divergence(judged.logits[:, network.classes], rebuilt(found, Coded.of(found, judged))).mean()
        )
    return fitted(network, network.train, starts, min(losses, key=lambda weight: losses[weight]))
