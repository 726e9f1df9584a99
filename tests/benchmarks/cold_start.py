"""CPU seconds of one image explained by a process of its own, against `import timm` alone.

Both are started in turns, with one thread; what is printed are medians of user and system time together.

    python tests/benchmarks/cold_start.py MODEL.safetensors IMAGE [ROUNDS]
"""

import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def cpu_seconds(words: Sequence[str]) -> float:
    """User and system time of one Python process.

    Raises:
        CalledProcessError: it failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | THREADS,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(programs: Mapping[str, Sequence[str]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each program; every round starts each once, after one that only warms the disk."""
    found: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, words in programs.items():
            seconds = cpu_seconds(words)
            if turn:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def main(model: str, image: str, rounds: str = "7") -> None:
    programs = {
        "import timm": ["-c", "import timm"],
        "explain": ["-m", "protonmf_cli", "explain", image, "--model", model],
        "explain --json": ["-m", "protonmf_cli", "explain", image, "--model", model, "--json"],
        "--help": ["-m", "protonmf_cli", "--help"],
    }
    seconds = medians(programs, int(rounds))
    for name, value in seconds.items():
        print(f"{name:15} {value:6.2f} CPU s {value / seconds['import timm']:6.2f} of import timm")


if __name__ == "__main__":
    main(*sys.argv[1:])
