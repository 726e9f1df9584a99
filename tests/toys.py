"""A classifier small enough to convert in a second, and images for it."""

import contextlib
import io
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from protonmf_cli.cli.app import main
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.models.backbone import ClassName, Preprocessing
from protonmf_cli.pipelines.demo_training import train_classifier

LABELS = ("red things", "green things", "blue things", "grey things")
PREPROCESSING = Preprocessing(
    input_size=(3, 64, 64),
    interpolation="bicubic",
    crop_pct=0.9,
    crop_mode="center",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
)
COMMAND = "import runpy; runpy.run_module('protonmf_cli', run_name='__main__')"
HEED_INTERRUPTS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"


def slow(*values: object):
    """Values of a parameter that a quicker test does not need beside the others."""
    return pytest.param(*values, marks=pytest.mark.slow)


@dataclass(frozen=True)
class Toy:
    folder: Path
    network: Path
    data: Path

    @property
    def name(self) -> str:
        return f"local-dir:{self.network}"

    def image(self, class_index: int = 0, split: str = "val") -> Path:
        return sorted((self.data / split / LABELS[class_index]).iterdir())[0]


def randomised(network: torch.nn.Module, seed: int = 1) -> torch.nn.Module:
    """Weights, norm parameters and batch statistics all drawn, so that no wrong formula is hidden by ones and zeros."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            with torch.no_grad():
                tensor.add_(0.3 * noise if tensor.ndim <= 1 or "running" in name else 0.05 * (noise - 0.5))
    return network.eval()


def make(folder: Path) -> Toy:
    generator = np.random.default_rng(0)
    crops, targets = [], []
    crop = crop_of(PREPROCESSING)
    for split, count in (("train", 6), ("val", 3)):
        for c, label in enumerate(LABELS):
            target = folder / "data" / split / label
            target.mkdir(parents=True)
            for n in range(count + c):
                pixels = generator.integers(0, 90, (60 + 7 * n, 80, 3), dtype=np.uint8)
                pixels[10:40, 15 + n : 50 + n, c if c < 3 else slice(None)] += 140
                picture = Image.fromarray(pixels)
                picture.save(target / f"image {n}.png")
                crops.append(crop(picture))
                targets.append(c)
    torch.manual_seed(0)
    network = timm.create_model("test_resnet", num_classes=len(LABELS), output_stride=16)
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESSING.mean, PREPROCESSING.std))
    pixels = (torch.stack(crops) / 255 - mean) / std
    train_classifier(network, pixels, torch.tensor(targets), epochs=6, seed=0, batch_size=8)
    save_checkpoint(
        folder / "network",
        network,
        architecture="test_resnet",
        model_args={"output_stride": 16},
        preprocessing=PREPROCESSING,
        classes=tuple(ClassName(label=label) for label in LABELS),
    )
    return Toy(folder=folder, network=folder / "network", data=folder / "data")


def make_vit(toy: Toy) -> Toy:
    """A small ViT with drawn weights and the toy's images: rows without a place, some of them below zero."""
    torch.manual_seed(0)
    network = randomised(timm.create_model("test_vit", num_classes=len(LABELS), img_size=64))
    save_checkpoint(
        toy.folder / "vit",
        network,
        architecture="test_vit",
        model_args={"img_size": 64},
        preprocessing=PREPROCESSING,
        classes=tuple(ClassName(label=label) for label in LABELS),
    )
    return Toy(folder=toy.folder, network=toy.folder / "vit", data=toy.data)


def run(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command in this process."""
    out = io.StringIO()
    code, err = run_into(out, *words)
    return code, out.getvalue(), err


def run_into(out: TextIO, *words: object) -> tuple[int, str]:
    """Exit code and stderr of a command in this process that writes its stdout to a file."""
    err = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return code, err.getvalue()


def start(*words: object, program: str = COMMAND, **options) -> subprocess.Popen:
    """A command (or a program for Python) in a process of its own, which heeds SIGINT even where this one ignores it."""
    return subprocess.Popen([sys.executable, "-c", HEED_INTERRUPTS + program, *map(str, words)], text=True, **options)


def convert(toy: Toy, output: Path, *words: object) -> Path:
    code, _, err = run("convert", toy.name, "--data", toy.data, "-o", output, "-p", 2, "--near", 1, "-q", *words)
    assert code == 0, err
    return output
