"""Images explained in one call of Python, against one call for each, and against the network's pass alone.

One by one is a call of `load(...).explain(path)` for each image; the model is loaded once. What is printed is the median
over rounds that take turns.

    python tests/benchmarks/explained_at_once.py MODEL.safetensors FOLDER [IMAGES] [ROUNDS]
"""

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import protonmf_cli
from protonmf_cli.pipelines.progress import SILENT


def seconds(job: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def main(model: str, folder: str, count: str = "200", rounds: str = "3") -> None:
    loaded = protonmf_cli.load(model, progress=SILENT)
    images = sorted(path for path in Path(folder).rglob("*.jpg"))[: int(count)]
    crops = torch.stack([loaded.crop(path) for path in images])
    ways: dict[str, Callable[[], object]] = {
        "one by one": lambda: [loaded.explain(path) for path in images],
        "in one call": lambda: loaded.explain(images),
        "network alone, one by one": lambda: [loaded.backbone.read(crop[None]) for crop in crops],
        "network alone, in batches": lambda: [loaded.backbone.read(some) for some in crops.split(32)],
    }
    loaded.explain(images[:40])
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(int(rounds)):
        for name, job in ways.items():
            found[name].append(seconds(job))
    times = {name: statistics.median(values) for name, values in found.items()}
    for name, value in times.items():
        print(f"{name:>26}  {1000 * value / len(images):7.2f} ms per image")
    print(f"one call is {times['one by one'] / times['in one call']:.2f} times as fast as one by one")


if __name__ == "__main__":
    main(*sys.argv[1:])
