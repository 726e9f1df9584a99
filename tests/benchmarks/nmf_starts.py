"""Starts and solvers of the factorisation on a network's own rows: objective, stability, and time against scikit-learn.

    python tests/benchmarks/nmf_starts.py MODEL DATA [-p 3] [--classes 12]

For each start and solver: mean relative squared error, products with the data, seconds per class, and the
matched cosine of the prototypes between two seeds and between two halves of the images, three times (median, 10 %
quantile).
Then the time to the objective of scikit-learn's NMF(solver="mu") after its 200 iterations, as a ratio.
"""

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.decomposition import NMF

from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.loading import BackboneRequest
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.maths.nmf import Factors, factorise
from protonmf_cli.options import PAPER_NMF, NmfOptions
from protonmf_cli.pipelines.conversion.factorisation import half_split
from protonmf_cli.pipelines.conversion.rows import factorised_rows

VARIANTS = {
    "--recipe paper": PAPER_NMF,
    "abs, rows as they are": NmfOptions(init="abs", balance=0.0),
    "nndsvda, rows as they are": NmfOptions(balance=0.0),
    "--init abs": NmfOptions(init="abs"),
    "--init nndsvda (default)": NmfOptions(),
    "--solver hals": NmfOptions(solver="hals"),
}


def matched(first: Factors, second: Factors) -> list[float]:
    """Cosines of prototypes paired by the Hungarian method."""
    cosine = (first.basis @ second.basis.T).numpy()
    return cosine[linear_sum_assignment(-cosine)].tolist()


def class_rows(model: str, data: Path, classes: int) -> list[torch.Tensor]:
    """(n, T, D) clipped rows of the first classes of the training split."""
    backbone, _ = load_backbone(BackboneRequest(name=model))
    images = find_images(data, "train", backbone.classes, ClassMapping())
    reader = image_reader(backbone.preprocessing, batch_size=32, workers=2)
    found: dict[int, list[torch.Tensor]] = {}
    for batch in reader.batches(images.of(sorted(images.files)[:classes])):
        rows = backbone.read(batch.crops).rows[:, : factorised_rows(backbone)].clamp_min(0)
        found.setdefault(batch.class_index, []).append(rows.clone())
    return [torch.cat(parts) for parts in found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("-p", type=int, default=3)
    parser.add_argument("--classes", type=int, default=12)
    words = parser.parse_args()
    classes = class_rows(words.model, words.data, words.classes)
    print(
        f"{len(classes)} classes, {sum(map(len, classes))} images, {classes[0].shape[1]} rows of width {classes[0].shape[2]}, p = {words.p}"
    )
    for name, options in VARIANTS.items():
        errors, iterations, seeds, halves, seconds = [], [], [], [], 0.0
        for n, rows in enumerate(classes):
            start = time.perf_counter()
            whole = factorise(rows.flatten(0, 1), words.p, options=options, seed=n)
            seconds += time.perf_counter() - start
            errors.append(whole.error)
            iterations.append(whole.iterations)
            seeds += matched(whole, factorise(rows.flatten(0, 1), words.p, options=options, seed=1000 + n))
            for split in range(3):
                parts = (rows[half].flatten(0, 1) for half in half_split(len(rows), split))
                halves += matched(*(factorise(part, words.p, options=options, seed=n) for part in parts))
        print(
            f"{name:28} error {np.mean(errors):.3f}  products {np.mean(iterations):4.0f}  "
            f"{seconds / len(classes):.3f} s  seeds {np.median(seeds):.2f} ({np.quantile(seeds, 0.1):.2f})  "
            f"halves {np.median(halves):.2f} ({np.quantile(halves, 0.1):.2f})",
            flush=True,
        )
    against_scikit_learn(classes, words.p)


def against_scikit_learn(classes: list[torch.Tensor], p: int) -> None:
    """Seconds until the objective of scikit-learn's multiplicative updates is reached."""
    ours = theirs = 0.0
    for rows in classes:
        A = rows.flatten(0, 1)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer = NMF(p, init="nndsvda", solver="mu", max_iter=200, tol=1e-4, random_state=0).fit(A.numpy())
        theirs += time.perf_counter() - start
        goal = peer.reconstruction_err_**2 / float(A.double().square().sum())
        start = time.perf_counter()
        found = factorise(A, p, options=NmfOptions(balance=0.0), seed=0)
        ours += time.perf_counter() - start
        steps = next((n for n, error in enumerate(found.history) if error <= goal), None)
        if steps is None:
            print(f"  not reached: {found.error:.6f} against {goal:.6f}")
        else:
            ours -= (1 - steps / found.iterations) * (time.perf_counter() - start)
    print(f"time to scikit-learn's objective: {ours:.2f} s against {theirs:.2f} s, ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
