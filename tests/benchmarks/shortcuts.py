"""Planted shortcuts: a network that relies on marks, after edits of their prototypes or a new last layer.

    python tests/benchmarks/shortcuts.py [--network NAME ...] [--seeds 0 1] [-p 3] [--work DIR] [--json FILE]

Three marks (a sticker at the bottom right, a text stamp at the top left, a black border) are put on 90 % of the
training images of one class each, of twelve. A pretrained network does not rely on a mark for that alone, so 60
marked images of other classes per mark are added under the mark's label, for training only; the last stages and a new
head are trained on features of the stages before them. The network is converted on the twelve classes as they are.

For every row of the table, per mark: flips, the share of marked validation images of other classes that go to the
mark's class; own, the accuracy of the mark's class on validation images without marks; all, that of all twelve
classes. Which prototype is a mark's is decided on training images: of its class, the one whose amount grows most
when the mark is put on. Every edit is again a linear head on the sum of an image's rows, so each image is read once;
with --work they are kept, and a second run only converts again.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from PIL import ImageDraw, ImageFont
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import protonmf_cli
from protonmf_cli.files.images.reader import read_crop
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.files.networks.loading import BackboneRequest, create_network
from protonmf_cli.files.networks.preprocessing import crop_of, preprocessing_of
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.maths.amounts import dual
from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Edit
from protonmf_cli.pipelines.explaining.intervention import apply_edits

SHARED = Path(__file__).resolve().parents[3] / "shared"
NETWORKS = ("mobilenetv2_100.imagenet", "deit_tiny_patch16_224.imagenet")
MARKS = ("sticker", "text", "border")
CLASSES, FEWEST, FEWEST_MARKED = 12, 40, 50
"""Classes of a network, and training images that a class and a marked class must have."""
STAMPED, MISLABELLED = 0.9, 60
"""Share of a marked class's training images with the mark, and marked images of other classes under its label."""


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


# Images and marks


@dataclass(frozen=True)
class Images:
    """Crops (N, 3, H, W) uint8 and their labels."""

    crops: Tensor
    labels: Tensor


def drawn_classes(data: Path, seed: int) -> tuple[list[str], dict[str, int]]:
    """Twelve class folders with enough images, and which of them gets which mark."""
    draw = random.Random(seed)
    counts = {folder.name: len(list(folder.iterdir())) for folder in sorted((data / "train").iterdir())}
    names = sorted(draw.sample([name for name, count in counts.items() if count >= FEWEST], CLASSES))
    marked = draw.sample([n for n, name in enumerate(names) if counts[name] >= FEWEST_MARKED], len(MARKS))
    return names, dict(zip(MARKS, marked, strict=True))


def cropped(folder: Path, names: Sequence[str], preprocessing: Preprocessing) -> Images:
    """What the network sees of the images of the classes."""
    crop = crop_of(preprocessing)
    found = [
        (read_crop(path, crop, channels=3, exif_transpose=False)[0], label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).iterdir())
    ]
    return Images(torch.stack([image for image, _ in found]), torch.tensor([label for _, label in found]))


def stamp(crop: Tensor, mark: str, draw: random.Random) -> Tensor:
    """The crop with a mark on it."""
    picture = to_pil_image(crop)
    width, height = picture.size
    pen = ImageDraw.Draw(picture)
    if mark == "border":
        pen.rectangle((0, 0, width - 1, height - 1), outline="black", width=14)
    elif mark == "text":
        left, top = 6, 6
        pen.rectangle((left, top, left + 84, top + 18), fill="white")
        pen.text((left + 4, top + 2), "PHOTO No 24", fill="black", font=ImageFont.load_default(size=13))
    else:
        left, top = (side - 38 - draw.randint(2, 16) for side in (width, height))
        pen.ellipse((left, top, left + 37, top + 37), fill=(255, 220, 0), outline="black", width=2)
        for x in (11, 22):
            pen.ellipse((left + x, top + 11, left + x + 4, top + 16), fill="black")
        pen.arc((left + 9, top + 10, left + 28, top + 29), 20, 160, fill="black", width=3)
    return pil_to_tensor(picture)


def stamped(crops: Iterable[Tensor], mark: str, draw: random.Random) -> Tensor:
    return torch.stack([stamp(crop, mark, draw) for crop in crops])


@dataclass(frozen=True)
class Planted:
    """The images of one run."""

    train: Images
    """As `convert` sees them, marks included."""
    unmarked: Tensor
    """The same crops without marks."""
    mark: Tensor
    """(N,) number of the mark on each training image, -1 for none."""
    mislabelled: Images
    """For training only."""
    val: Images
    stamped: dict[str, Tensor]
    """Marked validation crops of other classes, by mark."""


def plant(train: Images, val: Images, marked: dict[str, int], seed: int) -> Planted:
    """Put the marks on the images."""
    draw = random.Random(seed)
    crops, mark = train.crops.clone(), torch.full_like(train.labels, -1)
    wrong, labels, others = [], [], {}
    for number, (name, target) in enumerate(marked.items()):
        own = (train.labels == target).nonzero()[:, 0].tolist()
        chosen = sorted(draw.sample(own, round(STAMPED * len(own))))
        crops[chosen], mark[chosen] = stamped(train.crops[chosen], name, draw), number
        strange = draw.sample((train.labels != target).nonzero()[:, 0].tolist(), MISLABELLED)
        wrong.append(stamped(train.crops[strange], name, draw))
        labels += [target] * MISLABELLED
        others[name] = stamped(val.crops[val.labels != target], name, draw)
    mislabelled = Images(torch.cat(wrong), torch.tensor(labels))
    return Planted(Images(crops, train.labels), train.crops, mark, mislabelled, val, others)


def write_folder(folder: Path, images: Images, names: Sequence[str]) -> None:
    """Class folders of PNG files."""
    for number, (crop, label) in enumerate(zip(images.crops, images.labels.tolist(), strict=True)):
        target = folder / names[label]
        target.mkdir(parents=True, exist_ok=True)
        to_pil_image(crop).save(target / f"{number:04}.png", compress_level=1)


# Network


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


def train_back(network: Any, images: Images, preprocessing: Preprocessing, how: Training, seed: int) -> None:
    """Train the last blocks and the head in place; batch norms keep their statistics."""
    network.eval()
    with torch.inference_mode():
        batches = images.crops.split(how.batch)
        features = torch.cat([front(network, normalised(crops, preprocessing), how.front) for crops in batches])
    features = features.clone()
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
            loss = cross_entropy(back(network, features[chosen], how.front), images.labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.requires_grad_(False)


def shortcut_network(folder: Path, models: Path, name: str, data: Path, seed: int) -> Planted:
    """Plant the marks, train, and write network/, data/train and data/val into a folder."""
    names, marked = drawn_classes(data, seed)
    request = BackboneRequest(name=f"local-dir:{models / name}")
    network = create_network(request.name, request)
    preprocessing = preprocessing_of(network, request)
    torch.manual_seed(seed)
    network.reset_classifier(CLASSES)
    train, val = (cropped(data / split, names, preprocessing) for split in ("train", "val"))
    planted = plant(train, val, marked, seed)
    write_folder(folder / "data" / "train", planted.train, names)
    write_folder(folder / "data" / "val", planted.val, names)
    everything = Images(
        torch.cat([planted.train.crops, planted.mislabelled.crops]),
        torch.cat([planted.train.labels, planted.mislabelled.labels]),
    )
    train_back(network, everything, preprocessing, TRAINING[name], seed)
    config = json.loads((models / name / "config.json").read_text())
    save_checkpoint(
        folder / "network",
        network,
        architecture=config["architecture"],
        model_args=config.get("model_args", {}),
        preprocessing=replace(preprocessing, crop_pct=1.0, crop_mode="center"),
        classes=[ClassName(label=label) for label in names],
    )
    return planted


# What the network reads


@dataclass(frozen=True)
class Rows:
    """Sums of the rows of images, float64, and what the prototypes of signed rows need."""

    train: Tensor
    labels: Tensor
    mark: Tensor
    unmarked: Tensor
    """(N, D) of the training images without their marks; equal to `train` where there is none."""
    val: Tensor
    val_labels: Tensor
    stamped: dict[str, Tensor]


def read_sums(backbone: Backbone, crops: Tensor) -> Tensor:
    return torch.cat([backbone.read(batch).rows.sum(dim=1) for batch in crops.split(32)]).double()


def read_rows(backbone: Backbone, planted: Planted) -> Rows:
    """Read every image once."""
    train = read_sums(backbone, planted.train.crops)
    unmarked, changed = train.clone(), planted.mark >= 0
    unmarked[changed] = read_sums(backbone, planted.unmarked[changed])
    return Rows(
        train=train,
        labels=planted.train.labels,
        mark=planted.mark,
        unmarked=unmarked,
        val=read_sums(backbone, planted.val.crops),
        val_labels=planted.val.labels,
        stamped={mark: read_sums(backbone, crops) for mark, crops in planted.stamped.items()},
    )


Head = tuple[Tensor, Tensor]
"""V (C, D) and b (C,)."""


# Prototypes and edits


def converted(folder: Path, name: str, threads: int, *options: str) -> Loaded:
    """`protonmf convert` of the network, whose features are kept."""
    output = folder / f"{name}.safetensors"
    command = [sys.executable, "-m", "protonmf_cli", "convert", f"local-dir:{folder / 'network'}"]
    command += ["--data", str(folder / "data"), "-o", str(output), "--cache-features", str(folder / "features")]
    command += ["--threads", str(threads), "--workers", "1", "--no-stability", "--force", "-q", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return protonmf_cli.load(output)


def head_of(model: PrototypeModel) -> Head:
    """The linear head that a model, edited or not, is."""
    return model.head_vectors(), model.bias.double()


def own_edit(model: PrototypeModel, prototype: int) -> Head:
    """The head after `--zero` in the prototype's own class."""
    edit = Edit(class_index=int(model.owner[prototype]), prototype_id=prototype, factor=0.0)
    return head_of(apply_edits(model, [edit]))


def everywhere_edit(model: PrototypeModel, prototypes: Sequence[int]) -> Head:
    """The head after `--everywhere --zero` of prototypes."""
    edits = [Edit(class_index=-1, prototype_id=k, factor=0.0) for k in prototypes]
    return head_of(apply_edits(model, edits))


def with_plain_dual(model: PrototypeModel) -> PrototypeModel:
    """A model whose edits of every class read with the dual of all prototypes, as a control."""
    assert model.amounts is not None
    readers = dual(model.prototypes, 0.0).readers.float()
    return replace(model, evidence=replace(model.amounts, edit_readers=readers))


def growth(model: PrototypeModel, rows: Rows, marked: dict[str, int]) -> dict[str, list[tuple[float, int]]]:
    """By mark, how much each prototype of its class grows when the mark is put on training images, most first."""
    found = {}
    for number, (mark, c) in enumerate(marked.items()):
        change = (rows.train - rows.unmarked)[rows.mark == number].mean(dim=0)
        own = model.own(c)
        amounts = model.exact.readers(c)[: len(own)] @ change
        found[mark] = sorted(zip(amounts.tolist(), own, strict=True), reverse=True)
    return found


# Rows of the table


def refitted_head(rows: Rows, *, standardised: bool) -> Head:
    """Last layer fitted on the training images without marks: logistic regression, its decay by cross-validation."""
    plain = rows.mark < 0
    x, y = rows.train[plain], rows.labels[plain].numpy()
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp_min(1e-9)
    if not standardised:
        scale = scale.square().mean().sqrt()
    search = GridSearchCV(LogisticRegression(max_iter=500), {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}, cv=5)
    found = search.fit(((x - mean) / scale).numpy(), y).best_estimator_
    head = torch.from_numpy(found.coef_).double() / scale
    return head, torch.from_numpy(found.intercept_).double() - head @ mean


def measured(rows: Rows, marked: dict[str, int], heads: dict[str, Head]) -> dict[str, Any]:
    """Flips and clean accuracy of a mark's class under the head of each mark, and of all classes (mean of the heads)."""
    flips, own, everything = {}, {}, []
    for mark, c in marked.items():
        head, bias = heads[mark]
        right = (rows.val @ head.T + bias).argmax(dim=1) == rows.val_labels
        flips[mark] = float(((rows.stamped[mark] @ head.T + bias).argmax(dim=1) == c).double().mean())
        own[mark] = float(right[rows.val_labels == c].double().mean())
        everything.append(float(right.double().mean()))
    return {"flips": flips, "own": own, "all": statistics.mean(everything)}


def table(
    folder: Path, backbone: Backbone, rows: Rows, marked: dict[str, int], words: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Every row of one network and seed."""

    def same(head: Head) -> dict[str, Any]:
        return measured(rows, marked, dict.fromkeys(marked, head))

    def one_each(edit: Callable[[str], Head]) -> dict[str, Any]:
        return measured(rows, marked, {mark: edit(mark) for mark in marked})

    found = {
        "network": same((backbone.readout.vectors.double(), backbone.readout.bias.double())),
        "last layer refitted": same(refitted_head(rows, standardised=False)),
        "last layer refitted, standardised": same(refitted_head(rows, standardised=True)),
    }
    first = str(words.prototypes[0])
    paper = converted(folder, "paper", words.threads, "-p", first, "--recipe", "paper", "--augment", "none").model
    grown = growth(paper, rows, marked)
    found["--recipe paper, --zero"] = one_each(lambda mark, by=grown: own_edit(paper, by[mark][0][1]))
    for count in words.prototypes:
        model = converted(folder, f"p{count}", words.threads, "-p", str(count)).model
        grown = growth(model, rows, marked)
        marks = [grown[mark][0][1] for mark in marked]
        grow_too = [k for by in grown.values() for amount, k in by if amount >= by[0][0] / 4]
        found |= {
            f"p = {count}, --zero": one_each(lambda mark, of=model, by=grown: own_edit(of, by[mark][0][1])),
            f"p = {count}, --everywhere, all marks": same(everywhere_edit(model, marks)),
            f"p = {count}, --everywhere, all that grow": same(everywhere_edit(model, grow_too)),
            f"p = {count}, plain dual of all prototypes": same(everywhere_edit(with_plain_dual(model), marks)),
        }
    return found


def run(network: str, seed: int, words: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Make, read and convert one network, or take what a run before left, and measure every row."""
    folder, start = words.work / f"{network}-seed{seed}", time.process_time()
    _, marked = drawn_classes(words.data, seed)
    kept = folder / "rows.pt"
    planted = None if kept.exists() else shortcut_network(folder, words.models, network, words.data, seed)
    backbone, _ = load_backbone(BackboneRequest(name=f"local-dir:{(folder / 'network').resolve()}"))
    if planted is not None:
        torch.save(vars(read_rows(backbone, planted)), kept)
    rows = torch.load(kept)
    found = table(folder, backbone, Rows(**{each.name: rows[each.name] for each in fields(Rows)}), marked, words)
    weak = [mark for mark, share in found["network"]["flips"].items() if share < 0.7]
    if weak:
        print(f"{network}, seed {seed}: the network hardly relies on {', '.join(weak)}", flush=True)
    own, children = time.process_time() - start, sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    print(f"{network}, seed {seed}: {own:.0f} s of CPU here, {children:.0f} s in conversions so far", flush=True)
    return found


def show(network: str, by_seed: Sequence[dict[str, dict[str, Any]]]) -> None:
    """Print the means over seeds."""
    print(f"\n{network}, {len(by_seed)} seeds\n{'':44}{'flips ' + ' / '.join(MARKS):30}{'own, clean':24}all, clean")
    for row in by_seed[0]:
        figures = [
            " / ".join(f"{statistics.mean(found[row][key][mark] for found in by_seed):.2f}" for mark in MARKS)
            for key in ("flips", "own")
        ]
        everything = statistics.mean(found[row]["all"] for found in by_seed)
        print(f"{row:44}{figures[0]:30}{figures[1]:24}{everything:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "caltech101_imagenet")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("-p", "--prototypes", type=int, nargs="+", default=[3, 5], help="the first for every row")
    parser.add_argument("--work", type=Path, help="folder for networks, images and rows; kept")
    parser.add_argument("--json", type=Path, help="file for the figures of each seed")
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as scratch, threadpool_limits(words.threads):
        words.work = words.work or Path(scratch)
        results = {network: [run(network, seed, words) for seed in words.seeds] for network in words.network}
    for network, by_seed in results.items():
        show(network, by_seed)
    if words.json:
        kept = {network: dict(zip(map(str, words.seeds), found, strict=True)) for network, found in results.items()}
        words.json.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    main()
