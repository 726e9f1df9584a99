"""Conversions by two processes beside one, and what is left of them when a process is killed.

    python tests/benchmarks/processes.py MODEL DATA [--repeat 3] [--kills 10] [--seed 0] [--ray]

One thread a process. Prints the ratio of the median wall times of whole commands and whether the files are equal; then
a process (the first or the second, by turns) is killed with SIGKILL at random moments; where it was the first, the
command is given again. `--ray` adds a local Ray cluster of two workers, with its start, and one of them killed.
"""

import argparse
import filecmp
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil


class Runs:
    """Commands that convert the same images."""

    def __init__(self, model: str, data: str, folder: Path) -> None:
        self.words = [
            sys.executable, "-m", "protonmf_cli", "convert", model, "--data", data, "--threads", "1", "--workers", "1",
            "-q",
        ]  # fmt: skip
        self.folder = folder

    def start(self, name: str, *more: str) -> subprocess.Popen:
        words = [*self.words, "-o", str(self.folder / name), *more]
        return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def seconds(self, name: str, *more: str) -> float:
        start = time.monotonic()
        process = self.start(name, "--force", *more)
        said = process.communicate()[1]
        if process.returncode:
            sys.exit(said)
        return time.monotonic() - start

    def equal(self, name: str, other: str = "alone") -> bool:
        return filecmp.cmp(self.folder / name, self.folder / other, shallow=False)


def killed(runs: Runs, name: str, after: float, leader: bool, *more: str) -> str:
    """Kill a process at a moment; what was left of the conversion."""
    process = runs.start(name, *more)
    time.sleep(after)
    found = psutil.Process(process.pid)
    victims = [found] if leader else [p for p in found.children() if "worker" in " ".join(p.cmdline())]
    for victim in victims:
        victim.kill()
    process.communicate()
    if leader:
        runs.seconds(name, *more)
    return "equal" if runs.equal(name) else "OTHER"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", action="store_true")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        runs = Runs(words.model, words.data, Path(name))
        ways = {"alone": (), "two": ("--processes", "2")} | ({"ray": ("--ray", "local")} if words.ray else {})
        times = {way: [] for way in ways}
        for _ in range(words.repeat):
            for way, more in ways.items():
                times[way].append(runs.seconds(way, *more))
            print("  ".join(f"{way} {found[-1]:.1f} s" for way, found in times.items()), flush=True)
        medians = {way: statistics.median(found) for way, found in times.items()}
        for way in list(ways)[1:]:
            same = "equal" if runs.equal(way) else "OTHER"
            print(f"{way}: {medians['alone'] / medians[way]:.2f} times as fast as alone, {same} bytes")
        draw = random.Random(words.seed)
        for number in range(words.kills):
            moment, leader = draw.uniform(0.5, 0.95 * medians["two"]), number % 2 == 0
            found = killed(runs, f"killed{number}", moment, leader, "--processes", "2")
            print(f"{'first' if leader else 'second'} process killed after {moment:.1f} s: {found} bytes", flush=True)


if __name__ == "__main__":
    main()
