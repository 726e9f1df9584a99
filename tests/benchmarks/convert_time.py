"""Time and memory of `protonmf convert` against a plain pass of the same network over the same images.

    python tests/benchmarks/convert_time.py MODEL DATA [--classes 24] [--repeat 3]

Whole processes, started alternately, with and without halves for the stability; the ratios of their median wall and
CPU times are printed, then the peak memory of a conversion of 6 and of 24 classes. The plain script is timm's own loader and model: decode, batch,
forward, argmax.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAIN = """
import sys, timm, torch
name, data, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
network = timm.create_model(name, pretrained=True).eval()
config = timm.data.resolve_data_config({}, model=network)
dataset = timm.data.create_dataset("", root=data)
loader = timm.data.create_loader(dataset, config["input_size"], batch_size=32, is_training=False, use_prefetcher=False,
    interpolation=config["interpolation"], mean=config["mean"], std=config["std"], crop_pct=config["crop_pct"],
    num_workers=workers, persistent_workers=False)
with torch.inference_mode():
    top = torch.cat([network(images).argmax(dim=1) for images, _ in loader])
print(len(top))
"""


def run(command: list[str]) -> tuple[float, float, int]:
    """Wall and CPU seconds of a process and its children, and peak resident bytes of the largest."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(process.stderr.read().decode())
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def subset(data: Path, classes: int, folder: Path) -> Path:
    """A folder that links to the first classes of the training split."""
    root = data / "train" if (data / "train").is_dir() else data
    target = folder / f"{classes}-classes"
    target.mkdir()
    for entry in sorted(root.iterdir())[:classes]:
        (target / entry.name).symlink_to(entry.resolve())
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=3)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        output = str(folder / "out.safetensors")

        def convert(data: Path) -> list[str]:
            return [
                sys.executable,
                "-m",
                "protonmf_cli",
                "convert",
                words.model,
                "--data",
                str(data),
                "-o",
                output,
                "--force",
                "-q",
            ]

        data = subset(words.data, words.classes, folder)
        ways = {
            "plain": [sys.executable, "-c", PLAIN, words.model, str(data), str(os.cpu_count() or 1)],
            "convert": convert(data),
            "without stability": [*convert(data), "--no-stability"],
        }
        times: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(words.repeat):
            for way, command in ways.items():
                times[way].append(run(command)[:2])
            print("  ".join(f"{way} {t[-1][0]:.1f} s, {t[-1][1]:.1f} CPU s" for way, t in times.items()), flush=True)
        plain, *others = (tuple(map(statistics.median, zip(*t, strict=True))) for t in times.values())
        for way, found in zip(list(ways)[1:], others, strict=True):
            print(f"{way} / plain = {found[0] / plain[0]:.2f} (wall, medians), {found[1] / plain[1]:.2f} (CPU)")
        peaks = [
            run(convert(subset(words.data, count, folder) if count != words.classes else data))[2] for count in (6, 24)
        ]
        print(
            f"peak memory: 6 classes {peaks[0] / 2**20:.0f} MiB, 24 classes {peaks[1] / 2**20:.0f} MiB, ratio {peaks[1] / peaks[0]:.3f}"
        )


if __name__ == "__main__":
    main()
