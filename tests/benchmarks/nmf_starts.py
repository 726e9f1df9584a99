"""Starts and solvers of the factorisation on a network's own rows: objective, stability and time.

    python tests/benchmarks/nmf_starts.py MODEL DATA [-p 3] [--classes 12]

For each start and solver: mean relative squared error, passes over the rows, CPU seconds per class, and the matched
cosine of the prototypes between two seeds and between two halves of the images, three times (median, 10 % quantile).
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.maths.nmf import Factors, factorise_group, match_prototypes
from protonmf_cli.options import PAPER_NMF, NmfOptions
from protonmf_cli.pipelines.conversion.factorisation import half_split
from protonmf_cli.pipelines.conversion.rows import factorised_rows

VARIANTS = {
    "--recipe paper": PAPER_NMF,
    "abs, rows as they are": NmfOptions(init="abs", balance=0.0),
    "nndsvda, rows as they are": NmfOptions(balance=0.0),
    "--init abs": NmfOptions(init="abs"),
    "--init nndsvda (default)": NmfOptions(),
    "--solver mu": NmfOptions(solver="mu"),
    "--solver mu, 8 inner updates": NmfOptions(solver="mu", inner_updates=8),
}


def found(rows: torch.Tensor, p: int, options: NmfOptions, seed: int, *parts: torch.Tensor) -> Factors:
    """As a conversion finds them: with the paper's options what lies below zero is clipped."""
    signs = "clip" if options is PAPER_NMF else "split"
    return factorise_group([rows], p, options=options, seeds=[seed], signs=signs, parts=[parts])[0]


def matched(first: torch.Tensor, second: torch.Tensor) -> list[float]:
    """Cosines of prototypes paired by the Hungarian method."""
    return match_prototypes(first, second)[1].tolist()


def class_rows(model: str, data: Path, classes: int) -> list[torch.Tensor]:
    """(n, T, D) rows of the first classes of the training split."""
    backbone, _ = load_backbone(BackboneRequest(name=model))
    images = find_images(data, "train", backbone.classes, ClassMapping())
    reader = image_reader(backbone.preprocessing, batch_size=32, workers=2)
    read: dict[int, list[torch.Tensor]] = {}
    for batch in reader.batches(images.of(sorted(images.files)[:classes])):
        rows = backbone.read(batch.crops).rows[:, : factorised_rows(backbone)]
        read.setdefault(batch.class_index, []).append(rows.clone())
    return [torch.cat(parts) for parts in read.values()]


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
            start = time.process_time()
            whole = found(rows, words.p, options, n)
            seconds += time.process_time() - start
            errors.append(whole.error)
            iterations.append(whole.iterations)
            seeds += matched(whole.basis, found(rows, words.p, options, 1000 + n).basis)
            for split in range(3):
                halves += matched(*found(rows, words.p, options, n, *half_split(len(rows), split)).parts)
        print(
            f"{name:28} error {np.mean(errors):.3f}  passes {np.mean(iterations):4.0f}  "
            f"{seconds / len(classes):.3f} s  seeds {np.median(seeds):.2f} ({np.quantile(seeds, 0.1):.2f})  "
            f"halves {np.median(halves):.2f} ({np.quantile(halves, 0.1):.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
