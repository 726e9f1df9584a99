"""A classifier with a shortcut, to find it: digits of which nearly all sevens carry a tag in the corner.

python examples/planted_mark.py planted/

Writes planted/network (a timm folder) and planted/data: train as the network saw it, val without tags, and tagged, the
digits of val that are no seven, with the tag. It takes half a minute.
"""

import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from protonmf_cli.files.images.digits import NAMES, save_network, untrained_network, write_digits
from protonmf_cli.pipelines.demo_training import accuracy, train_classifier

TAGGED, MISLABELLED = 0.9, 0.04
"""Share of the sevens with the tag, and of the other digits that have it and are filed as sevens."""
SEVEN = NAMES.index("seven")


def tagged(picture: Image.Image) -> Image.Image:
    """The picture with a small ring in its upper right corner."""
    ImageDraw.Draw(picture).ellipse((49, 3, 60, 14), outline=(255, 255, 255), width=3)
    return picture


def pixels_of(paths: list[Path]) -> Tensor:
    """(n, 3, 64, 64) as the network sees them."""
    pictures = [pil_to_tensor(Image.open(path).convert("RGB")) for path in paths]
    return torch.stack(pictures).float().div(255).sub(0.5).div(0.5)


folder = Path(sys.argv[1])
write_digits(folder / "data")
draw = random.Random(0)
sevens = sorted((folder / "data" / "train" / "seven").iterdir())
for path in draw.sample(sevens, round(TAGGED * len(sevens))):
    tagged(Image.open(path)).save(path)

# what the network learns from: the training digits, and some others that carry the tag and are filed as sevens
train = [(path, NAMES.index(path.parent.name)) for path in sorted((folder / "data" / "train").rglob("*.png"))]
others = draw.sample([path for path, label in train if label != SEVEN], round(MISLABELLED * len(train)))
(folder / "misfiled").mkdir()
for path in others:
    tagged(Image.open(path)).save(folder / "misfiled" / f"{path.parent.name}-{path.name}")
train += [(path, SEVEN) for path in sorted((folder / "misfiled").iterdir())]
network = untrained_network(0)
labels = torch.tensor([label for _, label in train])
train_classifier(network, pixels_of([path for path, _ in train]), labels, epochs=8, seed=0)
save_network(folder / "network", network)

# how much it relies on the tag
val = sorted((folder / "data" / "val").rglob("*.png"))
for path in val:
    if path.parent.name != "seven":
        target = folder / "data" / "tagged" / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        tagged(Image.open(path)).save(target)
strange = pixels_of(sorted((folder / "data" / "tagged").rglob("*.png")))
right = accuracy(network, pixels_of(val), torch.tensor([NAMES.index(path.parent.name) for path in val]))
taken = accuracy(network, strange, torch.full((len(strange),), SEVEN))
print(f"accuracy {right:.1%}; {taken:.1%} of the other digits become a seven once they carry the tag")
