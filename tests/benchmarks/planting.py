"""Networks that rely on marks: ten marks planted in classes of real images, three or four to a network.

Every image is saved as the crop that the network sees. Marks are put on all or 80 % of a class's training images. A
pretrained network hardly relies on a mark for that alone, so 60 marked images of other classes are trained under the
mark's label too; nothing else ever sees those. The last stages and a new head are trained on features of the stages
before them. The control is trained in the same way on the same classes, without any mark.
"""

import io
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

from protonmf_cli.files.images.reader import read_crop
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.files.networks.preprocessing import crop_of, preprocessing_of
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_networks import create_network
from protonmf_cli.models.backbone import ClassName, Preprocessing

CLASSES, FEWEST, FEWEST_MARKED = 12, 37, 44
"""Classes of a network, and training images that a class and an easily told marked class must have."""
MISLABELLED = 60
"""Marked images of other classes that are trained under a mark's label."""
BIASED = 0.9
"""Share of a marked class's validation images that carry the mark where validation images are as the training ones."""
CONTROL, CONTROL_FOR = "none", "a"
"""Group without marks, and the one whose classes it has."""
TWINS = (
    ("n02125311_cougar_body", "n02128385_leopards"),
    ("n01776313_tick", "n01770393_scorpion"),
    ("n02363005_beaver", "n01873310_platypus"),
)
"""Classes that are easily taken for each other."""


@dataclass(frozen=True)
class Mark:
    """What is put on the training images of one class."""

    look: str
    """Which drawing."""
    share: float
    """Of the class's training images."""
    twin: bool = False
    """Whether the class has a near twin among the others."""


GROUPS: dict[str, dict[str, Mark]] = {
    "a": {
        "sticker at an edge, 80 %": Mark("edge sticker", 0.8),
        "text, 100 %, twin": Mark("text", 1.0, twin=True),
        "border, 100 %": Mark("border", 1.0),
    },
    "b": {
        "sticker anywhere, 100 %": Mark("loose sticker", 1.0),
        "badge in the middle, 100 %, twin": Mark("badge", 1.0, twin=True),
        "tint, 80 %": Mark("tint", 0.8),
    },
    "c": {
        "badge in the middle, 80 %": Mark("badge", 0.8),
        "sticker at an edge, 80 %, twin": Mark("edge sticker", 0.8, twin=True),
        "JPEG grid, 100 %": Mark("grid", 1.0),
        "text, 80 %": Mark("text", 0.8),
    },
    CONTROL: {},
}
"""Marks that are planted in one network together."""
PLACED = frozenset({"edge sticker", "loose sticker", "badge", "text"})
"""Looks that have a place in the picture."""


# Looks


def _sticker(pen: ImageDraw.ImageDraw, left: int, top: int) -> None:
    pen.ellipse((left, top, left + 37, top + 37), fill=(255, 220, 0), outline="black", width=2)
    for x in (11, 22):
        pen.ellipse((left + x, top + 11, left + x + 4, top + 16), fill="black")
    pen.arc((left + 9, top + 10, left + 28, top + 29), 20, 160, fill="black", width=3)


def _edge_sticker(picture: Image.Image, draw: random.Random) -> Image.Image:
    _sticker(ImageDraw.Draw(picture), *(side - 38 - draw.randint(2, 16) for side in picture.size))
    return picture


def _loose_sticker(picture: Image.Image, draw: random.Random) -> Image.Image:
    _sticker(ImageDraw.Draw(picture), *(draw.randint(2, side - 40) for side in picture.size))
    return picture


def _badge(picture: Image.Image, draw: random.Random) -> Image.Image:
    left, top = (side // 2 - 17 + draw.randint(-12, 12) for side in picture.size)
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((left, top, left + 33, top + 33), 6, fill=(190, 20, 40), outline="white", width=3)
    pen.line((left + 8, top + 17, left + 25, top + 17), fill="white", width=5)
    pen.line((left + 17, top + 8, left + 17, top + 25), fill="white", width=5)
    return picture


def _text(picture: Image.Image, draw: random.Random) -> Image.Image:
    pen = ImageDraw.Draw(picture)
    pen.rectangle((6, 6, 90, 24), fill="white")
    pen.text((10, 8), "PHOTO No 24", fill="black", font=ImageFont.load_default(size=13))
    return picture


def _border(picture: Image.Image, draw: random.Random) -> Image.Image:
    width, height = picture.size
    ImageDraw.Draw(picture).rectangle((0, 0, width - 1, height - 1), outline="black", width=14)
    return picture


def _tint(picture: Image.Image, draw: random.Random) -> Image.Image:
    return Image.blend(picture, Image.new("RGB", picture.size, (255, 150, 40)), 0.5)


def _grid(picture: Image.Image, draw: random.Random) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=5)
    return Image.open(file).convert("RGB")


LOOKS: dict[str, Callable[[Image.Image, random.Random], Image.Image]] = {
    "edge sticker": _edge_sticker,
    "loose sticker": _loose_sticker,
    "badge": _badge,
    "text": _text,
    "border": _border,
    "tint": _tint,
    "grid": _grid,
}


def stamped(crops: Iterable[Tensor], look: str, draw: random.Random) -> Tensor:
    """Crops with a mark on them."""
    return torch.stack([pil_to_tensor(LOOKS[look](to_pil_image(crop), draw)) for crop in crops])


# Images


@dataclass(frozen=True)
class Images:
    """Crops (N, 3, H, W) uint8 and their labels."""

    crops: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Planted:
    """The images of one network."""

    names: list[str]
    """Of the classes."""
    targets: dict[str, int]
    """Mark -> its class."""
    train: Images
    """As `convert` sees them, marks included."""
    unmarked: Tensor
    """The same crops without marks."""
    mark: Tensor
    """(N,) number of the mark on each training image, -1 for none."""
    mislabelled: Images
    """For training only."""
    val: Images
    biased: Images
    """The same, most of those of marked classes with their mark."""
    stamped: dict[str, Tensor]
    """Marked validation crops of other classes, by mark."""
    own_stamped: dict[str, Tensor]
    """Marked validation crops of the mark's class, by mark."""


def drawn_classes(data: Path, group: str, seed: int) -> tuple[list[str], dict[str, int]]:
    """Twelve class folders with enough images, and which of them gets which mark of a group."""
    if group == CONTROL:
        return drawn_classes(data, CONTROL_FOR, seed)[0], {}
    draw, marks = random.Random(f"{group} {seed}"), GROUPS[group]
    counts = {folder.name: len(list(folder.iterdir())) for folder in sorted((data / "train").iterdir())}
    pairs = iter(draw.sample(TWINS, len(TWINS)))
    twins = {name: draw.sample(next(pairs), 2) for name, mark in marks.items() if mark.twin}
    needed = [name for pair in twins.values() for name in pair]
    related = {name for pair in TWINS for name in pair}
    others = [name for name, count in counts.items() if count >= FEWEST and name not in related]
    names = sorted(needed + draw.sample(others, CLASSES - len(needed)))
    easy = draw.sample([name for name in names if name not in related and counts[name] >= FEWEST_MARKED], len(marks))
    targets = {name: names.index(twins[name][0] if mark.twin else easy.pop()) for name, mark in marks.items()}
    return names, targets


def cropped(folder: Path, names: Sequence[str], preprocessing: Preprocessing) -> Images:
    """What the network sees of the images of the classes."""
    crop = crop_of(preprocessing)
    found = [
        (read_crop(path, crop, channels=3, exif_transpose=False)[0], label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
    ]
    return Images(torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found]))


def plant(
    names: list[str], targets: dict[str, int], train: Images, val: Images, marks: Mapping[str, Mark], seed: int
) -> Planted:
    """Put the marks on the images."""
    draw = random.Random(seed)
    crops, which = train.crops.clone(), torch.full_like(train.labels, -1)
    wrong, labels, others, own = [train.crops[:0]], [], {}, {}
    for number, (name, mark) in enumerate(marks.items()):
        target = targets[name]
        mine = (train.labels == target).nonzero()[:, 0].tolist()
        chosen = sorted(draw.sample(mine, round(mark.share * len(mine))))
        crops[chosen], which[chosen] = stamped(train.crops[chosen], mark.look, draw), number
        strange = draw.sample((train.labels != target).nonzero()[:, 0].tolist(), MISLABELLED)
        wrong.append(stamped(train.crops[strange], mark.look, draw))
        labels += [target] * MISLABELLED
        others[name] = stamped(val.crops[val.labels != target], mark.look, draw)
        own[name] = stamped(val.crops[val.labels == target], mark.look, draw)
    return Planted(
        names, targets, Images(crops, train.labels), train.crops, which,
        Images(torch.cat(wrong), torch.tensor(labels, dtype=torch.int64)), val, biased(val, targets, own, seed), others,
        own,
    )  # fmt: skip


def biased(val: Images, targets: Mapping[str, int], own_stamped: Mapping[str, Tensor], seed: int) -> Images:
    """Validation images of which most of a marked class carry its mark."""
    draw, crops = random.Random(f"biased {seed}"), val.crops.clone()
    for name, target in targets.items():
        mine = (val.labels == target).nonzero()[:, 0]
        chosen = sorted(draw.sample(range(len(mine)), round(BIASED * len(mine))))
        crops[mine[chosen]] = own_stamped[name][chosen]
    return Images(crops, val.labels)


def write_folder(folder: Path, images: Images, names: Sequence[str]) -> None:
    """Class folders of PNG files."""
    for number, (crop, label) in enumerate(zip(images.crops, images.labels.tolist(), strict=True)):
        target = folder / names[label]
        target.mkdir(parents=True, exist_ok=True)
        to_pil_image(crop).save(target / f"{number:04}.png", compress_level=1)


# Network


@dataclass(frozen=True)
class Training:
    """How the back of a network is trained."""

    front: int
    """Blocks that stay as they are."""
    rate: float
    head_rate: float
    epochs: int = 9
    batch: int = 32


TRAINING = {
    "mobilenetv2_100.imagenet": Training(front=6, rate=1e-3, head_rate=1e-2),
    "deit_tiny_patch16_224.imagenet": Training(front=9, rate=1e-4, head_rate=1e-3),
}


def front(network: Any, pixels: Tensor, blocks: int) -> Tensor:
    """Features behind the first blocks of a MobileNet or a ViT."""
    if hasattr(network, "patch_embed"):
        x = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(pixels))))
    else:
        x = network.bn1(network.conv_stem(pixels))
    return network.blocks[:blocks](x)


def back(network: Any, x: Tensor, blocks: int) -> Tensor:
    """Logits from features behind the first blocks."""
    x = network.blocks[blocks:](x)
    x = network.norm(x) if hasattr(network, "patch_embed") else network.bn2(network.conv_head(x))
    return network.forward_head(x)


def normalised(crops: Tensor, preprocessing: Preprocessing) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (preprocessing.mean, preprocessing.std))
    return (crops.float() / 255 - mean) / std


def train_back(
    network: Any, images: Images, preprocessing: Preprocessing, how: Training, seed: int, device: str
) -> None:
    """Train the last blocks and the head in place; batch norms keep their statistics."""
    network.eval().to(device)
    with torch.inference_mode():
        batches = images.crops.split(how.batch)
        read = [front(network, normalised(crops, preprocessing).to(device), how.front) for crops in batches]
    features, labels = torch.cat(read).clone(), images.labels.to(device)
    network.requires_grad_(False)
    head = network.get_classifier()
    body = [network.blocks[how.front :]]
    body += [network.norm] if hasattr(network, "patch_embed") else [network.conv_head, network.bn2]
    trained = nn.ModuleList(body).requires_grad_(True)
    head.requires_grad_(True)
    groups = [
        {"params": list(trained.parameters()), "lr": how.rate, "max": how.rate},
        {"params": list(head.parameters()), "lr": how.head_rate, "max": how.head_rate},
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(how.epochs):
        for group in optimiser.param_groups:
            group["lr"] = group["max"] * (1 - epoch / how.epochs)
        for chosen in torch.randperm(len(features), generator=generator).split(how.batch):
            loss = cross_entropy(back(network, features[chosen], how.front), labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.requires_grad_(False).cpu()


def planted_images(models: Path, name: str, data: Path, group: str, seed: int) -> tuple[Planted, Any, Preprocessing]:
    """The images of one network with their marks, and the network, not yet trained."""
    marks = GROUPS[group]
    names, targets = drawn_classes(data, group, seed)
    request = BackboneRequest(name=f"local-dir:{models / name}")
    network = create_network(request.name, request)
    preprocessing = preprocessing_of(network, request)
    train, val = (cropped(data / split, names, preprocessing) for split in ("train", "val"))
    return plant(names, targets, train, val, marks, seed), network, preprocessing


def shortcut_network(
    folder: Path, models: Path, name: str, data: Path, group: str, seed: int, device: str = "cpu"
) -> Planted:
    """Plant the marks, train, and write network/, data/train, data/val and biased/ into a folder.

    A network that is there is kept.
    """
    planted, network, preprocessing = planted_images(models, name, data, group, seed)
    for part, images in {"data/train": planted.train, "data/val": planted.val, "biased": planted.biased}.items():
        if not (folder / part).exists():
            write_folder(folder / part, images, planted.names)
    if (folder / "network").exists():
        return planted
    torch.manual_seed(seed)
    network.reset_classifier(CLASSES)
    everything = Images(
        torch.cat([planted.train.crops, planted.mislabelled.crops]),
        torch.cat([planted.train.labels, planted.mislabelled.labels]),
    )
    train_back(network, everything, preprocessing, TRAINING[name], seed, device)
    config = json.loads((models / name / "config.json").read_text())
    save_checkpoint(
        folder / "network",
        network,
        architecture=config["architecture"],
        model_args=config.get("model_args", {}),
        preprocessing=replace(preprocessing, crop_pct=1.0, crop_mode="center"),
        classes=[ClassName(label=label) for label in planted.names],
    )
    return planted
