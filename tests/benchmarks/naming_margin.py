"""How often the best word for a prototype is right, by how much more probable it is than the second.

No CLIP is needed: a classifier's features and the rows of its head are an image and a text tower of its classes' names,
and the scale of its cosines is fitted by cross entropy on images, as CLIP's is. A name is right where it is the class of
the prototype, which was made from another network. Classes of even number choose the ratio, those of odd number test it.

    python tests/benchmarks/naming_margin.py MODEL_FILE TOWER DATA   # DATA: train/ and val/ of class folders nXXXXXXXX_name
"""

import json
import sys
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, normalize

from protonmf_cli.jobs import naming
from protonmf_cli.pipelines.naming import RATIO

RATIOS = (1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0)


class HeadTowers:
    """A timm classifier as two towers: pooled features, and the rows of the head that words name."""

    def __init__(self, folder: str) -> None:
        self.name = self.digest = folder
        self.network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        config = timm.data.resolve_model_data_config(self.network)
        self.transform = timm.data.create_transform(**config)
        self.words = timm.data.ImageNetInfo().label_names()
        self.scale = 1.0

    def see(self, patches):
        pixels = [self.transform(Image.fromarray(p.permute(1, 2, 0).contiguous().numpy())) for p in patches]
        with torch.inference_mode():
            found = self.network.forward_head(self.network.forward_features(torch.stack(pixels)), pre_logits=True)
        return normalize(found, dim=1)

    def read(self, sentences):
        rows = normalize(self.network.get_classifier().weight.detach(), dim=1)
        return rows[[self.words.index(sentence) for sentence in sentences]]

    def fit_scale(self, images: list[Path], labels: list[str]) -> None:
        """By cross entropy, over a grid of a tenth."""
        pixels = [torch.from_numpy(np.array(Image.open(p).convert("RGB"))).permute(2, 0, 1) for p in images]
        cosines = (
            torch.cat([self.see(pixels[n : n + 32]) for n in range(0, len(pixels), 32)]) @ self.read(self.words).mT
        )
        targets = torch.tensor([self.words.index(label) for label in labels])
        grid = np.geomspace(1, 1000, 73)
        self.scale = float(min(grid, key=lambda s: float(cross_entropy(s * cosines, targets))))


def shares(rows: list[tuple[float, bool]], ratio: float, generator: np.random.Generator) -> dict[str, float]:
    """Of prototypes the share that has a name, and of names the share that is right with its 95 % interval."""
    named = np.array([right for odds, right in rows if odds >= ratio])
    draws = [generator.choice(named, len(named)).mean() for _ in range(2000)] if len(named) else [np.nan]
    low, high = np.quantile(draws, [0.025, 0.975])
    right = float(named.mean()) if len(named) else np.nan
    return {"ratio": ratio, "named": len(named) / len(rows), "right": right, "low": float(low), "high": float(high)}


def main(file: str, tower: str, data: str) -> None:
    """Print a line of JSON per half of the classes and ratio."""
    towers = HeadTowers(tower)
    images = [sorted(folder.iterdir())[:5] for folder in sorted(Path(data, "train").iterdir())]
    flat = [(image, image.parent.name.split("_")[0]) for folder in images for image in folder]
    towers.fit_scale([image for image, _ in flat], [label for _, label in flat])
    found = naming.name(file, towers.words, towers, template="{word}", min_margin=0.0)
    model, halves = found.model, ([], [])
    for fit in found.fits:
        owner = int(model.owner[fit.prototype_id])
        label = model.card.classes[owner].label.split("_")[0]
        odds = float(np.exp(towers.scale * fit.nearest.margin))
        halves[model.active_classes.tolist().index(owner) % 2].append((odds, fit.nearest.word == label))
    generator = np.random.default_rng(0)
    print(json.dumps({"scale": towers.scale, "default ratio": RATIO, "chance": 1 / len(towers.words)}))
    for name, rows in zip(("choose", "test"), halves, strict=True):
        for ratio in RATIOS:
            print(json.dumps({"half": name, "prototypes": len(rows), **shares(rows, ratio, generator)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
