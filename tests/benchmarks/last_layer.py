"""The solver of the last layer against 500 epochs of Adam on the same cached similarities: objective and time.

    python tests/benchmarks/last_layer.py [--large] [--epochs 500] [--rates 1e-4 1e-3 1e-2] [--l1 1e-4 1e-3]

The small problems are scikit-learn's digits (1,500 and 200 images, 100 prototypes that are patches of the
images); --large is a synthetic one of 6,000 images, 2,000 prototypes and 200 classes, for which Adam takes
minutes per rate. Ratios are solver over Adam; the solver runs to a residual of 1e-6.
"""

import argparse
import time

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import cross_entropy

from protonmf_cli.maths.last_layer import last_layer_objective, solve_last_layer

Problem = tuple[Tensor, Tensor, Tensor]


def similarity(distance: Tensor) -> Tensor:
    """Log similarity of ProtoPNet, of squared distances."""
    return torch.log((distance + 1) / (distance + 1e-4))


def digits(images: int, per_class: int = 10, side: int = 4) -> Problem:
    """Best similarity of each image's patches to patches drawn from images of each class."""
    generator = torch.Generator().manual_seed(0)
    pictures, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
    chosen = torch.randperm(len(labels), generator=generator)[:images]
    pictures, labels = pictures[chosen].float().view(-1, 8, 8) / 16, labels[chosen]
    patches = pictures.unfold(1, side, 1).unfold(2, side, 1).reshape(images, -1, side * side)
    prototypes = []
    for k in range(10):
        rows = patches[labels == k].flatten(0, 1)
        rows = rows[rows.std(dim=1) > 0.2]
        prototypes.append(rows[torch.randperm(len(rows), generator=generator)[:per_class]])
    distance = torch.cdist(patches.flatten(0, 1), torch.cat(prototypes)).square()
    owner = torch.arange(10).repeat_interleave(per_class)
    return similarity(distance.view(images, -1, len(owner)).amin(dim=1)), labels, owner


def synthetic(
    images: int = 6000, classes: int = 200, per_class: int = 10, width: int = 64, spread: float = 0.5
) -> Problem:
    """Images of one vector per part; prototypes near the parts of each class, which share most of their direction."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) / width**0.5

    labels, owner = torch.arange(images) % classes, torch.arange(classes).repeat_interleave(per_class)
    parts = 0.6 * draw(1, per_class, width) + 0.8 * draw(classes, per_class, width) + 0.5 * draw(classes, 1, width)
    blur = spread + 0.15 * torch.rand(images, 1, 1, generator=generator)
    rows = parts[labels] + 4 * blur * draw(images, per_class, width)
    prototypes = (parts + 0.05 * draw(classes, per_class, width)).flatten(0, 1)
    distance = torch.full((images, len(owner)), torch.inf)
    for part in range(per_class):
        distance = torch.minimum(distance, torch.cdist(rows[:, part], prototypes).square())
    return similarity(distance), labels, owner


def adam(problem: Problem, classes: int, l1: float, rate: float, epochs: int) -> Tensor:
    """Weights after minibatches of 80 from the usual start."""
    activations, labels, owner = problem
    generator = torch.Generator().manual_seed(0)
    own = torch.arange(classes)[:, None] == owner
    weights, off = torch.where(own, 1.0, -0.5).requires_grad_(), (~own).float()
    optimiser = torch.optim.Adam([weights], lr=rate)
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels), generator=generator).split(80):
            loss = cross_entropy(activations[chosen] @ weights.T, labels[chosen]) + l1 * (weights * off).abs().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return weights.detach()


def compare(
    name: str, problem: Problem, classes: int, l1: float, rates: list[float], epochs: int, repeats: int
) -> None:
    """Print one problem: the solver once (best time of a few runs), Adam at each rate."""
    activations, labels, owner = problem
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = solve_last_layer(activations, labels, owner, classes, l1=l1)
        seconds.append(time.perf_counter() - start)
    off = torch.arange(classes)[:, None] != owner
    print(
        f"{name}, l1 {l1:g}: solver {min(seconds):.3f} s  objective {found.objective:.6f}  cross-entropy "
        f"{found.cross_entropy:.6f}  residual {found.kkt:.1e}  {found.iterations} iterations  "
        f"{int(found.weights[off].count_nonzero())} of {int(off.sum())} off-class weights",
        flush=True,
    )
    for rate in rates:
        start = time.perf_counter()
        weights = adam(problem, classes, l1, rate, epochs)
        elapsed = time.perf_counter() - start
        objective, residual = last_layer_objective(weights, activations, labels, owner, l1)
        print(
            f"    Adam {rate:g}, {epochs} epochs: {elapsed:.2f} s  objective {objective:.6f}  residual {residual:.1e}  "
            f"time ratio {min(seconds) / elapsed:.3f}  objective ratio {found.objective / objective:.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--epochs", type=int, default=500)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-4, 1e-3, 1e-2])
    parser.add_argument("--l1", type=float, nargs="+", default=[1e-4, 1e-3])
    words = parser.parse_args()
    solve_last_layer(*digits(200), 10, l1=1e-3)  # the first calls load libraries
    problems = [("digits, 1500 images", digits(1500), 10, 5), ("digits, 200 images", digits(200), 10, 5)]
    if words.large:
        problems = [
            ("6000 x 2000, 200 classes, overlapping", synthetic(), 200, 1),
            ("6000 x 2000, 200 classes, separable", synthetic(spread=0.25), 200, 1),
        ]
    print(f"{torch.get_num_threads()} threads")
    for name, problem, classes, repeats in problems:
        for l1 in words.l1:
            compare(name, problem, classes, l1, words.rates, words.epochs, repeats)


if __name__ == "__main__":
    main()
