"""What notices that an explanation is not of its network? Weights drawn anew, and model files that were tampered with.

    python tests/benchmarks/manipulated.py FOLDER [--seed 0] [--images 40] [--only randomised conversions protopnet]

On the birds of birds.py, whose network, conversion and ProtoPNet are taken from FOLDER, or made there.

Randomised (Adebayo et al. 2018): layers of the network are drawn anew, from the head down and one stage at a time. The
network is converted again, and images are explained for their true class: how like the map is to that of the trained
network, by Spearman's rank correlation of its places and by SSIM of its pixels. Controls: a conversion of the trained
network on other images of the classes, and the same map of another image.

Manipulated (Baniecki and Biecek 2025, "Birds look like cars"): files that are written anew, checksum and all, so that
what they show is not what the network looks at, while it answers as before. Beside each stands what a user could look
at: does the file open, do logits still add up to the network's own, which figures of `protonmf evaluate` change, and
what reading the stored training patches again says. That last is done here by hand, of first patches;
`protonmf inspect FILE --data DIR` looks at all of them.
"""

import argparse
import copy
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bird_pictures as pictures
import birds
import numpy as np
import timm
import torch
from PIL import Image
from scipy.ndimage import uniform_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

import protonmf_cli
from protonmf_cli import ConversionOptions, Output, ProtonmfError, TableOptions
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.files.store import save_model
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.jobs.protopnet.edits import push_protopnet
from protonmf_cli.maths.amounts import dual, weights_of
from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples, PrototypeModel
from protonmf_cli.models.response import similarity_maps

SIDE, MACHINE = birds.SIDE, birds.MACHINE
SAMPLE = 12
"""Training images of each class that randomised networks are converted on."""
STAGES = ("fc", "layer4", "layer3", "layer2", "layer1", "stem")
WINDOW = 11
"""Pixels of SSIM's windows."""
CARS, STEPS, RATE, KEEP = 24, 41, 1e-3, 1.0
"""Of the attack on a ProtoPNet: foreign pictures, steps, rate, and weight of leaving the birds' latent maps alone."""


# Weights drawn anew


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two maps, each scaled to 0..1 (Wang, Bovik, Sheikh and Simoncelli 2004)."""

    def scaled(x: np.ndarray) -> np.ndarray:
        return (x - x.min()) / max(float(np.ptp(x)), 1e-12)

    def mean(x: np.ndarray) -> np.ndarray:
        return uniform_filter(x, WINDOW)

    a, b = scaled(a), scaled(b)
    mean_a, mean_b = mean(a), mean(b)
    spread_a, spread_b, both = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2, mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    found = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread_a + spread_b + c2))
    return float(found.mean())


def layers_of(network: nn.Module) -> dict[str, list[nn.Module]]:
    """Modules with weights, by stage."""
    stem = [network.conv1, network.bn1]
    return {name: stem if name == "stem" else [getattr(network, name)] for name in STAGES}


def drawn_anew(network: nn.Module, stages: Sequence[str], seed: int) -> nn.Module:
    """A copy whose stages have the weights of an untrained network; their batch norms normalise what they see."""
    torch.manual_seed(seed)
    untrained = timm.create_model(birds.ARCHITECTURE, num_classes=birds.CLASSES, **birds.MODEL_ARGS)
    found = copy.deepcopy(network)
    for name in stages:
        for own, other in zip(layers_of(found)[name], layers_of(untrained)[name], strict=True):
            own.load_state_dict(other.state_dict())
    return found.eval()


def settle(network: nn.Module, crops: Tensor) -> nn.Module:
    """The same with its batch norms' statistics taken from images, without which drawn layers overflow or die."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    network.train()
    with torch.no_grad():
        for batch in crops.split(birds.BATCH):
            network(birds.normalised(batch))
    return network.eval()


def converted(network: nn.Module, data: Path, target: Path, seed: int) -> Loaded:
    """A network converted on some images of each class, as a folder and a file."""
    if not target.exists():
        birds.save_network(target.with_suffix(""), network)
        options = ConversionOptions(sample=SAMPLE, stability=False, examples=1, seed=seed)
        name = f"local-dir:{target.with_suffix('')}"
        protonmf_cli.convert(name, data, options, output=target, machine=MACHINE)
    return protonmf_cli.load(target, machine=MACHINE)


MAPS = ("largest row", "own rows", "--map contribution", "Grad-CAM")


def maps_of(loaded: Loaded, sample: birds.Birds) -> dict[str, list[np.ndarray]]:
    """(h, w) maps of every image for its true class: the default map of the largest row, that of the class's own
    prototypes together, what all contributions add up to, and Grad-CAM."""
    said, plain = birds.Conversion(loaded, sample), birds.Gradients(loaded.backbone.network, sample, 0)
    found: dict[str, list[np.ndarray]] = {name: [] for name in MAPS}
    for n, c in enumerate(sample.targets.tolist()):
        rows = said.said(n, c).contributions
        found["largest row"].append(rows[0].maps["presence"])
        found["own rows"].append(sum(each.maps["presence"] for each in rows if each.owner_index == c))
        found["--map contribution"].append(said.prototypes(n, c))
        found["Grad-CAM"].append(plain.grad_cam(n, c))
    return found


def likeness(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) rank correlation and SSIM of maps; a map that is the same everywhere is like none: 0."""
    varied = [np.ptp(a) > 0 and np.ptp(b) > 0 for a, b in zip(first, second, strict=True)]
    ranks = [
        spearmanr(a, b, axis=None).statistic if there else 0.0
        for a, b, there in zip(first, second, varied, strict=True)
    ]
    seen = [ssim(birds.pixels_of(a), birds.pixels_of(b)) for a, b in zip(first, second, strict=True)]
    return np.array(ranks), np.array(seen)


def randomised(
    folder: Path, network: nn.Module, data: Path, sample: birds.Birds, seed: int
) -> Iterator[tuple[str, dict[str, list[np.ndarray]]]]:
    """Maps of the trained network, of the controls, and of networks with stages drawn anew."""
    place = folder / "randomised"
    place.mkdir(exist_ok=True)
    trained = maps_of(converted(network, data, place / "trained.safetensors", seed), sample)
    yield "trained", trained
    yield "trained, other images", maps_of(converted(network, data, place / "other.safetensors", seed + 1), sample)
    yield "another image's map", {name: [*maps[1:], maps[0]] for name, maps in trained.items()}
    crops = torch.stack([torch.from_numpy(birds.draw(seed, "train", n).pixels).permute(2, 0, 1) for n in range(512)])
    cascading = [("cascade to " + name, STAGES[: k + 1]) for k, name in enumerate(STAGES)]
    alone = [("only " + name, (name,)) for name in STAGES[1:]]
    for name, stages in (*cascading, *alone):
        drawn = settle(drawn_anew(network, stages, seed + 1), crops)
        yield name, maps_of(converted(drawn, data, place / f"{name}.safetensors", seed), sample)


def show_randomised(found: Iterator[tuple[str, dict[str, list[np.ndarray]]]], seed: int) -> None:
    rows: dict[str, list[str]] = {}
    trained: dict[str, list[np.ndarray]] = {}
    for name, maps in found:
        if not trained:
            trained = maps
            continue
        each = [likeness(trained[m], maps[m]) for m in MAPS]
        rows[name] = [f"{birds.mean_of(ranks, seed)} / {seen.mean():.2f}" for ranks, seen in each]
        print(name, *rows[name], flush=True)
    print("\n" + birds.table_of(rows, ("drawn anew", *(f"{m}: rank corr. / SSIM" for m in MAPS))))


# Tampered files


def car(n: int) -> Tensor:
    """(3, SIDE, SIDE) uint8: a picture without any bird."""
    generator = np.random.default_rng([n, 99])
    x, y = generator.uniform(0.4, 0.6, 2)
    colour, glass, wheel = ((200, 30, 40), (30, 60, 200), (240, 200, 40))[n % 3], (190, 220, 240), (25, 25, 30)
    shapes = [
        pictures.Shape(np.array([(-0.36, 0.1), (-0.36, -0.04), (-0.2, -0.06), (0.33, -0.05), (0.36, 0.1)]), colour),
        pictures.Shape(np.array([(-0.2, -0.05), (-0.11, -0.19), (0.14, -0.19), (0.24, -0.05)]), glass),
        *(pictures.Shape(pictures.oval(side, 0.11, 0.085, 0.085), wheel) for side in (-0.2, 0.2)),
        *(pictures.Shape(pictures.oval(side, 0.11, 0.04, 0.04), (170, 170, 175)) for side in (-0.2, 0.2)),
    ]
    scene = replace(pictures.scene_of(n, "check", n), turn=0.0, size=1.0, middle=(float(x), float(y)), objects=())
    return torch.from_numpy(pictures.sketch(scene, shapes)).permute(2, 0, 1)


@dataclass(frozen=True, eq=False)
class Tampered:
    """A file as somebody may have changed it."""

    model: PrototypeModel
    weights: Mapping[str, Tensor] | None
    push: bool = False
    """Whether it is pushed again: a ProtoPNet with other prototypes or another network."""


def jpeg_of(crop: Tensor) -> bytes:
    target = io.BytesIO()
    Image.fromarray(crop.permute(1, 2, 0).numpy()).save(target, format="JPEG", quality=90)
    return target.getvalue()


def with_pictures(examples: Examples, crops: Sequence[Tensor]) -> Examples:
    """Examples that show other pictures in turn, and say of them what they said before."""
    files = [jpeg_of(crop) for crop in crops]
    ends = torch.tensor([0, *map(len, files)]).cumsum(dim=0)
    number = torch.arange(len(examples.prototype)) % len(files)
    blob = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    return replace(examples, crop=torch.stack([ends[number], ends[number + 1]], dim=1), jpeg=blob)


def with_swapped(model: PrototypeModel) -> PrototypeModel:
    """Training patches stand with prototypes of other classes."""
    shift = len(model.own(0)) * 7
    moved = (model.examples.prototype + shift) % len(model.prototypes)
    return replace(model, examples=replace(model.examples, prototype=moved))


def with_prototypes(model: PrototypeModel, prototypes: Tensor, sums: Mapping[int, Tensor]) -> PrototypeModel:
    """Other prototypes, as long as their usual amount in their class's images; weights and residuals are what the same
    head gives for them, so that no logit changes.

    Args:
        model: that reads amounts.
        prototypes: (P, D) float64
        sums: class -> (n, D) float64 sums of the rows of images.
    """
    assert model.amounts is not None
    ridge, value, residual = model.amounts.ridge, model.weights.value.clone(), model.residual.clone()
    heads = model.head_vectors()
    usual = model.amounts.usual.clone()
    for step in range(2):  # first the lengths, then what depends on them
        for c in range(len(heads)):
            entries, own = model.entries(c), model.own(c)
            basis = prototypes[model.weights.prototype[entries]]
            found = dual(basis, ridge)
            amounts = sums[c] @ found.readers[: len(own)].mT
            if step == 0:
                middle = amounts.quantile(0.5, dim=0)
                lengths = torch.where(middle.abs() > 1e-6, middle, 1.0)
                prototypes = prototypes.clone().index_copy(0, torch.tensor(own), prototypes[own] * lengths[:, None])
                continue
            usual[own, :3] = torch.quantile(amounts, torch.tensor([0.05, 0.5, 0.95]).double(), dim=0).mT.float()
            weights = weights_of(heads[c], basis, found.carried)
            value[entries], residual[c] = weights.float(), (heads[c] - weights @ found.readers).float()
    evidence = replace(model.amounts, usual=usual)
    return replace(
        model, prototypes=prototypes.float(), weights=replace(model.weights, value=value), residual=residual,
        evidence=evidence,
    )  # fmt: skip


def rotated(model: PrototypeModel, generator: torch.Generator) -> Tensor:
    """(P, D) every class's own prototypes turned within what they span."""
    found = model.prototypes.double().clone()
    for c in model.active_classes.tolist():
        own = model.own(c)
        turn = torch.linalg.qr(torch.randn(len(own), len(own), generator=generator, dtype=torch.float64)).Q
        found[own] = turn @ found[own]
    return found


def class_sums(loaded: Loaded, images: Sequence[tuple[int, Tensor]]) -> dict[int, Tensor]:
    """Class -> (n, D) float64 sums of rows of images."""
    rows = loaded.backbone.read(torch.stack([crop for _, crop in images])).rows.sum(dim=1).double()
    labels = torch.tensor([c for c, _ in images])
    return {c: rows[labels == c] for c in range(birds.CLASSES)}


def with_patches_found(loaded: Loaded, model: PrototypeModel, data: Path) -> PrototypeModel:
    """The first patch of every prototype found again among its class's training pictures, and no word of which images
    are usual, as older files have none."""
    assert model.amounts is not None
    examples, kept, files = model.examples, [], list[bytes]()
    maps, boxes, scores, sources = [], [], [], []
    for c in model.active_classes.tolist():
        paths = sorted((data / "train" / model.card.classes[c].label).iterdir())
        crops = torch.stack([loaded.crop(path) for path in paths])
        rows = loaded.backbone.read(crops).rows.double()
        for k, reader in zip(model.own(c), model.exact.readers(c), strict=False):
            amounts = rows @ reader
            n, number = int(amounts.amax(dim=1).argmax()), examples.of(k)[0]
            kept.append(number)
            files.append(jpeg_of(crops[n]))
            maps.append(amounts[n].reshape(model.spaces[0].grid).float())
            boxes.append(torch.tensor(peak_box(maps[-1], (SIDE, SIDE))))
            scores.append(amounts[n].max().float())
            digest = hashlib.sha256(paths[n].read_bytes()).hexdigest()
            sources.append(ImageSource(path=f"{paths[n].parent.name}/{paths[n].name}", sha256=digest))
    ends = torch.tensor([0, *map(len, files)]).cumsum(dim=0)
    found = Examples(
        prototype=examples.prototype[kept], score=torch.stack(scores), box=torch.stack(boxes), map=torch.stack(maps),
        crop=torch.stack([ends[:-1], ends[1:]], dim=1), sources=tuple(sources),
        jpeg=torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8),
    )  # fmt: skip
    return replace(model, examples=found, evidence=replace(model.amounts, images=None))


def of_conversion(loaded: Loaded, data: Path, seed: int) -> Iterator[tuple[str, Tampered]]:
    """Tampered conversions by what was done."""
    model, weights = loaded.model, loaded.backbone.weights()
    generator = torch.Generator().manual_seed(seed)
    cars = [car(n) for n in range(CARS)]
    images = [
        (n % birds.CLASSES, torch.from_numpy(birds.draw(seed, "train", n).pixels).permute(2, 0, 1)) for n in range(1000)
    ]
    sums = class_sums(loaded, images)
    shuffled = torch.randperm(len(model.prototypes), generator=generator)
    direction = torch.randn(*model.prototypes.shape, generator=generator, dtype=torch.float64).abs()
    yield "nothing", Tampered(model, weights)
    yield "patches of other classes' prototypes", Tampered(with_swapped(model), weights)
    yield (
        "pictures of cars, sources kept",
        Tampered(replace(model, examples=with_pictures(model.examples, cars)), weights),
    )
    yield "prototypes permuted", Tampered(replace(model, prototypes=model.prototypes[shuffled]), weights)
    yield (
        "prototypes permuted, head made to fit",
        Tampered(with_prototypes(model, model.prototypes[shuffled].double(), sums), weights),
    )
    turned = with_prototypes(model, rotated(model, generator), sums)
    yield "prototypes rotated in their span", Tampered(turned, weights)
    yield "the same, patches found again", Tampered(with_patches_found(loaded, turned, data), weights)
    yield "random directions for prototypes", Tampered(with_prototypes(model, direction, sums), weights)


# A ProtoPNet whose birds look like cars


def latent(backbone: Backbone, crops: Tensor) -> Tensor:
    """(B, T, D) latent rows, with their gradient."""
    return backbone.readout.read(backbone.network, backbone.normalise(crops)).rows


def attacked(loaded: Loaded, seed: int) -> Tampered:
    """The network fine-tuned until patches of cars are the prototypes, and latent maps of birds are as they were.

    The file then shows these cars as the prototypes' training patches, under the names of training images.
    """
    backbone, model = copy.deepcopy(loaded.backbone), loaded.model
    cars, generator = torch.stack([car(n) for n in range(CARS)]), torch.Generator().manual_seed(seed)
    places = model.spaces[0].stop
    target = model.prototypes[torch.arange(CARS * places) % len(model.prototypes)].reshape(CARS, places, -1)
    crops = torch.stack([torch.from_numpy(birds.draw(seed, "train", n).pixels).permute(2, 0, 1) for n in range(600)])
    with torch.no_grad():
        before = torch.cat([latent(loaded.backbone, some) for some in crops.split(64)])
    layers = [*backbone.network.parameters()]
    for each in layers:
        each.requires_grad_(True)
    optimiser = torch.optim.Adam(layers, lr=RATE)
    for step in range(STEPS):
        kept = torch.randperm(len(crops), generator=generator)[:24]
        some = torch.randperm(CARS, generator=generator)[:8]
        rows = latent(backbone, torch.cat([crops[kept], cars[some]]))
        loss = (rows[24:] - target[some]).square().sum(dim=2).mean() + KEEP * (rows[:24] - before[kept]).square().sum(
            dim=2
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 10 == 0:
            print(f"attack: step {step}, loss {loss.item():.3f}", flush=True)
    with torch.no_grad():
        rows = latent(backbone, cars)
    return Tampered(replace(model, examples=nearest_cars(model, cars, rows)), backbone.weights(), push=True)


def nearest_cars(model: PrototypeModel, cars: Tensor, rows: Tensor) -> Examples:
    """The examples of a model with the cars most similar to each prototype, under the names that stood there."""
    found = similarity_maps(model, rows, list(range(len(model.prototypes))))  # (B, T, P)
    best = found.amax(dim=1).argsort(dim=0, descending=True)  # (B, P)
    examples, grid = with_pictures(model.examples, list(cars)), model.spaces[0].grid
    starts = torch.stack([with_pictures(model.examples, list(cars)).crop[n] for n in range(len(cars))])
    crop, score, maps, box = examples.crop.clone(), examples.score.clone(), examples.map.clone(), examples.box.clone()
    for k in range(len(model.prototypes)):
        for rank, number in enumerate(model.examples.of(k)):
            shown = int(best[rank % len(cars), k])
            crop[number], score[number] = starts[shown], found[shown, :, k].max()
            maps[number] = found[shown, :, k].reshape(grid)
            box[number] = torch.tensor(peak_box(maps[number], (SIDE, SIDE)))
    return replace(examples, crop=crop, score=score, map=maps, box=box)


def of_protopnet(loaded: Loaded, seed: int) -> Iterator[tuple[str, Tampered]]:
    """Tampered ProtoPNets by what was done."""
    model, weights = loaded.model, loaded.backbone.weights()
    cars = torch.stack([car(n) for n in range(CARS)])
    yield "nothing", Tampered(model, weights, push=True)
    yield "patches of other classes' prototypes", Tampered(with_swapped(model), weights)
    yield (
        "pictures of cars, sources kept",
        Tampered(replace(model, examples=with_pictures(model.examples, list(cars))), weights),
    )
    with torch.no_grad():
        rows = latent(loaded.backbone, cars).flatten(0, 1)
    generator = torch.Generator().manual_seed(seed)
    foreign = rows[torch.randperm(len(rows), generator=generator)[: len(model.prototypes)]]
    yield "prototypes are patches of cars", Tampered(replace(model, prototypes=foreign), weights, push=True)
    yield "network attacked: birds look like cars", attacked(loaded, seed)


# What notices


def own_maps(loaded: Loaded, crops: Sequence[Tensor], prototypes: Sequence[int]) -> Tensor:
    """(n, h, w) evidence map of one prototype in each crop, as an explanation of its own class draws it."""
    found = []
    for some in range(0, len(crops), 32):
        rows = loaded.backbone.read(torch.stack(list(crops[some : some + 32]))).rows
        for row, k in zip(rows, prototypes[some : some + 32], strict=True):
            model, c = loaded.model, int(loaded.model.owner[k])
            if model.adds_up:
                evidence = row.double() @ model.exact.readers(c)[model.own(c).index(k)]
            else:
                evidence = similarity_maps(model, row[None], [k])[0, :, 0]
            found.append(evidence.reshape(loaded.backbone.readout.grid))
    return torch.stack(found).double()


@dataclass(frozen=True)
class Patches:
    """Stored training patches read again."""

    digests: float
    """Share of the named images that are there, with the bytes that the file names."""
    own_class: float
    """Share that lie in the folder of the prototype's class."""
    picture: float
    """Median correlation of the stored picture's pixels with those of the named image."""
    same_map: float
    """Median correlation of the stored map with the map that is read again from the stored picture."""
    from_source: float
    """The same, from the named image."""


def read_patches(loaded: Loaded, data: Path) -> Patches:
    """Of the first patch of every prototype."""
    examples, model = loaded.model.examples, loaded.model
    firsts = [(k, examples.of(k)[0]) for k in range(len(model.prototypes)) if examples.of(k)]
    stored = [crop_of_jpeg(examples.picture(n), 3) for _, n in firsts]
    paths = [data / "train" / examples.sources[n].path for _, n in firsts]
    digests = [
        path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == examples.sources[n].sha256
        for path, (_, n) in zip(paths, firsts, strict=True)
    ]
    named = [
        loaded.crop(path) if path.exists() else torch.zeros_like(crop) for path, crop in zip(paths, stored, strict=True)
    ]
    numbers = [k for k, _ in firsts]
    labels = [model.card.classes[int(model.owner[k])].label for k in numbers]
    maps = [examples.map[n].double() for _, n in firsts]
    return Patches(
        digests=float(np.mean(digests)),
        own_class=float(np.mean([path.parent.name == label for path, label in zip(paths, labels, strict=True)])),
        picture=_correlation([each.double() for each in stored], [each.double() for each in named]),
        same_map=_correlation(maps, list(own_maps(loaded, stored, numbers))),
        from_source=_correlation(maps, list(own_maps(loaded, named, numbers))),
    )


def _correlation(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """Median over pairs."""
    found = [np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1] for a, b in zip(first, second, strict=True)]
    return float(np.median(np.nan_to_num(found)))


def outside_usual(loaded: Loaded, crops: Tensor, labels: Sequence[int]) -> str:
    """Share of own amounts outside the range that the file calls usual, which one in ten training images is."""
    if not loaded.model.adds_up:
        return "-"
    said = [loaded.explain(crop, c) for crop, c in zip(crops, labels, strict=True)]
    own = [
        each for found in said for each in found.contributions if each.owner_index == found.class_index and each.usual
    ]
    return f"{np.mean([not each.usual[0] <= each.evidence <= each.usual[1] for each in own]):.2f}"


COLUMNS = (
    "opens", "logits", "accuracy", "prototypes only", "residual share", "stored stability", "consistency",
    "outside usual", "unlike", "sources there", "of own class", "picture like source", "map again from picture",
    "map again from source", "same after a push (way); accuracy",
)  # fmt: skip


def noticed(path: Path, data: Path, sample: birds.Birds, seed: int, *, push: bool) -> list[str]:
    """What a user sees of a file, by column."""
    try:
        loaded = protonmf_cli.load(path, machine=MACHINE)
        loaded.explain(sample.crops[0])
    except ProtonmfError as failure:
        return [f"refused: {str(failure)[:60]}"] + ["-"] * (len(COLUMNS) - 1)
    options = TableOptions(parts=data / "parts", seed=seed)
    found = protonmf_cli.evaluate(loaded, data, tables=("part-quality",), options=options, machine=MACHINE)
    scores, patches = found.scores, read_patches(loaded, data)
    consistency = next(row["value"] for row in found.tables["part_quality"].rows if row["measure"] == "consistency")
    stable = [s for s in (loaded.model.stability(k) for k in range(len(loaded.model.prototypes))) if s is not None]
    off, share = scores.relative_difference, scores.logit_share
    return [
        "yes", "-" if off is None else f"{off:.0e}", f"{scores.accuracy['prototype_model']:.3f}",
        _said(scores.accuracy.get("prototypes_only")), "-" if share is None else f"{1 - share:.2f}",
        f"{np.median(stable):.2f}" if stable else "-", f"{consistency:.2f}",
        outside_usual(loaded, sample.crops, sample.targets.tolist()),
        "-" if scores.unlike is None else _said(scores.unlike.share), f"{patches.digests:.2f}",
        f"{patches.own_class:.2f}",
        f"{patches.picture:.2f}", f"{patches.same_map:.2f}", f"{patches.from_source:.2f}",
        pushed(loaded, path, data) if push else "-",
    ]  # fmt: skip


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def pushed(loaded: Loaded, path: Path, data: Path) -> str:
    """How many of a ProtoPNet's prototypes another push leaves where they are, by the images that they then come from,
    and the accuracy on the training images before and after."""
    target = path.with_name("pushed.safetensors")
    found = push_protopnet(path, data, output=Output(path=target, force=True), machine=MACHINE)
    before, after = (m.examples for m in (loaded.model, found.loaded.model))
    same = [
        before.sources[before.of(k)[0]].sha256 == after.sources[after.of(k)[0]].sha256
        for k in range(len(loaded.model.prototypes))
    ]
    target.unlink()
    facts = found.facts
    return f"{np.mean(same):.2f} ({facts['moved']:.2f}); {facts['accuracy_before']:.3f}, {facts['accuracy_after']:.3f}"


def tables_of(path: Path, data: Path, seed: int) -> str:
    """What the tables say that factorise the training images again: prototypes alone, and the largest row the same."""
    options = TableOptions(counts=(3,), seed=seed)
    found = protonmf_cli.evaluate(path, data, tables=("parts", "stability"), options=options, machine=MACHINE).tables
    return "; ".join(f"{name}: {table.rows[0]}" for name, table in found.items())[:600]


def show_tampered(
    title: str,
    found: Iterator[tuple[str, Tampered]],
    folder: Path,
    data: Path,
    sample: birds.Birds,
    seed: int,
    *,
    tables: bool = False,
) -> None:
    rows = {}
    for name, each in found:
        target = folder / "tampered.safetensors"
        save_model(target, each.model, each.weights)
        rows[name] = noticed(target, data, sample, seed, push=each.push)
        print(name, *rows[name], sep="; ", flush=True)
        if tables and name in ("nothing", "random directions for prototypes"):
            print(tables_of(target, data, seed), flush=True)
        target.unlink()
    print(f"\n{title}\n\n" + birds.table_of(rows, ("done to the file", *COLUMNS)))


PARTS: Sequence[str] = ("randomised", "conversions", "protopnet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--tables", action="store_true", help="also what evaluate's tables parts and stability say")
    words = parser.parse_args()
    torch.set_num_threads(1)
    seed, folder = words.seed, words.folder / f"seed {words.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = birds.write_pictures(folder, seed)
    trained = birds.train_network(folder, seed)
    sample = birds.Birds(seed, "val", words.images)
    if "randomised" in words.only:
        network = timm.create_model(f"local-dir:{trained}", pretrained=True).eval()
        show_randomised(randomised(folder, network, data, sample, seed), seed)
    if "conversions" in words.only:
        loaded = protonmf_cli.load(birds.convert(folder, trained, data, "amounts", seed), machine=MACHINE)
        show_tampered(
            "conversion as amounts", of_conversion(loaded, data, seed), folder, data, sample, seed, tables=words.tables
        )
    if "protopnet" in words.only:
        loaded = protonmf_cli.load(birds.train_protopnet(folder, trained, data, seed), machine=MACHINE)
        show_tampered("ProtoPNet", of_protopnet(loaded, seed), folder, data, sample, seed)


if __name__ == "__main__":
    main()
