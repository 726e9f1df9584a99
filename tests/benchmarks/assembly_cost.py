"""CPU seconds of a conversion's assembly on drawn classes, and what it reads of them.

    python tests/benchmarks/assembly_cost.py CLASSES IMAGES [WIDTH] [PROTOTYPES]

One thread. Classes are drawn when they are visited, as those on disk are read; drawing is not counted.
"""

import os
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from protonmf_cli.files.images.reader import encode_jpeg  # noqa: E402
from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source  # noqa: E402
from protonmf_cli.models.card import DataFacts  # noqa: E402
from protonmf_cli.models.class_part import ClassPart, PartExamples  # noqa: E402
from protonmf_cli.models.image_batches import ImageSource  # noqa: E402
from protonmf_cli.models.readouts.pooled_heads import AveragedReadout, Layout  # noqa: E402
from protonmf_cli.options import ConversionOptions  # noqa: E402
from protonmf_cli.pipelines.conversion.assembly import assemble_model  # noqa: E402

SIDE = 7
"""Places of the grid, across and down."""
SHARP = 20.0
"""By which the logits of images of a class stand out, as those of a trained network do."""
JPEG = encode_jpeg((torch.arange(3 * 64 * 64) % 251).reshape(3, 64, 64).byte())
"""Stands for a training patch's crop."""


class DrawnClasses(Mapping[int, ClassPart]):
    """Classes as a conversion finishes them, each drawn from its number; images mix the class's own prototypes."""

    def __init__(self, vectors: Tensor, images: int, prototypes: int, *, sums: int = 1, side: int = SIDE) -> None:
        """
        Args:
            vectors: (C, D) rows of the head.
            images, prototypes: of each class.
            sums: S, pooled rows of each image.
            side: of the grid of places.
        """
        self.vectors, self.images, self.prototypes, self.sums, self.side = vectors, images, prototypes, sums, side
        self.visits: Counter[int] = Counter()
        self.bytes, self.seconds = 0, 0.0
        self.kept: dict[int, ClassPart] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.vectors)))

    def __getitem__(self, class_index: int) -> ClassPart:
        start = time.process_time()
        if class_index not in self.kept:
            self.kept = {class_index: self._drawn(class_index)}
        part = self.kept[class_index]
        self.visits[class_index] += 1
        self.bytes += 4 * (part.pooled.numel() + part.sample.numel())
        self.seconds += time.process_time() - start
        return part

    def _drawn(self, class_index: int) -> ClassPart:
        generator = torch.Generator().manual_seed(class_index)
        count, width, p = self.images, self.vectors.shape[1], self.prototypes
        sparse = torch.rand(p, width, generator=generator) * (torch.rand(p, width, generator=generator) < 0.2)
        wanted = self.vectors[class_index].clamp_min(0)  # parts of what the head looks for
        unit = nn.functional.normalize
        basis = unit(unit(sparse, dim=1) + unit(wanted, dim=0), dim=1)
        codes = torch.rand(count, p, generator=generator) + 0.1
        noise = 0.02 * torch.rand(count, width, generator=generator)
        pooled = (codes @ basis + noise)[:, None].expand(-1, self.sums, -1).clone()
        few = min(count, 8)
        spread = torch.rand(few, self.side**2, 1, generator=generator)
        ranks = torch.arange(few).expand(p, -1)[:, : min(few, 2)]
        shape = tuple(ranks.shape)
        return ClassPart(
            class_index=class_index,
            prototypes=basis,
            pooled=pooled,
            predicted=torch.full((count,), class_index),
            sample=pooled[:few, :1] * spread / spread.sum(dim=1, keepdim=True),
            stability=torch.rand(p, generator=generator),
            examples=PartExamples(
                score=torch.rand(shape, generator=generator),
                box=torch.tensor([0, 0, 224, 224]).expand(*shape, 4).clone(),
                map=torch.rand(*shape, self.side, self.side, generator=generator),
                image=ranks,
                crops=(JPEG,) * shape[1],
                sources=tuple(ImageSource(path=f"{class_index}/{n}.jpg", sha256="0" * 64) for n in range(shape[1])),
            ),
            images=tuple(ImageSource(path=f"{class_index}/{n}.jpg", sha256="0" * 64) for n in range(count)),
            skipped=(),
            figures={
                "squared_norm": 1.0, "squared_error": 0.1, "iterations": 100, "converged": True, "curve": [],
                "negative_share": 0.0, "clipped_share": 0.0, "max_abs_difference": 1e-6, "max_rel_difference": 1e-7,
            },
        )  # fmt: skip


def drawn_backbone(classes: int, width: int) -> Backbone:
    """A head of drawn rows; there is no network before it."""
    generator = torch.Generator().manual_seed(7)
    vectors = SHARP * torch.randn(classes, width, generator=generator) / width**0.5
    places = SIDE * SIDE
    readout = AveragedReadout(
        kind="average", vectors=vectors, bias=torch.zeros(classes), grid=(SIDE, SIDE), unplaced=(),
        layout=Layout(shape=(width, SIDE, SIDE), channel_axis=1), order=torch.arange(places),
        weights=torch.full((places,), 1 / places),
    )  # fmt: skip
    return Backbone(
        network=nn.Linear(1, 1),
        readout=readout,
        rows_option="auto",
        preprocessing=Preprocessing(
            input_size=(3, 224, 224), interpolation="bicubic", crop_pct=0.9, crop_mode="center", mean=(0.5,) * 3,
            std=(0.5,) * 3,
        ),
        classes=tuple(ClassName(label=f"class {c}") for c in range(classes)),
        source=Source(name="drawn", architecture="drawn"),
    )  # fmt: skip


def main(words: Sequence[str]) -> None:
    classes, images, width, prototypes = [*map(int, words), *(2048, 3)[len(words) - 2 :]]
    backbone = drawn_backbone(classes, width)
    finished = DrawnClasses(backbone.readout.vectors, images, prototypes)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    assemble_model(backbone, finished, ConversionOptions(stability=False), data=DataFacts())
    seconds = time.process_time() - start - finished.seconds
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    visits = sum(finished.visits.values()) / classes
    print(
        f"{classes} classes of {images} images, D = {width}, p = {prototypes}: {seconds:.2f} CPU s, "
        f"{seconds / classes:.4f} a class; {visits:.1f} visits, {finished.bytes / classes / 1e6:.1f} MB a class read; "
        f"peak {memory:.2f} GiB more"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
