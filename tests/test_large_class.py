"""A class that is larger than `--memory`: as little memory, the same bytes."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

IMAGES, ROWS, CROP = 1200, 49 * 512 * 4, 3 * 224 * 224


@pytest.fixture(scope="module")
def images(shared, tmp_path_factory) -> Path:
    """One class of small photographs."""
    folder = tmp_path_factory.mktemp("large") / "data" / "one"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(shared / "data" / "cifar10_12k.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if "/train/" in f"/{name}" and name.endswith(".jpg")]
        for number, name in enumerate(names[:IMAGES]):
            (folder / f"{number:05d}.jpg").write_bytes(archive.read(name))
    (folder.parent.parent / "map.csv").write_text("one,0\n")
    return folder.parent


# Starts the command from a process that is small itself: a child's peak begins with the memory of its parent.
MEASURE = """
import os, sys
pid = os.posix_spawn(sys.executable, [sys.executable, *sys.argv[1:]], os.environ)
_, status, usage = os.wait4(pid, 0)
print(usage.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""


HANDED_BACK = {"MALLOC_TRIM_THRESHOLD_": str(2**17)}
"""Under which a process keeps no memory that is free."""


def peak(network: Path, images: Path, target: Path, *words: object, environment: dict[str, str] = HANDED_BACK) -> int:
    """Largest resident bytes of a conversion."""
    command = [
        sys.executable, "-c", MEASURE, "-m", "protonmf_cli", "convert", f"local-dir:{network}",
        "--data", images, "--class-map", images.parent / "map.csv", "-p", 2, "-o", target, "-q", "--threads", 1, *words,
    ]  # fmt: skip
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, check=True)
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_memory_is_a_promise_and_changes_no_byte(shared, images, tmp_path):
    network = shared / "models" / "resnet18.caltech24"
    streamed, whole = tmp_path / "streamed.safetensors", tmp_path / "whole.safetensors"
    least = peak(network, images, tmp_path / "few.safetensors", "--sample", 64)
    memory = 32 * 2**20
    assert memory < IMAGES * (ROWS + CROP) / 8
    most = memory + 128 * 2**20
    assert peak(network, images, streamed, "--memory", memory / 2**30) - least < most
    assert peak(network, images, whole) - least > most  # where all of it is in memory
    assert streamed.read_bytes() == whole.read_bytes()


@pytest.mark.slow
def test_memory_that_is_kept_is_used_again(shared, images, tmp_path):
    network = shared / "models" / "tf_mobilenetv3_large_minimal_100.imagenet"  # whose rows are the largest
    least = peak(network, images, tmp_path / "few.safetensors", "--sample", 256, environment={})
    found = peak(network, images, tmp_path / "all.safetensors", "--memory", 0.03, environment={})
    assert found - least < 240 * 2**20  # 117 MiB; where small tensors pin what large ones leave, 375
