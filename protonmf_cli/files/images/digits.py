"""scikit-learn's handwritten digits (1,797 real images, 8 x 8) as class folders and a network for them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.files.networks.timm_import import import_timm
from protonmf_cli.models.backbone import ClassName, Preprocessing

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(ClassName(label=name) for name in NAMES)
SIDE = 64
ARCHITECTURE = "test_resnet"
MODEL_ARGS = {"output_stride": 8}
"""Keeps a map of 8 x 8 places, so that the pictures show strokes."""
PREPROCESSING = Preprocessing(
    input_size=(3, SIDE, SIDE),
    interpolation="bicubic",
    crop_pct=1.0,
    crop_mode="center",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)


@dataclass(frozen=True, kw_only=True)
class Digits:
    """Images and labels of one split, as the network sees them."""

    pixels: Tensor
    """(n, 3, 64, 64) float32, normalised."""
    labels: Tensor
    """(n,) int64"""


def write_digits(folder: Path) -> tuple[Digits, Digits]:
    """Write `train/NAME/*.png` and `val/NAME/*.png` (a fifth of each class) and return both splits."""
    images, labels = load_digits(return_X_y=True)
    chosen = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    splits = []
    for split, numbers in zip(("train", "val"), chosen, strict=True):
        pictures = []
        for number in numbers:
            target = folder / split / NAMES[labels[number]]
            target.mkdir(parents=True, exist_ok=True)
            small = Image.fromarray((images[number].reshape(8, 8) * (255 / 16)).astype(np.uint8))
            picture = small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
            picture.save(target / f"{number:04d}.png")
            pictures.append(np.asarray(picture))
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float().div(255).sub(0.5).div(0.5)
        splits.append(Digits(pixels=pixels, labels=torch.from_numpy(labels[numbers]).long()))
    return splits[0], splits[1]


def untrained_network(seed: int) -> nn.Module:
    """A small residual network with ten classes; the global random state is left as it was."""
    timm = import_timm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        found: nn.Module = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=len(NAMES), **MODEL_ARGS)
        return found


def save_network(folder: Path, network: nn.Module) -> None:
    """Write the trained network as a timm folder."""
    save_checkpoint(
        folder,
        network,
        architecture=ARCHITECTURE,
        model_args=MODEL_ARGS,
        preprocessing=PREPROCESSING,
        classes=CLASSES,
    )
