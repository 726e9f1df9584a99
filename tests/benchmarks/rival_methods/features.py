"""What every method gets: the rows that a network's head reads of images, from one pass that is kept on disk."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.models.image_batches import ImageSource

BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Images:
    """N images as a network reads them: logits = (sum of the rows + rest) . V + b."""

    rows: Tensor
    """(N, T, D) float32 rows with a place."""
    rest: Tensor
    """(N, D) float32 sum of the rows without a place; zeros where there are none."""
    logits: Tensor
    """(N, C) float32 of the network itself."""
    labels: Tensor
    """(N,) int64 class; (N, 4) of a collage."""

    @property
    def pooled(self) -> Tensor:
        """(N, D) sum of the rows with a place."""
        return self.rows.sum(dim=1)

    def of(self, chosen: Tensor) -> "Images":
        """Some of the images."""
        return Images(
            rows=self.rows[chosen], rest=self.rest[chosen], logits=self.logits[chosen], labels=self.labels[chosen]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Network:
    """A classifier, and its images."""

    backbone: Backbone
    train: Images
    val: Images
    train_collages: Images
    val_collages: Images

    @property
    def classes(self) -> list[int]:
        """Classes with images, rising."""
        return self.train.labels.unique().tolist()

    @property
    def vectors(self) -> Tensor:
        """(C, D) float32 rows of the head."""
        return self.backbone.readout.vectors.float()

    @property
    def offset(self) -> Tensor:
        """(C,) what every method adds to its concepts: the bias, and the usual value of the rows without a place."""
        return self.backbone.readout.bias.float() + self.vectors @ self.train.rest.mean(dim=0)

    def readings(self) -> Iterator[ClassReading]:
        """The training images as a conversion takes them, class after class."""
        for c in self.classes:
            found = self.train.of(self.train.labels == c)
            parts = [found.pooled, found.rest] if self.backbone.readout.unplaced else [found.pooled]
            yield ClassReading(
                class_index=c, rows=found.rows, pooled=torch.stack(parts, dim=1), predicted=found.logits.argmax(dim=1),
                crops=torch.zeros(len(found.rows), 3, 1, 1, dtype=torch.uint8),
                images=tuple(ImageSource(path=f"{c}/{n}", sha256=f"{c}/{n}") for n in range(len(found.rows))),
                skipped=(), figures=NO_FIGURES,
            )  # fmt: skip


NO_FIGURES = dict.fromkeys(("max_abs_difference", "max_rel_difference", "negative_share", "clipped_share"), 0.0)


def load_network(name: str, data: Path, work: Path, collages: int) -> Network:
    """The network and its images; what it made of them is taken from `work` where it was kept.

    Args:
        name: as `protonmf convert` takes it.
        data: folder with train and val.
        work: folder.
        collages: of each split.
    """
    backbone = load_backbone(BackboneRequest(name=name))[0]
    work.mkdir(parents=True, exist_ok=True)
    kept = {}
    for split in ("train", "val"):
        images = find_images(data, split, backbone.classes, ClassMapping())
        named = f"{name}\n{images.fingerprint()}\n{collages}"
        path = work / f"rows-{hashlib.sha256(named.encode()).hexdigest()[:16]}.pt"
        if not path.exists():
            reader = image_reader(backbone.preprocessing, batch_size=BATCH, workers=1)
            batches = list(reader.batches(images.of(sorted(images.files))))
            crops = torch.cat([batch.crops for batch in batches])
            labels = torch.cat([torch.full((len(batch.crops),), batch.class_index) for batch in batches])
            found = {split: _read(backbone, crops, labels)}
            found[f"{split}_collages"] = _read(backbone, *made_collages(crops, labels, collages))
            torch.save({key: vars(each) for key, each in found.items()}, path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)
        loaded: dict[str, Any] = torch.load(path, mmap=True)
        kept |= {key: Images(**each) for key, each in loaded.items()}
    return Network(backbone=backbone, **kept)


def _read(backbone: Backbone, crops: Tensor, labels: Tensor) -> Images:
    """Run the network."""
    places = backbone.readout.places
    rows, rest, logits = [], [], []
    for batch in crops.split(BATCH):
        reading = backbone.read(batch)
        rows.append(reading.rows[:, :places].float())
        rest.append(reading.rows[:, places:].sum(dim=1).float())
        logits.append(reading.logits.float())
    return Images(rows=torch.cat(rows), rest=torch.cat(rest), logits=torch.cat(logits), labels=labels)


def made_collages(crops: Tensor, labels: Tensor, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pictures of 2 x 2 crops at half their size, each of another class (after Fel et al. 2025, arXiv 2502.12892).

    Args:
        crops: (N, channels, height, width) uint8
        labels: (N,)
        count: collages that are drawn.
        seed: of the draw.

    Returns:
        (count, channels, height, width) uint8, and (count, 4) their classes.
    """
    generator, size = torch.Generator().manual_seed(seed), crops.shape[2:]
    classes = labels.unique()
    pictures, made_of = [], []
    for _ in range(count):
        four = classes[torch.randperm(len(classes), generator=generator)[:4]]
        tiles = []
        for c in four.tolist():
            mine = (labels == c).nonzero()[:, 0]
            chosen = mine[torch.randint(len(mine), (1,), generator=generator)]
            half = interpolate(crops[chosen].float(), size=(size[0] // 2, size[1] // 2), mode="area")
            tiles.append(half[0])
        whole = torch.cat([torch.cat(tiles[:2], dim=2), torch.cat(tiles[2:], dim=2)], dim=1)
        pictures.append(whole.round().clamp(0, 255).to(torch.uint8))
        made_of.append(four)
    return torch.stack(pictures), torch.stack(made_of)


def held_out(labels: Tensor, share: float = 0.2, seed: int = 0) -> Tensor:
    """(N,) bool, a share of each class's images, on which options are chosen."""
    generator, found = torch.Generator().manual_seed(seed), torch.zeros_like(labels, dtype=torch.bool)
    for c in labels.unique().tolist():
        mine = (labels == c).nonzero()[:, 0]
        found[mine[torch.randperm(len(mine), generator=generator)[: max(1, round(share * len(mine)))]]] = True
    return found


def first_of_each(labels: Tensor, count: int) -> Tensor:
    """Numbers of the first images of each class."""
    return torch.cat([(labels == c).nonzero()[:count, 0] for c in labels.unique().tolist()])


def drawn_rows(images: Images, most: int, seed: int) -> Tensor:
    """(n, D) rows of images, at most so many, drawn with the seed."""
    flat = images.rows.flatten(0, 1)
    if len(flat) <= most:
        return flat
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))[:most]
    return flat[chosen.sort().values]
