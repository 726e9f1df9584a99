"""One network of every kind of readout, and trained ones where they are at hand: converted, edited, written as ONNX.

    python tests/benchmarks/onnx_kinds.py [--only KIND ...] [--models FOLDER --data FOLDER] [--json FILE]

Weights of the first are drawn; FOLDER of --models holds networks in timm's format, that of --data images in class
folders, of which `CLASSES` are taken. Differences are onnxruntime's from float64, of the spread of the logits,
amounts and maps; what is refused stands in its row.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import toys
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.models.backbone import ClassName

KINDS: dict[str, tuple[str, dict[str, Any], int]] = {
    "average": ("test_resnet", {}, 96),
    "average, two classifiers": ("efficientformerv2_s0", {}, 224),
    "scaled": ("test_convnext", {}, 96),
    "scaled, tokens": ("test_vit2", {"img_size": 96}, 96),
    "gated": ("mobilenetv3_small_050", {}, 96),
    "gated, a norm inside": ("test_mambaout", {}, 96),
    "gated, masked": ("vgg11", {"mlp_ratio": 0.02}, 224),
    "max pool": ("test_resnet", {"global_pool": "max"}, 96),
    "avgmax pool": ("test_resnet", {"global_pool": "avgmax"}, 96),
    "catavgmax pool": ("test_resnet", {"global_pool": "catavgmax"}, 96),
    "attention-pool": ("test_vit3", {"img_size": 96}, 96),
    "attention-pool, mean query": ("resnet50_clip", {"img_size": 224}, 224),
    "token-writes": ("test_vit", {"img_size": 96}, 96),
    "token-writes, two queries": ("deit_tiny_distilled_patch16_224", {"img_size": 64}, 64),
    "token-writes, registers": ("vit_small_patch14_reg4_dinov2", {"img_size": 70}, 70),
    "token-writes, class attention": ("cait_xxs24_224", {"img_size": 64}, 64),
    "token-writes, a norm in the stream": ("xcit_nano_12_p8_224", {"img_size": 64}, 64),
    "token-writes, weights by hand": ("convit_tiny", {"img_size": 64}, 64),
    "token-writes and votes": ("volo_d1_224", {"img_size": 64}, 64),
    "single-row": ("vit_base_patch16_xp_224", {"img_size": 32, "depth": 2}, 32),
    "branches": ("efficientvim_m1", {}, 128),
    "image-row": ("test_resnet", {}, 96),
}
TRAINED = (
    "mobilenetv2_100.imagenet",
    "resnet18.caltech24",
    "tf_mobilenetv3_large_minimal_100.imagenet",
    "deit_tiny_patch16_224.imagenet",
)
CLASSES, IMAGES = 4, 10
"""Of the trained networks' data: class folders, and images of each."""
COLUMNS = ("kind", "network", "logits", "torch float32", "amounts", "maps", "edited logits", "MB", "seconds", "refused")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="kinds")
    parser.add_argument("--models", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--json", type=Path, help="write the rows")
    options = parser.parse_args()
    rows = []
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in every(options, Path(folder)):
            rows.append(row)
            print("| " + " | ".join(written(row.get(name)) for name in COLUMNS) + " |", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1))


def every(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for every network."""
    data = drawn_images(folder / "images")
    for kind in options.only or KINDS:
        if kind in KINDS:
            yield {"kind": kind, "network": KINDS[kind][0]} | measured(drawn_network(kind, folder), data, folder, kind)
    if options.models is not None:
        some = few_images(options.data, folder / "photographs")
        for name in TRAINED:
            if not options.only or name in options.only:
                yield {"kind": "trained", "network": name} | measured(options.models / name, some, folder, "")


def drawn_images(folder: Path) -> Path:
    """Two classes of coloured squares."""
    generator = np.random.default_rng(0)
    for c, label in enumerate(("first", "second")):
        (folder / label).mkdir(parents=True)
        for n in range(6):
            pixels = generator.integers(0, 90, (240, 240, 3), dtype=np.uint8)
            pixels[40 + 9 * n : 150, 60 : 150 + 9 * n, c] += 140
            Image.fromarray(pixels).save(folder / label / f"{n}.png")
    return folder


def few_images(data: Path, folder: Path) -> Path:
    """Some classes of labelled images, by links."""
    for source in sorted((data / "train").iterdir())[:CLASSES]:
        (folder / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:IMAGES]:
            (folder / source.name / image.name).symlink_to(image.resolve())
    return folder


def drawn_network(kind: str, folder: Path) -> Path:
    """A network of a kind in timm's format, for two classes."""
    architecture, arguments, side = KINDS[kind]
    torch.manual_seed(0)
    network = toys.randomised(timm.create_model(architecture, num_classes=2, **arguments))
    save_checkpoint(
        folder / "network",
        network,
        architecture=architecture,
        model_args=arguments,
        preprocessing=replace(toys.PREPROCESSING, input_size=(3, side, side)),
        classes=(ClassName(label="first"), ClassName(label="second")),
    )
    return folder / "network"


def measured(network: Path, data: Path, folder: Path, kind: str) -> dict[str, Any]:
    """What a network's graph differs by, and of a trained one that of an edited model."""
    model, edited, graph = folder / "m.safetensors", folder / "edited.safetensors", folder / "m.onnx"
    rows = ("--rows", "image") if kind == "image-row" else ()
    words = ("--data", data, "-o", model, "-p", 2, "--near", 1, "-q", "--force", "--no-stability", *rows)
    code, _, err = toys.run("convert", f"local-dir:{network}", *words)
    if code:
        return {"refused": f"convert: {err.strip()[:120]}"}
    started = time.perf_counter()
    code, out, err = toys.run("export", model, "--format", "onnx", "-o", graph, "--force", "--json", "-q")
    seconds = time.perf_counter() - started
    if code:
        return {"refused": err.strip().removeprefix("error: "), "seconds": seconds}
    said = json.loads(out)
    found = {
        **said["differences"],
        "torch float32": said["rounding"],
        "MB": graph.stat().st_size / 1e6,
        "seconds": seconds,
    }
    if kind:
        return found
    label = sorted(each.name for each in data.iterdir())[0]
    image = sorted((data / label).iterdir())[0]
    words = (image, "--model", model, "--class", label, "--zero", 1, "-o", edited, "--force", "-q")
    code, _, err = toys.run("intervene", *words)
    code, out, err = toys.run("export", edited, "--format", "onnx", "-o", graph, "--force", "--json", "-q")
    return found | {"edited logits": json.loads(out)["relative_difference"] if not code else err.strip()}


def written(value: Any) -> str:
    """A cell of the table."""
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:.0e}" if value < 0.1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
