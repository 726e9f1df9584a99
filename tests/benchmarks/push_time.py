"""Push against loops in Python, the network's forward pass excluded from all.

    python tests/benchmarks/push_time.py [--classes 10] [--prototypes 10] [--images 30] [--width 128] [--side 7]

"loop over prototypes": for every prototype and every batch its distances to all patches, those of other classes left
out, replaced on strict improvement. "original's loop": as the original code, in every batch the distances of all
prototypes at once, then a loop over the prototypes (without the pictures that it writes). All read the same latent rows
from memory, and the sources must be equal.
"""

import argparse
import time

import torch
from torch import nn

from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet, latent_readout
from protonmf_cli.pipelines.protopnet.nearest_patches import project
from protonmf_cli.pipelines.protopnet.setup import owners


class Latents(nn.Module):
    """A network whose features are its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels


Found = list[tuple[str, int]]


class Best:
    """The nearest patch of each prototype so far."""

    def __init__(self, count: int) -> None:
        self.distance = [float("inf")] * count
        self.found: Found = [("", -1)] * count

    def take(self, j: int, near: torch.Tensor, batch: ImageBatch) -> None:
        if float(near.min()) < self.distance[j]:
            self.distance[j] = float(near.min())
            image, row = divmod(int(near.argmin()), near.shape[1])
            self.found[j] = (batch.sources[image].path, row)


def loop_over_prototypes(net: ProtoPNet, backbone: Backbone, batches: list[ImageBatch]) -> Found:
    best = Best(len(net.prototypes))
    rows = [backbone.read(batch.crops).rows for batch in batches]
    with torch.inference_mode():
        for j in range(len(net.prototypes)):
            for batch, latent in zip(batches, rows, strict=True):
                near = net.distances_to(latent, net.prototypes[j : j + 1])[:, :, 0]
                if int(net.owner[j]) == batch.class_index:
                    best.take(j, near, batch)
    return best.found


def originals_loop(net: ProtoPNet, backbone: Backbone, batches: list[ImageBatch]) -> Found:
    best = Best(len(net.prototypes))
    with torch.inference_mode():
        for batch in batches:
            distance = net.distances(backbone.read(batch.crops).rows)
            for j in range(len(net.prototypes)):
                if int(net.owner[j]) == batch.class_index:
                    best.take(j, distance[:, :, j], batch)
    return best.found


LOOPS = {"loop over prototypes": loop_over_prototypes, "original's loop": originals_loop}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 10), ("prototypes", 10), ("images", 30), ("width", 128), ("side", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    words = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    network = Latents(words.width)
    size = (words.width, words.side, words.side)
    readout = latent_readout(network, nn.Identity(), (1, 1), size)
    owner = owners([words.prototypes] * words.classes)
    prototypes = torch.rand(len(owner), words.width, generator=generator)
    net = ProtoPNet(network, readout, prototypes, owner, words.classes, "log").eval()
    backbone = Backbone(
        network=network, readout=readout, rows_option="latent",
        preprocessing=Preprocessing(
            input_size=size, interpolation="bicubic", crop_pct=1.0, crop_mode="center",
            mean=(0.0,) * words.width, std=(1 / 255,) * words.width,
        ),
        classes=tuple(ClassName(label=str(c)) for c in range(words.classes)),
        source=Source(name="latents", architecture="latents"),
    )  # fmt: skip
    batches = [
        ImageBatch(
            class_index=c,
            crops=torch.rand(words.images, *size, generator=generator),
            sources=tuple(ImageSource(path=f"{c}/{n}", sha256="") for n in range(words.images)),
        )
        for c in range(words.classes)
    ]
    began = time.perf_counter()
    for batch in batches:
        backbone.read(batch.crops)
    reading = time.perf_counter() - began
    seconds: dict[str, float] = {}
    sources: dict[str, Found] = {}
    for name in ("push", "push, distinct patches", *LOOPS):
        began = time.perf_counter()
        if name in LOOPS:
            sources[name] = LOOPS[name](net, backbone, batches)
        else:
            found = project(net, backbone, batches, distinct="distinct" in name, per_image=2)
            sources[name] = [(s.image.path, s.row) for s in found.sources if s]
        seconds[name] = time.perf_counter() - began - reading
    print(f"{len(owner)} prototypes, {words.classes * words.images} images of {words.side} x {words.side} places")
    for name, value in seconds.items():
        ratios = ", ".join(f"{seconds[loop] / value:.1f} x the speed of the {loop}" for loop in LOOPS)
        print(f"{name:<24} {value:8.3f} s" + ("" if name in LOOPS else f"   {ratios}"))
    print(
        "same sources as both loops:", sources["push"] == sources["original's loop"] == sources["loop over prototypes"]
    )


if __name__ == "__main__":
    main()
