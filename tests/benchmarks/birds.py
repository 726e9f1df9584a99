"""Do explanations name the parts that a network looks at? FunnyBirds' protocol on birds whose parts are known.

    python tests/benchmarks/birds.py FOLDER [--seed 0] [--images 200] [--only amounts protopnet ...]

Invented birds, see bird_pictures.py: 50 classes of five parts. A resnet10t is trained on them from scratch on the CPU,
converted (as amounts, with near classes as wholes or by their parts, and as the paper has it), and a ProtoPNet is
trained on the same birds, from that network. What explainers say of birds that nothing was trained on is held against
what the networks do when parts are left out, see bird_measures.py for the measures; consistency and stability are those
of `protonmf evaluate --table part-quality`.

An explainer of maps gives a part what its map holds inside the part's mask, widened by a pixel, as FunnyBirds reads
them; maps are up-sampled bilinearly. A ProtoPNet shows boxes, and is read as FunnyBirds does: similarity x weight for
every pixel of the box of each own prototype that lies on the part; a part is important if enough of it is covered.

- evidence: `explain`'s contributions and residual together, V_c . x by place. Of a head on averaged features this is
  Grad-CAM on the last feature map, but for Grad-CAM's cut at zero: the same numbers, which the table repeats.
- prototypes: the contribution maps of all rows, without the residual; own: of the class's own prototypes alone.
- boxes: the same rows as a user sees them, each contribution on the box of its prototype.
- against: evidence for the class less that for the next best one.
- centred: the contribution maps of all rows, each less what it is at the image's middle place (its median): what would
  be missing if a place looked as most of the picture does. Grad-CAM is centred alike beside it.
- named: no map of the image at all; every prototype is named by what its stored training patches show, as a user does
  who looks at them (here by the true masks of those pictures), and its contribution goes to these parts. Names mixed up
  among the prototypes are the control. A class as a whole has no place in its pictures, and names nothing.
- constant: the same for every image, how far logits fall on the birds that thresholds are chosen on. What it reaches
  says nothing of an explanation.
- Grad-CAM, integrated gradients (captum), and a random map on the same grid as a control.

The thresholds above which a part counts as important are chosen on other birds (scenes "check") than those that are
measured ("val"). Stages - pictures, network, conversions, ProtoPNet, answers - are kept in FOLDER and taken up again.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import bird_measures as measures
import bird_pictures as pictures
import numpy as np
import timm
import torch
from bird_measures import Answers, Explain, Importance
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor, nn
from torch.nn import functional

import protonmf_cli
from protonmf_cli import Machine, Output, ProtoPNetOptions, TableOptions
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.maths.metrics import bootstrap_interval
from protonmf_cli.models.backbone import ClassName, Preprocessing
from protonmf_cli.options import RECIPES
from protonmf_cli.pipelines.explaining.explanation import Answer, answers_of

NAMES, CLASSES, SIDE = pictures.NAMES, pictures.CLASSES, pictures.SIDE
ARCHITECTURE, MODEL_ARGS = "resnet10t", {"output_stride": 16}
PREPROCESSING = Preprocessing(
    input_size=(3, SIDE, SIDE), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.5,) * 3,
    std=(0.25,) * 3,
)  # fmt: skip
TRAIN, KEPT, VAL = 8000, 3000, 500
"""Pictures the network is trained on; how many of them are written for conversions and ProtoPNets; and tested on."""
EPOCHS, BATCH, RATE, DECAY, SHIFT = 4, 64, 3e-3, 0.05, 6
WIDEN = np.ones((3, 3), dtype=bool)
STEPS = 16
"""Of integrated gradients, from black."""
PROTOPNET = ProtoPNetOptions(prototypes=5, epochs=6, warm_epochs=2, cycles=2, validation=0.0, batch_size=32)
MACHINE = Machine(device="cpu", threads=1)
CONVERSIONS = {
    "amounts": RECIPES["default"],
    "parts": replace(RECIPES["default"], near_as="parts", near=8),
    "paper": RECIPES["paper"],
}
MOST_OBJECTS = 6
CHECK = 50
"""Birds that thresholds are chosen on."""


# Stages


def shown(seed: int, split: str, n: int) -> tuple[int, frozenset[int]]:
    """Class of a picture of a split, and the parts it lacks."""
    return n % CLASSES, pictures.left_out(seed, split, n)


def draw(seed: int, split: str, n: int, **left_out: Sequence[int]) -> pictures.Picture:
    """A picture of a split; with further parts or objects left out."""
    c, lacks = shown(seed, split, n)
    without = {*lacks, *left_out.pop("without", ())}
    return pictures.draw(pictures.scene_of(seed, split, n), pictures.classes()[c], without=without, **left_out)


def write_pictures(folder: Path, seed: int) -> Path:
    """`train` and `val` as class folders, and where the parts are, as CUB-200-2011 writes it, in `parts`.

    Training pictures that lack parts are among them if what is left tells their class.
    """
    target = folder / "pictures"
    if (target / "done").exists():
        return target
    files: list[tuple[str, pictures.Picture]] = []
    for split, count in (("train", KEPT), ("val", VAL)):
        for n in range(count):
            c, lacks = shown(seed, split, n)
            if len(pictures.fitting(pictures.classes(), c, set(range(len(NAMES))) - lacks)) > 1:
                continue
            place = target / split / pictures.class_name(c)
            place.mkdir(parents=True, exist_ok=True)
            found = draw(seed, split, n)
            Image.fromarray(found.pixels).save(place / f"{split}_{n:04d}.png")
            if split == "val":
                files.append((f"{pictures.class_name(c)}/{split}_{n:04d}.png", found))
    _write_parts(target / "parts", files)
    (target / "done").touch()
    return target


def _write_parts(target: Path, files: Sequence[tuple[str, pictures.Picture]]) -> None:
    target.mkdir(exist_ok=True)
    (target / "parts.txt").write_text("".join(f"{k + 1} {name}\n" for k, name in enumerate(NAMES)))
    (target / "images.txt").write_text("".join(f"{n + 1} {name}\n" for n, (name, _) in enumerate(files)))
    lines = []
    for n, (_, found) in enumerate(files):
        for k, middle in enumerate(found.middles()):
            x, y = middle or (0.0, 0.0)
            lines.append(f"{n + 1} {k + 1} {x} {y} {int(middle is not None)}\n")
    (target / "part_locs.txt").write_text("".join(lines))


def training_set(seed: int) -> tuple[Tensor, Tensor]:
    """(n, 3, SIDE, SIDE) uint8 and (n, CLASSES) targets: all classes alike that what is left of a picture fits."""
    pixels = np.empty((TRAIN, SIDE, SIDE, 3), dtype=np.uint8)
    targets = torch.zeros(TRAIN, CLASSES)
    for n in range(TRAIN):
        c, lacks = shown(seed, "train", n)
        fitting = pictures.fitting(pictures.classes(), c, set(range(len(NAMES))) - lacks)
        pixels[n], targets[n, fitting] = draw(seed, "train", n).pixels, 1 / len(fitting)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), targets


def normalised(crops: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in (PREPROCESSING.mean, PREPROCESSING.std))
    return ((crops.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def train_network(folder: Path, seed: int) -> Path:
    """A network from drawn weights, as a folder of timm's; ten minutes on one core."""
    target = folder / "network"
    if (target / "config.json").exists():
        return target
    pixels, targets = training_set(seed)
    torch.manual_seed(seed)
    network = timm.create_model(ARCHITECTURE, num_classes=CLASSES, **MODEL_ARGS).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=RATE, total_steps=TRAIN // BATCH * EPOCHS, pct_start=0.2
    )
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for epoch in range(EPOCHS):
        began, losses = time.monotonic(), []
        for chosen in torch.randperm(TRAIN, generator=generator)[: TRAIN // BATCH * BATCH].split(BATCH):
            batch = moved(pixels[chosen], generator)
            loss = functional.cross_entropy(network(normalised(batch)), targets[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        print(f"network: epoch {epoch + 1}, loss {np.mean(losses):.3f}, {time.monotonic() - began:.0f} s", flush=True)
    save_network(target, network.eval().to(memory_format=torch.contiguous_format))
    return target


def save_network(target: Path, network: nn.Module) -> None:
    """As a folder of timm's."""
    names = tuple(ClassName(label=pictures.class_name(c)) for c in range(CLASSES))
    save_checkpoint(
        target, network, architecture=ARCHITECTURE, model_args=MODEL_ARGS, preprocessing=PREPROCESSING, classes=names
    )


def moved(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Some of a batch mirrored, and all shifted alike."""
    mirrored = torch.rand(len(batch), generator=generator) < 0.5
    batch = torch.where(mirrored[:, None, None, None], batch.flip(3), batch)
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    return torch.roll(batch, shift, (2, 3))


def convert(folder: Path, network: Path, data: Path, name: str, seed: int) -> Path:
    """A conversion: amounts, the same with near classes by their parts, or as the paper has it."""
    target = folder / f"{name}.safetensors"
    if not target.exists():
        options = replace(CONVERSIONS[name], seed=seed)
        protonmf_cli.convert(f"local-dir:{network}", data, options, output=target, machine=MACHINE)
    return target


def train_protopnet(folder: Path, network: Path, data: Path, seed: int) -> Path:
    """A ProtoPNet on the same birds, from the trained network."""
    target = folder / "protopnet.safetensors"
    if not target.exists():
        options = replace(PROTOPNET, seed=seed)
        protonmf_cli.train_protopnet(
            f"local-dir:{network}", data, options=options, output=Output(path=target), machine=MACHINE
        )
    return target


# What networks answer


@dataclass(frozen=True, eq=False)
class Birds:
    """Pictures that explainers are asked of."""

    seed: int
    split: str
    count: int

    @cached_property
    def targets(self) -> np.ndarray:
        """(N,) classes"""
        return np.arange(self.count) % CLASSES

    @cached_property
    def whole(self) -> list[pictures.Picture]:
        """With everything in place."""
        return [self.draw(n) for n in range(self.count)]

    @cached_property
    def crops(self) -> Tensor:
        """(N, 3, SIDE, SIDE) uint8"""
        return crops_of(self.whole)

    def draw(self, n: int, **left_out: Sequence[int]) -> pictures.Picture:
        """One of them, all its parts in place but those left out."""
        scene = pictures.scene_of(self.seed, self.split, n)
        return pictures.draw(scene, pictures.classes()[self.targets[n]], **left_out)

    @cached_property
    def masks(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each the masks of parts (K, SIDE, SIDE) and objects (M, SIDE, SIDE), widened by a pixel."""

        def widened(all_masks: np.ndarray) -> np.ndarray:
            return np.stack([binary_dilation(mask, WIDEN) for mask in all_masks])

        return [(widened(each.parts), widened(each.objects)) for each in self.whole]

    def variants(self, n: int) -> Iterator[pictures.Picture]:
        """One with every set of parts left out, bit by bit, then with every object."""
        for bits in range(1 << len(NAMES)):
            yield self.draw(n, without=[k for k in range(len(NAMES)) if bits >> k & 1])
        for m in range(self.whole[n].object_count):
            yield self.draw(n, without_objects=[m])


def crops_of(found: Sequence[pictures.Picture]) -> Tensor:
    return torch.from_numpy(np.stack([each.pixels for each in found])).permute(0, 3, 1, 2)


Logits = Callable[[Tensor], Tensor]
"""(B, 3, SIDE, SIDE) uint8 -> (B, C)"""


def logits_of(loaded: Loaded) -> Logits:
    """What a model answers, the network's own logits where it is a conversion."""

    def found(crops: Tensor) -> Tensor:
        return torch.stack([each.logits for each in answers_of(loaded.backbone, loaded.model, crops)])

    return found


def answers_on(birds: Birds, logits: Logits, kept: Path) -> Answers:
    """Logits with every set of parts left out and with every object, read once."""
    if not kept.exists():
        parts = np.empty((birds.count, 1 << len(NAMES), CLASSES))
        objects = np.full((birds.count, MOST_OBJECTS, CLASSES), np.nan)
        for n in range(birds.count):
            found = logits(crops_of(list(birds.variants(n)))).numpy()
            parts[n] = found[: parts.shape[1]]
            objects[n, : len(found) - parts.shape[1]] = found[parts.shape[1] :]
        np.savez_compressed(kept, parts=parts, objects=objects)
    with np.load(kept) as stored:
        return Answers(targets=birds.targets, parts=stored["parts"], objects=stored["objects"])


# Explainers


def pixels_of(grid: np.ndarray) -> np.ndarray:
    """(SIDE, SIDE) of a map (h, w), bilinear, which adds up to the same, all but for the edges."""
    large = functional.interpolate(
        torch.from_numpy(np.ascontiguousarray(grid, dtype=np.float32))[None, None], (SIDE, SIDE), mode="bilinear"
    )[0, 0].double().numpy()  # fmt: skip
    return large * (grid.size / SIDE**2)


def by_map(birds: Birds, n: int, pixels: np.ndarray) -> Importance:
    """Of an attribution (SIDE, SIDE): what lies inside each part and object."""
    parts, objects = birds.masks[n]
    padded = np.zeros(MOST_OBJECTS)
    padded[: len(objects)] = (objects * pixels).sum(axis=(1, 2))
    return measures.shared_out((parts * pixels).sum(axis=(1, 2)), padded, float(pixels.sum()))


Map = Callable[[int, int], np.ndarray]
"""Of an image, by its number, and a class: (h, w) or (SIDE, SIDE)."""


def of_maps(birds: Birds, maps: Map) -> Explain:
    def explain(n: int, c: int) -> Importance:
        found = maps(n, c)
        return by_map(birds, n, found if found.shape == (SIDE, SIDE) else pixels_of(found))

    return measures.remembered(explain)


def box_mask(box: tuple[int, int, int, int]) -> np.ndarray:
    left, top, right, bottom = box
    found = np.zeros((SIDE, SIDE))
    found[top:bottom, left:right] = 1
    return found


class Conversion:
    """What `explain` says of birds, as different readers may take it."""

    def __init__(self, loaded: Loaded, birds: Birds) -> None:
        self.loaded, self.birds = loaded, birds
        self.kept: dict[tuple[int, int], protonmf_cli.Explanation] = {}
        self.answers: dict[int, Answer] = {}

    def said(self, n: int, c: int) -> protonmf_cli.Explanation:
        """The explanation of class c in an image."""
        if (n, c) not in self.kept:
            self.kept[n, c] = self.loaded.explain(self.birds.crops[n], c)
        return self.kept[n, c]

    def evidence(self, n: int, c: int) -> np.ndarray:
        """(h, w) contributions and residual."""
        left = self.said(n, c).residual_map
        return self.prototypes(n, c) + (0 if left is None else left)

    def prototypes(self, n: int, c: int) -> np.ndarray:
        """(h, w) contributions."""
        return sum(each.maps["contribution"] for each in self.said(n, c).contributions)

    def own(self, n: int, c: int) -> np.ndarray:
        """(h, w) contributions of the class's own prototypes."""
        found = self.said(n, c)
        return sum(each.maps["contribution"] for each in found.contributions if each.owner_index == c)

    def boxes(self, n: int, c: int) -> np.ndarray:
        """(SIDE, SIDE) each row's contribution, spread over the box of its prototype."""
        found = np.zeros((SIDE, SIDE))
        for each in self.said(n, c).contributions:
            mask = box_mask(each.box or (0, 0, SIDE, SIDE))
            found += each.contribution * mask / mask.sum()
        return found

    def against(self, n: int, c: int) -> np.ndarray:
        """(h, w) evidence less that of the best other class."""
        best = [each.class_index for each in self.said(n, c).predictions if each.class_index != c]
        return self.evidence(n, c) - self.evidence(n, best[0])

    def centred(self, n: int, c: int) -> np.ndarray:
        """(h, w) contributions, each less what it is at the middle place of the image."""
        rows = [each.maps["contribution"] for each in self.said(n, c).contributions]
        return sum(each - np.median(each) for each in rows)

    @cached_property
    def names(self) -> np.ndarray:
        """(P, K + 1) what every prototype shows, parts and then the background's objects, by its training patches:
        means over each of what their maps have beyond the middle place, as shares."""
        examples, found = self.loaded.model.examples, []
        for k in range(len(self.loaded.model.prototypes)):
            shares = np.zeros(len(NAMES) + 1)
            for number in examples.of(k):
                picture = draw(self.birds.seed, "train", int(Path(examples.sources[number].path).stem.split("_")[1]))
                pixels = pixels_of(examples.map[number].numpy())
                pixels = np.maximum(pixels - np.median(pixels), 0)
                masks = [*picture.parts, picture.objects.any(axis=0)]
                means = np.array([pixels[mask].mean() if mask.any() else 0.0 for mask in masks])
                shares += means / max(means.sum(), 1e-12)
            found.append(shares / max(shares.sum(), 1e-12))
        return np.array(found)

    def named(self, n: int, c: int, *, mixed_up: bool = False) -> Importance:
        """Without any map of the image: contributions of rows, by the names of their prototypes; those of objects are
        shared out among the image's. Mixed up, every prototype has the names of another one."""
        order = np.random.default_rng(self.birds.seed).permutation(len(self.names)) if mixed_up else None
        names = self.names if order is None else self.names[order]
        found = sum(each.contribution * names[each.prototype_id] for each in self.said(n, c).contributions)
        assert isinstance(found, np.ndarray)
        count = self.birds.whole[n].object_count
        objects = np.where(np.arange(MOST_OBJECTS) < count, found[-1] / max(1, count), 0.0)
        return measures.shared_out(found[:-1], objects, float(found.sum()))

    def readings(self) -> dict[str, Explain]:
        maps = (self.evidence, self.prototypes, self.own, self.boxes, self.against, self.centred)
        found = {each.__name__: of_maps(self.birds, each) for each in maps}
        return found | {
            "named": measures.remembered(self.named),
            "names mixed up": measures.remembered(partial(self.named, mixed_up=True)),
        }


class ProtoPNet:
    """A ProtoPNet as FunnyBirds reads it: the boxes of the class's own prototypes."""

    def __init__(self, loaded: Loaded, birds: Birds) -> None:
        self.loaded, self.birds = loaded, birds

    def importance(self, n: int, c: int) -> Importance:
        found = self.loaded.explain(self.birds.crops[n], c)
        sizes, covered = np.zeros((SIDE, SIDE)), np.zeros((SIDE, SIDE))
        for each in found.contributions:
            if each.owner_index == c and each.box is not None:
                mask = box_mask(each.box)
                sizes, covered = sizes + each.contribution * mask, np.maximum(covered, mask)
        picture = self.birds.whole[n]
        objects = np.zeros(MOST_OBJECTS)
        objects[: picture.object_count] = share_covered(picture.objects, covered)
        return Importance((picture.parts * sizes).sum(axis=(1, 2)), share_covered(picture.parts, covered), objects)


def share_covered(masks: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Of each mask; nothing where it is empty."""
    return (masks * covered).sum(axis=(1, 2)) / np.maximum(1, masks.sum(axis=(1, 2)))


class Gradients:
    """What gradients of the network say, without protonmf."""

    def __init__(self, network: nn.Module, birds: Birds, seed: int) -> None:
        from captum.attr import IntegratedGradients, LayerGradCam  # an extra: pip install 'protonmf[faithfulness]'

        self.birds, self.seed = birds, seed
        self.cam, self.integrated = LayerGradCam(network, network.layer4), IntegratedGradients(network)
        self.signed = cache(self._signed)

    def grad_cam(self, n: int, c: int) -> np.ndarray:
        """(h, w) >= 0"""
        return np.maximum(self.signed(n, c), 0)

    def _signed(self, n: int, c: int) -> np.ndarray:
        """(h, w) Grad-CAM before its cut at zero."""
        return self.cam.attribute(self._input(n), target=c)[0, 0].detach().numpy()

    def centred(self, n: int, c: int) -> np.ndarray:
        """(h, w) the same less what it is at the middle place of the image."""
        found = self.signed(n, c)
        return found - np.median(found)

    def integrated_gradients(self, n: int, c: int) -> np.ndarray:
        """(SIDE, SIDE)"""
        black = normalised(torch.zeros(1, 3, SIDE, SIDE))
        found = self.integrated.attribute(self._input(n), black, target=c, n_steps=STEPS, internal_batch_size=STEPS)
        return found[0].sum(dim=0).detach().numpy()

    def random(self, n: int, c: int) -> np.ndarray:
        """(h, w), another one for every image and class."""
        return np.random.default_rng([self.seed, n, c]).random((7, 7))

    def _input(self, n: int) -> Tensor:
        return normalised(self.birds.crops[n : n + 1]).contiguous().requires_grad_()


# Together


@dataclass(frozen=True, eq=False)
class Explainer:
    """A model's answers and what is said of them, for the birds to choose on and for those measured."""

    answers: tuple[Answers, Answers]
    explain: tuple[Explain, Explain]

    def measured(self) -> tuple[float, dict[str, np.ndarray]]:
        """The threshold, and every measure image by image."""
        all_classes = pictures.classes()
        threshold = measures.best_threshold(self.answers[0], self.explain[0], all_classes)
        return threshold, measures.measured(self.answers[1], self.explain[1], all_classes, threshold)


def explainers(
    loaded: Mapping[str, Loaded], network: nn.Module, sets: tuple[Birds, Birds], folder: Path, seed: int
) -> Iterator[tuple[str, Explainer]]:
    """All of them by name."""

    def answers(name: str, logits: Logits) -> tuple[Answers, Answers]:
        kept = [folder / f"answers {name} {birds.split} {birds.count}.npz" for birds in sets]
        return tuple(answers_on(birds, logits, path) for birds, path in zip(sets, kept, strict=True))

    with torch.inference_mode():
        of_network = answers("network", lambda crops: network(normalised(crops)).double())
    for name, each in loaded.items():
        if name == "protopnet":
            found = tuple(measures.remembered(ProtoPNet(each, birds).importance) for birds in sets)
            yield name, Explainer(answers(name, logits_of(each)), found)
            continue
        readings = [Conversion(each, birds).readings() for birds in sets]
        for reading in readings[0]:
            yield f"{name}: {reading}", Explainer(of_network, (readings[0][reading], readings[1][reading]))
    fell = of_network[0].drops.mean(axis=0)
    constant = measures.shared_out(fell, np.zeros(MOST_OBJECTS), float(fell.sum()))
    yield "constant", Explainer(of_network, (lambda n, c: constant, lambda n, c: constant))
    plain = [Gradients(network, birds, seed) for birds in sets]
    for name, way in (
        ("Grad-CAM", "grad_cam"),
        ("Grad-CAM, signed", "signed"),
        ("Grad-CAM, centred", "centred"),
        ("integrated gradients", "integrated_gradients"),
        ("random map", "random"),
    ):
        first, second = (of_maps(birds, getattr(each, way)) for birds, each in zip(sets, plain, strict=True))
        yield name, Explainer(of_network, (first, second))


def mean_of(values: np.ndarray, seed: int) -> str:
    """Mean and 95 % interval over the images that a measure says something of."""
    said = values[np.isfinite(values)]
    if not len(said):
        return "-"
    low, high = bootstrap_interval(said, seed=seed)
    return f"{said.mean():.3f} ({low:.3f}-{high:.3f})"


def table_of(rows: Mapping[str, Sequence[str]], heading: Sequence[str]) -> str:
    """Markdown."""
    lines = [heading, ["---"] * len(heading), *([name, *values] for name, values in rows.items())]
    return "\n".join("| " + " | ".join(each) + " |" for each in lines)


def network_row(answers: Answers, seed: int) -> list[str]:
    """What a network does, whoever explains it: accuracy, background independence, each part's share of the logit."""
    shares = measures.alone(answers)
    return [
        mean_of(measures.accuracy(answers), seed), mean_of(measures.background_independence(answers), seed),
        *(f"{share:.2f}" for share in np.median(shares, axis=0)),
    ]  # fmt: skip


def part_quality(path: Path, data: Path, seed: int) -> list[str]:
    """Consistency, stability, and what else `protonmf evaluate --table part-quality` says, with the true parts."""
    options = TableOptions(parts=data / "parts", seed=seed)
    found = protonmf_cli.evaluate(path, data, tables=("part-quality",), options=options, machine=MACHINE)
    rows = {row["measure"]: row for row in found.tables["part_quality"].rows}
    names = ("consistency", "stability", "distinctiveness", "comprehensiveness")
    return [_shown(rows[name]) for name in names]


def _shown(row: Mapping[str, Any]) -> str:
    if row["value"] is None:
        return "-"
    low, high = row["value_interval"]
    return f"{row['value']:.3f} ({low:.3f}-{high:.3f})"


MEASURES = ("SD", "D", "TS", "CSDC", "PC", "DC")
BESIDE = "Grad-CAM"


def show(found: "Measured", seed: int) -> None:
    """The measures of every explainer, and what they have beyond Grad-CAM on the same images."""
    rows = {
        name: [f"{threshold:.2f}", *(mean_of(values[m], seed) for m in MEASURES)]
        for name, (threshold, values) in found.items()
    }
    print("\n" + table_of(rows, ("explainer", "threshold", *MEASURES)))
    if BESIDE in found:
        beside = found[BESIDE][1]
        gains = {
            name: [mean_of(values[m] - beside[m], seed) for m in MEASURES]
            for name, (_, values) in found.items()
            if name != BESIDE and not name.startswith("protopnet")
        }
        print(f"\nbeyond {BESIDE}, image by image:\n\n" + table_of(gains, ("explainer", *MEASURES)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--only", nargs="*", default=[*CONVERSIONS, "protopnet"], help="models to measure")
    words = parser.parse_args()
    torch.set_num_threads(1)
    seed, folder = words.seed, words.folder / f"seed {words.seed}"
    folder.mkdir(parents=True, exist_ok=True)
    data = write_pictures(folder, seed)
    trained = train_network(folder, seed)
    paths = {
        name: train_protopnet(folder, trained, data, seed) if name == "protopnet"
        else convert(folder, trained, data, name, seed)
        for name in words.only
    }  # fmt: skip
    loaded = {name: protonmf_cli.load(path, machine=MACHINE) for name, path in paths.items()}
    network = timm.create_model(f"local-dir:{trained}", pretrained=True).eval().requires_grad_(False)
    sets = (Birds(seed, "check", CHECK), Birds(seed, "val", words.images))
    found, models = measure(explainers(loaded, network, sets, folder, seed), folder / f"measured {words.images}.json")
    rows = {name: network_row(answers, seed) for name, answers in models.items()}
    print("\n" + table_of(rows, ("model", "accuracy", "background independence", *NAMES)))
    show(found, seed)
    quality = {name: part_quality(path, data, seed) for name, path in paths.items()}
    print("\n" + table_of(quality, ("prototypes", "consistency", "stability", "distinctiveness", "comprehensiveness")))


Measured = dict[str, tuple[float, dict[str, np.ndarray]]]
"""Of an explainer its threshold, and every measure image by image."""


def measure(each: Iterator[tuple[str, Explainer]], kept: Path) -> tuple[Measured, dict[str, Answers]]:
    """Of every explainer, those alone that were not measured before; and what the models answer."""
    stored = json.loads(kept.read_text()) if kept.exists() else {}
    models: dict[str, Answers] = {}
    for name, explainer in each:
        models["protopnet" if name == "protopnet" else "network"] = explainer.answers[1]
        if name in stored:
            continue
        began = time.monotonic()
        threshold, values = explainer.measured()
        stored[name] = [threshold, {m: v.tolist() for m, v in values.items()}]
        kept.write_text(json.dumps(stored))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    found = {name: (t, {m: np.array(v) for m, v in values.items()}) for name, (t, values) in stored.items()}
    return found, models


if __name__ == "__main__":
    main()
