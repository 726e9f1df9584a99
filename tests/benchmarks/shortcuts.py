"""Planted shortcuts: does the audit find them, and what is left of them when what it names is taken out?

    python tests/benchmarks/shortcuts.py [--network NAME ...] [--seeds 0 1] [--groups a b c none] [-p 3]
        [--device cpu|cuda] [--jobs N] [--work DIR] [--json FILE]

Ten marks in three groups, three or four in one network of twelve classes, see planting.py; group none is the control
without marks. Every network is converted on its training images, and audited twice: with validation images without
marks, and with such as a user has whose data is biased, where nine in ten images of a marked class carry its mark.

Found: the rank, among all prototypes but those of the other marks' classes, of the first one that is the mark's: of its
class, and its amount grows at least half as much as that of any when the mark is put on training images. Beside it the
pointing game (Zhang et al. 2018): how often the peak of a map of a marked training image lies on the mark or within 15
pixels, for Grad-CAM, for the mark's prototype, and for all places alike.

Removed: of each mark's class what the audit ranks first, whether or not that is the mark's, all in one edit of every
class; then with a refit of the last layer on one half of the validation images, measured on the other, and the other
way round. "Clean" and "biased" say which validation images the audit and the refit saw. As a control the same is done
with parts of as many classes without a mark. Flips: share of marked validation images of other classes that go to the
mark's class. Own: accuracy of the mark's class on validation images without marks; all: that of all twelve. Every edit
is again a linear head on the sum of an image's rows, so what heads are measured on is read once; with --work networks,
images and sums are kept. Beside it stand what others do, see shortcut_rivals.py, also for all marks at once.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from planting import CLASSES, CONTROL, GROUPS, PLACED, Planted, shortcut_network
from shortcut_rivals import (
    Head,
    best_separating,
    concepts,
    grad_cam,
    most_important,
    projected_head,
    read_sums,
    refitted_head,
    within_classes,
    without_concepts,
)
from shortcut_tables import show
from threadpoolctl import threadpool_limits
from torch import Tensor

import protonmf_cli
from protonmf_cli import ConversionOptions, ImageWords, Machine, Output
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.jobs.loaded import Loaded
from protonmf_cli.models.audit import Audit
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Edit
from protonmf_cli.pipelines.explaining.intervention import apply_edits
from protonmf_cli.pipelines.explaining.pasting import patches_of
from protonmf_cli.pipelines.explaining.refit import RefitImages, read_refit_images, refit_head

SHARED = Path(__file__).resolve().parents[3] / "shared"
NETWORKS = ("mobilenetv2_100.imagenet", "deit_tiny_patch16_224.imagenet")
TOLERANCE = 15
"""Pixels from the mark within which a peak counts."""


# What the network reads


@dataclass(frozen=True)
class Sums:
    """Sums of the rows of images, (N, D) float64."""

    train: Tensor
    labels: Tensor
    mark: Tensor
    unmarked: Tensor
    """Of the training images without their marks."""
    val: Tensor
    val_labels: Tensor
    stamped: dict[str, Tensor]
    """Of marked validation images of other classes, by mark."""


def read_images(backbone: Backbone, planted: Planted) -> Sums:
    """Read every image once."""
    train = read_sums(backbone, planted.train.crops)
    unmarked, changed = train.clone(), planted.mark >= 0
    unmarked[changed] = read_sums(backbone, planted.unmarked[changed])
    return Sums(
        train=train, labels=planted.train.labels, mark=planted.mark, unmarked=unmarked,
        val=read_sums(backbone, planted.val.crops), val_labels=planted.val.labels,
        stamped={mark: read_sums(backbone, crops) for mark, crops in planted.stamped.items()},
    )  # fmt: skip


def growing(model: PrototypeModel, sums: Sums, targets: Mapping[str, int]) -> dict[str, list[int]]:
    """By mark, the prototypes of its class that grow most when it is put on training images: half as much as the first
    at least."""
    found = {}
    for number, (mark, c) in enumerate(targets.items()):
        chosen = sums.mark == number
        change = (sums.train - sums.unmarked)[chosen].mean(dim=0)
        own = model.own(c)
        amounts = (model.exact.readers(c)[: len(own)] @ change).tolist()
        ranked = sorted(zip(amounts, own, strict=True), reverse=True)
        found[mark] = [k for n, (amount, k) in enumerate(ranked) if n == 0 or amount >= ranked[0][0] / 2 > 0]
    return found


# Finding


def ranks(found: Audit, of_mark: Mapping[str, Sequence[int]], targets: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """By mark: its rank, the verdict, and whether the first candidate of its class is the mark's."""
    table = {}
    for mark, c in targets.items():
        strange = set(targets.values()) - {c}
        mine = [each for each in found.candidates if each.class_index not in strange]
        rank = next(n for n, each in enumerate(mine) if each.prototype_id in of_mark[mark])
        first = next(each for each in mine if each.class_index == c)
        table[mark] = {
            "rank": rank + 1, "said": mine[rank].is_shortcut, "score": mine[rank].score,
            "first of its class": first.prototype_id in of_mark[mark],
        }  # fmt: skip
    return table


def alarms(found: Audit, targets: Mapping[str, int]) -> list[int]:
    """Classes without a mark of which a prototype is called a shortcut, and classes without a mark."""
    called = {each.class_index for each in found.shortcuts} - set(targets.values())
    return [len(called), CLASSES - len(targets)]


def distances(marked: Tensor, unmarked: Tensor, grid: tuple[int, int]) -> Tensor:
    """(N, h w) pixels from the middle of each place of a grid to the mark; 0 on it."""
    changed = (marked != unmarked).any(dim=1)
    away = []
    for lines, count in ((changed.any(dim=2), grid[0]), (changed.any(dim=1), grid[1])):
        size = lines.shape[1]
        start, stop = lines.int().argmax(dim=1), size - lines.flip(1).int().argmax(dim=1)
        middle = (torch.arange(count) + 0.5) * size / count
        away.append(torch.maximum(start[:, None] - middle, middle - stop[:, None]).clamp_min(0))
    return torch.hypot(away[0][:, :, None], away[1][:, None]).flatten(1)


def pointing(loaded: Loaded, planted: Planted, number: int, prototype: int) -> dict[str, float] | None:
    """How often maps of the images of one mark have their peak on it; None where it has no place."""
    chosen = planted.mark == number
    mark = list(planted.targets)[number]
    grid = loaded.backbone.readout.grid
    if LOOKS_OF[mark] not in PLACED or grid is None:
        return None
    crops = planted.train.crops[chosen]
    near = distances(crops, planted.unmarked[chosen], grid) <= TOLERANCE
    model, c = loaded.model, planted.targets[mark]
    reader = model.exact.readers(c)[model.own(c).index(prototype)]
    rows = torch.cat([loaded.backbone.read(each).rows.cpu() for each in crops.split(64)])
    maps = {"Grad-CAM": grad_cam(loaded.backbone, crops), "prototype": rows[:, : near.shape[1]].double() @ reader}
    found = {"chance": float(near.double().mean())}
    for name, each in maps.items():
        best = each.flatten(1).max(dim=1)
        hits = near.gather(1, best.indices[:, None])[:, 0] & (best.values > 0)
        found[name] = float(hits.double().mean())
    return found


LOOKS_OF = {name: mark.look for marks in GROUPS.values() for name, mark in marks.items()}


# Removing


@dataclass(frozen=True)
class Tops:
    """Predicted classes of validation images, and of marked ones of other classes."""

    val: Tensor
    stamped: dict[str, Tensor]


def predicted(sums: Sums, head: Head) -> Tops:
    vectors, bias = head

    def top(rows: Tensor) -> Tensor:
        return (rows @ vectors.mT + bias).argmax(dim=1)

    return Tops(val=top(sums.val), stamped={mark: top(rows) for mark, rows in sums.stamped.items()})


def crossed(sums: Sums, targets: Mapping[str, int], heads: Sequence[Head], half: Tensor) -> Tops:
    """Of two heads, each on the validation images (half: (N,) 0 or 1) that it was not fitted on."""
    first, second = (predicted(sums, head) for head in heads)
    hosts = {mark: half[sums.val_labels != c] for mark, c in targets.items()}
    return Tops(
        val=torch.where(half == 1, first.val, second.val),
        stamped={m: torch.where(hosts[m] == 1, first.stamped[m], second.stamped[m]) for m in targets},
    )


def measured(sums: Sums, targets: Mapping[str, int], tops: Tops) -> dict[str, Any]:
    """Flips and own by mark, and all."""
    right = (tops.val == sums.val_labels).double()
    return {
        "flips": {mark: float((tops.stamped[mark] == c).double().mean()) for mark, c in targets.items()},
        "own": {mark: float(right[sums.val_labels == c].mean()) for mark, c in targets.items()},
        "all": float(right.mean()),
    }


def head_of(model: PrototypeModel) -> Head:
    """The linear head that a model, edited or not, is."""
    return model.head_vectors(), model.exact.bias


def without(model: PrototypeModel, prototypes: Sequence[int]) -> PrototypeModel:
    """The model after `--everywhere --zero` of prototypes."""
    return apply_edits(model, [Edit(class_index=-1, prototype_id=k, factor=0.0) for k in prototypes])


def halves(labels: Tensor, seed: int) -> Tensor:
    """(N,) 0 or 1: images in two halves, class by class."""
    generator, found = torch.Generator().manual_seed(seed), torch.zeros_like(labels)
    for c in labels.unique().tolist():
        mine = (labels == c).nonzero()[:, 0]
        found[mine[torch.randperm(len(mine), generator=generator)[::2]]] = 1
    return found


def batches(crops: Tensor, labels: Tensor) -> Iterator[ImageBatch]:
    """Validation images class by class, in their order."""
    assert bool((labels.diff() >= 0).all())
    for c in labels.unique().tolist():
        mine = (labels == c).nonzero()[:, 0]
        sources = tuple(ImageSource(path=str(n), sha256=str(n)) for n in mine.tolist())
        yield ImageBatch(class_index=c, crops=crops[mine], sources=sources)


def part_of(images: RefitImages, kept: Tensor, prototypes: Sequence[int]) -> RefitImages:
    """Some of the images (kept: (N,) bool), with the patches of some prototypes."""
    wanted = kept[images.origin] & torch.isin(images.pasted, torch.tensor([-1, *prototypes]))
    number = kept.cumsum(dim=0) - 1
    return RefitImages(
        rows=images.rows[wanted], labels=images.labels[wanted], origin=number[images.origin[wanted]],
        pasted=images.pasted[wanted],
        sources=tuple(source for source, keep in zip(images.sources, kept.tolist(), strict=True) if keep),
    )  # fmt: skip


@dataclass(frozen=True)
class Removals:
    """Heads after what an audit names was taken out, on one network."""

    loaded: Loaded
    sums: Sums
    targets: Mapping[str, int]
    half: Tensor

    def refit_images(self, crops: Tensor, prototypes: Sequence[int]) -> RefitImages:
        """Validation images, with and without marks, and with patches of prototypes."""
        model = self.loaded.model
        patches = patches_of(model, prototypes, lambda example: crop_of_jpeg(model.examples.picture(example), 3))
        return read_refit_images(self.loaded.backbone, batches(crops, self.sums.val_labels), patches, model.owner)

    def removed(self, prototypes: Sequence[int]) -> dict[str, Any]:
        """With the edit alone."""
        return measured(self.sums, self.targets, predicted(self.sums, head_of(without(self.loaded.model, prototypes))))

    def refitted(self, prototypes: Sequence[int], images: RefitImages) -> dict[str, Any]:
        """With a refit after it, on each half of the images."""
        edited = without(self.loaded.model, prototypes)
        found = [refit_head(self.loaded.model, edited, part_of(images, self.half == n, prototypes)) for n in (0, 1)]
        heads = [head_of(model) for model, _ in found]
        return measured(self.sums, self.targets, crossed(self.sums, self.targets, heads, self.half)) | {
            "ridges": [refit.ridge for _, refit in found]
        }


def firsts(found: Audit, classes: Sequence[int]) -> list[int]:
    """What an audit ranks first of each class."""
    return [next(each.prototype_id for each in found.candidates if each.class_index == c) for c in classes]


def removals(
    loaded: Loaded, sums: Sums, planted: Planted, audits: Mapping[str, Audit], seed: int
) -> dict[str, dict[str, Any]]:
    """What the audits name taken out; as a control, the first ones of as many classes without a mark."""
    way = Removals(loaded, sums, planted.targets, halves(sums.val_labels, seed))
    marked = list(planted.targets.values())
    unmarked = [c for c in range(CLASSES) if c not in marked][: len(marked)]
    named = {name: firsts(found, marked) for name, found in audits.items()}
    control, rows = firsts(audits["clean"], unmarked), {}
    for name, crops in (("clean", planted.val.crops), ("biased", planted.biased.crops)):
        images = way.refit_images(crops, [*named[name], *(control if name == "clean" else [])])
        rows[f"removed ({name})"] = way.removed(named[name])
        rows[f"removed, refit ({name})"] = way.refitted(named[name], images)
        if name == "clean":
            rows["other parts removed, refit"] = way.refitted(control, images)
    return rows


def rivals(loaded: Loaded, sums: Sums, planted: Planted) -> dict[str, dict[str, Any]]:
    """What the others' heads do."""
    head, model, targets = head_of(loaded.model), loaded.model, planted.targets
    chosen = [sums.mark == number for number in range(len(targets))]
    marked, unmarked = ([each[these] for these in chosen] for each in (sums.train, sums.unmarked))
    assert model.amounts is not None
    within, unplaced = within_classes(sums.train, sums.labels), model.amounts.unplaced_mean.double()
    important, separating = [], []
    for c, with_it, without_it in zip(targets.values(), marked, unmarked, strict=True):
        basis, codes = concepts(loaded.backbone, planted.train.crops[planted.train.labels == c])
        important.append((basis, most_important(basis, codes, head[0][c])))
        separating.append((basis, best_separating(basis, with_it, without_it)))
    heads = {
        "DFR": refitted_head(sums.unmarked, sums.labels),
        "P-ClArC": projected_head(head, marked, unmarked, sums.unmarked.mean(dim=0)),
        "CRAFT, most important": without_concepts(head, important, within, unplaced),
        "CRAFT, by the marks' labels": without_concepts(head, separating, within, unplaced),
    }
    return {name: measured(sums, targets, predicted(sums, each)) for name, each in heads.items()}


# A run


@dataclass(frozen=True)
class Words:
    """What was asked for."""

    models: Path
    data: Path
    prototypes: int
    device: str
    threads: int
    work: Path

    @property
    def machine(self) -> Machine:
        return Machine(device=self.device, threads=self.threads, workers=self.threads)


@dataclass(frozen=True)
class Job:
    """One network."""

    network: str
    seed: int
    group: str

    @property
    def name(self) -> str:
        return f"{self.network}-{self.group}-seed{self.seed}"


def prepared(job: Job, words: Words) -> tuple[Loaded, Planted, Sums]:
    """Make, read and convert one network, or take what a run before left of it."""
    folder = words.work / job.name
    planted = shortcut_network(folder, words.models, job.network, words.data, job.group, job.seed, words.device)
    loaded = protonmf_cli.convert(
        f"local-dir:{(folder / 'network').resolve()}",
        ImageWords(data=folder / "data"),
        ConversionOptions(prototypes=words.prototypes, stability=False),
        output=Output(path=folder / "prototypes.safetensors", force=True),
        machine=words.machine,
    ).loaded
    kept = folder / "sums.pt"
    if not kept.exists():
        torch.save(vars(read_images(loaded.backbone, planted)), kept)
    return loaded, planted, Sums(**torch.load(kept))


def run(job: Job, words: Words) -> dict[str, Any]:
    """Measure one network."""
    torch.set_num_threads(words.threads)
    folder, clock = words.work / job.name, [("", time.monotonic())]
    with threadpool_limits(words.threads):
        loaded, planted, sums = prepared(job, words)
        clock.append(("network and conversion", time.monotonic()))
        targets, marks = planted.targets, growing(loaded.model, sums, planted.targets)
        validation = {"clean": ImageWords(data=folder / "data", split="val")}
        if targets:
            validation["biased"] = ImageWords(data=folder / "biased")
        audits = {
            name: protonmf_cli.audit(loaded, each, machine=words.machine).found for name, each in validation.items()
        }
        clock.append(("audits", time.monotonic()))
        found = {
            "targets": {mark: planted.names[c] for mark, c in targets.items()},
            "found": {name: ranks(each, marks, targets) for name, each in audits.items()},
            "alarms": {name: alarms(each, targets) for name, each in audits.items()},
            "removed": {"network": measured(sums, targets, predicted(sums, head_of(loaded.model)))},
            "pointing": {m: pointing(loaded, planted, n, marks[m][0]) for n, m in enumerate(targets)},
        }
        if targets:
            clock.append(("pointing", time.monotonic()))
            found["removed"] |= removals(loaded, sums, planted, audits, job.seed)
            clock.append(("removals", time.monotonic()))
            found["removed"] |= rivals(loaded, sums, planted)
            clock.append(("rivals", time.monotonic()))
    seconds = {name: round(then - before, 1) for (_, before), (name, then) in pairwise(clock)}
    return found | {"seconds": seconds}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=SHARED / "models")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "caltech101_imagenet")
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("-p", "--prototypes", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--threads", type=int, help="of each; the cores shared out if not given")
    parser.add_argument("--work", type=Path, help="folder for networks, images and sums; kept")
    parser.add_argument("--json", type=Path, help="file for the figures of each network")
    return parser.parse_args()


def main() -> None:
    asked, results = arguments(), dict[Job, dict[str, Any]]()
    jobs = [
        Job(n, s, g)
        for g in sorted(asked.groups, key=lambda g: g == CONTROL)
        for s in asked.seeds
        for n in asked.network
    ]
    with tempfile.TemporaryDirectory() as scratch:
        words = Words(
            models=asked.models, data=asked.data, prototypes=asked.prototypes, device=asked.device,
            threads=asked.threads or max(1, (os.cpu_count() or 1) // asked.jobs), work=asked.work or Path(scratch),
        )  # fmt: skip
        with ProcessPoolExecutor(min(asked.jobs, len(jobs)), mp_context=get_context("spawn")) as pool:
            running = {pool.submit(run, job, words): job for job in jobs}
            for done in as_completed(running):
                results[running[done]] = done.result()
                seconds = ", ".join(f"{name} {s:.0f} s" for name, s in done.result()["seconds"].items())
                print(f"{running[done].name}: {seconds}", flush=True)
                if asked.json:  # what is done stays if the rest is not waited for
                    asked.json.write_text(json.dumps({job.name: found for job, found in results.items()}, indent=1))
    for network in asked.network:
        show(network, [results[job] for job in jobs if job.network == network])


if __name__ == "__main__":
    main()
