"""Unlikeness against four known scores: which images are none of the classes that a network was converted on?

    python tests/benchmarks/outliers.py [--network NAME ...] [--seed 0] [-p 3] [--images 200] [--work DIR] [--json FILE]

Of the 24 classes twelve are drawn; the head of the network is cut down to them, and it is converted on their training
images. In: their validation images. Out: validation images of the other twelve, six flowers, characters, CIFAR-10,
and the validation images themselves blurred (Gaussian, 3 of 224 pixels) or with a mark (sticker, text).

Compared, all from the same pass: the share of the best class (maximum softmax probability, Hendrycks and Gimpel 2017),
energy (Liu et al. 2020), Mahalanobis (Lee et al. 2018: class means and the shared covariance, shrunk as Ledoit and
Wolf say, of the features before the head), nearest neighbours (Sun et al. 2022: the fifth nearest training image by
features of length one; on training images five was better than ten), and `protonmf explain`'s unlikeness. AUROC, then
the share of out images that pass where 95 % of the in images do. "Not worse": against the best of the four, on that
set, the paired bootstrap's 95 % interval of the difference of AUROC reaches zero.
"""

import argparse
import io
import json
import random
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import normalize
from torchvision.transforms.functional import pil_to_tensor, to_pil_image

import protonmf_cli
from protonmf_cli import ConversionOptions, ImageWords, Machine
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.files.networks.preprocessing import crop_of, preprocessing_of
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.networks.timm_networks import create_network
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.class_names import find_class
from protonmf_cli.models.response import pooled_rows
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness

SHARED = Path(__file__).resolve().parents[3] / "shared"
NETWORKS = (
    "mobilenetv2_100.imagenet",
    "deit_tiny_patch16_224.imagenet",
    "resnet18.caltech24",
    "tf_mobilenetv3_large_minimal_100.imagenet",
)
CLASSES, NEIGHBOUR, DRAWS = 12, 5, 1000
OURS = "unlikeness"


# Network and images


def cut_network(folder: Path, source: Path, names: Sequence[str]) -> None:
    """The network with the rows of its head that are of the named classes."""
    config = json.loads((source / "config.json").read_text())
    request = BackboneRequest(name=f"local-dir:{source.resolve()}")
    network = create_network(request.name, request)
    classes = tuple(ClassName(label=label) for label in config["label_names"])
    rows = [find_class(classes, name) for name in names]
    head = network.get_classifier()
    weight, bias = head.weight.detach()[rows].clone(), head.bias.detach()[rows].clone()
    network.reset_classifier(len(names))
    head = network.get_classifier()
    head.weight.data, head.bias.data = weight, bias
    save_checkpoint(
        folder, network, architecture=config["architecture"], model_args=config.get("model_args", {}),
        preprocessing=preprocessing_of(network, request), classes=[ClassName(label=name) for name in names],
    )  # fmt: skip


def converted(work: Path, source: Path, data: Path, names: Sequence[str], words: argparse.Namespace) -> Loaded:
    """The cut network, converted on the training images of its classes."""
    cut_network(work / "network", source, names)
    for name in names:
        shutil.copytree(data / "train" / name, work / "data" / "train" / name, dirs_exist_ok=True)
    return protonmf_cli.convert(
        f"local-dir:{work / 'network'}",
        ImageWords(data=work / "data"),
        ConversionOptions(prototypes=words.prototypes, stability=False),
        output=protonmf_cli.Output(path=work / "prototypes.safetensors", force=True),
        machine=Machine(threads=words.threads),
    ).loaded


Pictures = list[Image.Image]


def in_folders(folder: Path, names: Sequence[str]) -> tuple[Pictures, list[int]]:
    """Images of class folders, and the number of each one's class."""
    found = [(Image.open(path), n) for n, name in enumerate(names) for path in sorted((folder / name).iterdir())]
    return [picture.convert("RGB") for picture, _ in found], [n for _, n in found]


def in_archive(path: Path, count: int, seed: int, part: str = "") -> Pictures:
    """Some images of an archive, drawn with the seed."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if n.endswith((".png", ".jpg")) and part in n)
        drawn = sorted(random.Random(seed).sample(names, min(count, len(names))))
        return [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in drawn]


def blurred(crop: Tensor) -> Tensor:
    picture = to_pil_image(crop)
    return pil_to_tensor(picture.filter(ImageFilter.GaussianBlur(3 * picture.width / 224)))


def with_sticker(crop: Tensor) -> Tensor:
    picture = to_pil_image(crop)
    side = picture.width * 38 // 224
    left, top = picture.width - side - 8, picture.height - side - 8
    pen = ImageDraw.Draw(picture)
    pen.ellipse((left, top, left + side, top + side), fill=(255, 220, 0), outline="black", width=2)
    pen.line((left + side // 4, top + side // 2, left + 3 * side // 4, top + side // 2), fill="black", width=4)
    return pil_to_tensor(picture)


def with_text(crop: Tensor) -> Tensor:
    picture = to_pil_image(crop)
    pen = ImageDraw.Draw(picture)
    pen.rectangle((6, 6, 90, 24), fill="white")
    pen.text((10, 8), "PHOTO No 24", fill="black", font=ImageFont.load_default(size=13))
    return pil_to_tensor(picture)


# Scores: larger is further out


@dataclass(frozen=True)
class Seen:
    """What the network gives for N images, float64."""

    read: Tensor
    """(N, D) sums of the rows with a place."""
    features: Tensor
    """(N, F) before the head."""
    logits: Tensor


def see(loaded: Loaded, crops: Tensor) -> Seen:
    """One pass of the network."""
    backbone, inputs = loaded.backbone, list[Tensor]()
    head = backbone.network.get_classifier()
    hook = head.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach().flatten(1).double()))
    read, features, logits = [], [], []
    for batch in crops.split(32):
        inputs.clear()
        reading = backbone.read(batch)
        read.append(pooled_rows(reading.rows, loaded.model.placed)[:, 0].double())
        features.append(inputs[0])  # a gated head is asked once more, place by place
        logits.append(reading.logits.double())
    hook.remove()
    found = Seen(read=torch.cat(read), features=torch.cat(features), logits=torch.cat(logits))
    again = found.features @ head.weight.double().mT + head.bias.double()
    assert float((again - found.logits).abs().max()) < 1e-3
    return found


Score = Callable[[Seen], Tensor]


def mahalanobis(train: Seen, labels: Tensor) -> Score:
    means = torch.stack([train.features[labels == c].mean(dim=0) for c in range(CLASSES)])
    fitted = LedoitWolf(assume_centered=True).fit((train.features - means[labels]).numpy())
    precision = torch.from_numpy(fitted.precision_)

    def score(seen: Seen) -> Tensor:
        off = seen.features[:, None] - means
        return ((off @ precision) * off).sum(dim=2).amin(dim=1)

    return score


def neighbours(train: Seen) -> Score:
    known = normalize(train.features, dim=1)
    return lambda seen: torch.cdist(normalize(seen.features, dim=1), known).kthvalue(NEIGHBOUR, dim=1).values


def scores_of(loaded: Loaded, train: Seen, labels: Tensor) -> dict[str, Score]:
    """The five."""
    measure = Unlikeness.of(loaded.model)
    assert measure is not None
    return {
        "softmax": lambda seen: -seen.logits.softmax(dim=1).amax(dim=1),
        "energy": lambda seen: -seen.logits.logsumexp(dim=1),
        "mahalanobis": mahalanobis(train, labels),
        "neighbours": neighbours(train),
        OURS: lambda seen: measure.scores(seen.read, seen.logits),
    }


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    truth = np.repeat([0, 1], [len(inside), len(outside)])
    return float(roc_auc_score(truth, np.concatenate([inside, outside])))


def measured(inside: dict[str, np.ndarray], outside: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """AUROC and share that passes of every score on one out set, and ours less the best of the others."""
    table = {name: auroc(inside[name], outside[name]) for name in inside}
    passing = {name: float((outside[name] <= np.quantile(inside[name], 0.95)).mean()) for name in inside}
    best = max((name for name in table if name != OURS), key=lambda name: table[name])
    draw, differences = np.random.default_rng(seed), []
    for _ in range(DRAWS):
        i, o = (draw.integers(0, len(each[OURS]), len(each[OURS])) for each in (inside, outside))
        differences.append(auroc(inside[OURS][i], outside[OURS][o]) - auroc(inside[best][i], outside[best][o]))
    low, high = np.quantile(differences, [0.025, 0.975])
    return {"auroc": table, "passing": passing, "best": best, "difference": [float(low), float(high)]}


# A run


def run(network: str, words: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Convert one network and measure every out set."""
    start, names = time.process_time(), sorted(each.name for each in (words.data / "train").iterdir())
    inner = sorted(random.Random(words.seed).sample(names, CLASSES))
    loaded = converted(work / f"{network}-{words.seed}", words.models / network, words.data, inner, words)
    crop = crop_of(loaded.backbone.preprocessing)

    def cropped(pictures: Pictures) -> Tensor:
        return torch.stack([crop(picture) for picture in pictures])

    others = words.data.parent
    pictures, labels = in_folders(words.data / "train", inner)
    scores = scores_of(loaded, see(loaded, cropped(pictures)), torch.tensor(labels))
    val = cropped(in_folders(words.data / "val", inner)[0])
    flowers = sorted(each.name for each in (others / "flowers17" / "val").iterdir())
    sets = {
        "other classes": cropped(in_folders(words.data / "val", [n for n in names if n not in inner])[0]),
        "flowers": cropped(in_folders(others / "flowers17" / "val", flowers)[0]),
        "characters": cropped(in_archive(others / "omniglot_background.zip", words.images, words.seed)),
        "cifar-10": cropped(in_archive(others / "cifar10_12k.zip", words.images, words.seed, "val/")),
        "blurred": torch.stack([blurred(each) for each in val]),
        "sticker": torch.stack([with_sticker(each) for each in val]),
        "text": torch.stack([with_text(each) for each in val]),
    }

    def by_score(crops: Tensor) -> dict[str, np.ndarray]:
        seen = see(loaded, crops)
        return {name: score(seen).numpy() for name, score in scores.items()}

    inside = by_score(val)
    found = {name: measured(inside, by_score(crops), words.seed) for name, crops in sets.items()}
    above = float((inside[OURS] > 1).mean())
    print(
        f"{network}: {time.process_time() - start:.0f} s of CPU; {above:.1%} of the in images are above 1", flush=True
    )
    return {"above_1": above, "sets": found}


def show(network: str, found: dict[str, Any]) -> None:
    """Print AUROC (and share of out images that pass), and where ours is worse than the best of the four."""
    names = [*next(iter(found["sets"].values()))["auroc"]]
    print(f"\n{network}\n{'':16}" + "".join(f"{name:>14}" for name in names) + "   ours less the best of the others")
    good = 0
    for name, row in found["sets"].items():
        cells = "".join(f"{row['auroc'][score]:>8.3f} ({row['passing'][score]:.2f})"[-14:] for score in names)
        low, high = row["difference"]
        good += high >= 0
        verdict = "better" if low > 0 else "worse" if high < 0 else "not worse"
        print(f"{name:16}{cells}   {low:+.3f} to {high:+.3f} ({row['best']}): {verdict}")
    print(f"not worse than the best of the four on {good} of {len(found['sets'])} sets", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "caltech101_imagenet")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seed", type=int, default=0, help="of the drawn classes and images")
    parser.add_argument("-p", "--prototypes", type=int, default=3)
    parser.add_argument("--images", type=int, default=200, help="of characters and of CIFAR-10")
    parser.add_argument("--work", type=Path, help="folder for networks and models; kept")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    words = parser.parse_args()
    torch.set_num_threads(words.threads)
    with tempfile.TemporaryDirectory() as scratch:
        results = {network: run(network, words, words.work or Path(scratch)) for network in words.network}
    for network, found in results.items():
        show(network, found)
    if words.json:
        words.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
