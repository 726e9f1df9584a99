"""What it costs to list and to decode the same images from every form of data, against class folders.

python tests/benchmarks/data_sources.py ../shared/data/caltech101_imagenet/train work/
"""

import argparse
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import packed
import toys
from protonmf_cli.files.images.datasets import ClassMapping, class_folders, find_images
from protonmf_cli.files.images.reader import ImageReader
from protonmf_cli.files.images.sources import kept
from protonmf_cli.files.networks.preprocessing import crop_of

CROP = crop_of(replace(toys.PREPROCESSING, input_size=(3, 224, 224)))


def seconds(data: Path | str) -> tuple[float, float, int]:
    """CPU seconds to list and to decode and crop, and the images that were decoded."""
    start = time.process_time()
    images = find_images(data, "train", class_folders(data, "train"), ClassMapping())
    listed = time.process_time()
    reader = ImageReader(crop=CROP, channels=3, exif_transpose=False, batch_size=32, workers=1)
    count = sum(len(batch.crops) for batch in reader.batches(images.of(images.files)))
    return listed - start, time.process_time() - listed, count


def measured(data: dict[str, Path | str], cache: Path, rounds: int) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    """Alternating; with a cache that is empty, and then with what was kept."""
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(rounds):
        for form, where in data.items():
            shutil.rmtree(cache, ignore_errors=True)
            for name in (form, f"{form}, again"):
                *taken, _ = seconds(where)
                found.setdefault(name, []).append((taken[0], taken[1]))
    yield from found.items()


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("data", type=Path, help="class folders")
    words.add_argument("work", type=Path, help="folder for the other forms; it is removed")
    words.add_argument("--rounds", type=int, default=3)
    given = words.parse_args()
    torch.set_num_threads(1)
    given.work.mkdir(parents=True)
    files = {path.relative_to(given.data).as_posix(): path.read_bytes() for path in given.data.rglob("*.jpg")}
    kept.default_folder = lambda: given.work / "cache"
    data = {form: make(given.work / form, files) for form, make in packed.FORMS.items() if form != "folder"}
    data = {"folder": given.data, **data}
    base = 0.0
    for form, taken in measured(data, given.work / "cache", given.rounds):
        listed, decoded = (statistics.median(column) for column in zip(*taken, strict=True))
        base = base or listed + decoded
        print(f"{form:24} {listed:6.3f} s listed {decoded:7.3f} s decoded {(listed + decoded) / base:6.3f} of folders")
    shutil.rmtree(given.work)


if __name__ == "__main__":
    main()
