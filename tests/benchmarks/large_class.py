"""Time and memory of one class of many images, whose rows do not fit into `--memory`.

    python tests/benchmarks/large_class.py MODEL IMAGES [--count 20000] [--pixels 64] [--memory 1] [--threads 2]

IMAGES is a folder or a zip of pictures; they are scaled, and mirrored and brightened where there are too few, to make
one class of the model's (its first). The plain pass is timm's own loader and network over the same files. Prints the ratio of the wall and CPU times of whole processes, and the peak of memory beside
`--memory` + 1 GB.
"""

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageEnhance, ImageOps

PLAIN = """
import sys, timm, torch
name, data, workers = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(workers)
network = timm.create_model(name, pretrained=True).eval()
config = timm.data.resolve_data_config({}, model=network)
loader = timm.data.create_loader(timm.data.create_dataset("", root=data), config["input_size"], batch_size=32,
    is_training=False, use_prefetcher=False, interpolation=config["interpolation"], mean=config["mean"],
    std=config["std"], crop_pct=config["crop_pct"], num_workers=workers)
with torch.inference_mode():
    for images, _ in loader:
        network(images).argmax(dim=1)
"""


def pictures(source: Path) -> Iterator[Image.Image]:
    """All pictures of a folder or zip, again and again, each time changed otherwise."""
    if source.suffix == ".zip":
        archive = zipfile.ZipFile(source)
        read = [lambda n=n: archive.read(n) for n in sorted(archive.namelist()) if n.lower().endswith((".jpg", ".png"))]
    else:
        read = [path.read_bytes for path in sorted(source.rglob("*")) if path.suffix.lower() in (".jpg", ".png")]
    for turn in range(1000):
        for each in read:
            picture = Image.open(io.BytesIO(each())).convert("RGB")
            picture = ImageOps.mirror(picture) if turn % 2 else picture
            yield ImageEnhance.Brightness(picture).enhance(1 - 0.1 * (turn // 2))


def run(command: list[str]) -> tuple[float, float, int]:
    """Wall seconds, CPU seconds and peak resident bytes of a process."""
    start = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(process.stderr.read().decode())
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--memory", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--work", type=Path, help="folder for the images; they are used again where they are there")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = (words.work or Path(name)) / f"{words.count}-{words.pixels}"
        folder = root / "0"
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(pictures(words.images)):
            if number == words.count:
                break
            path = folder / f"{number:06d}.jpg"
            if not path.exists():
                picture.resize((words.pixels, words.pixels)).save(path, quality=90)
        classes = Path(name) / "classes.txt"
        classes.write_text("0,0\n")
        convert = [
            sys.executable, "-m", "protonmf_cli", "convert", words.model, "--data", str(root), "-o",
            str(Path(name) / "m.safetensors"), "--class-map", str(classes), "--memory", str(words.memory), "-q",
            "--threads", str(words.threads),
        ]  # fmt: skip
        plain = run([sys.executable, "-c", PLAIN, words.model, str(root), str(words.threads)])
        ours = run(convert)
        print(f"plain pass {plain[0]:.0f} s, {plain[1]:.0f} CPU s; conversion {ours[0]:.0f} s, {ours[1]:.0f} CPU s")
        print(f"conversion / plain pass = {ours[0] / plain[0]:.2f} (wall)")
        print(
            f"peak memory {ours[2] / 2**30:.2f} GiB; --memory {words.memory:g} + 1 GB = {words.memory + 1e9 / 2**30:.2f}"
        )


if __name__ == "__main__":
    main()
