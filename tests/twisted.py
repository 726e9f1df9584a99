"""Made features whose classes no single prototype describes, and a few-shot model fitted to them."""

from types import SimpleNamespace

import torch

from protonmf_cli.models.backbone import Backbone, ClassName, Preprocessing, Source
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.readouts.pooled_features import POOLED_FEATURES, PooledFeatures
from protonmf_cli.models.soft_matching import Samples
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot.fitting import fit_prototypes
from protonmf_cli.pipelines.fewshot.model import fewshot_model

CENTRES = ((-3, -3), (3, 3), (-3, 3), (3, -3), (0, 8))
"""Two clusters of class 0, two of class 1 crosswise, and one that both share."""
PLAIN = FewShotOptions(normalisation="none")


def twisted(seed, count=8):
    """(N, 2) features and labels: `count` samples of each class in each of its clusters."""
    generator = torch.Generator().manual_seed(seed)
    parts = [(0, 0), (0, 1), (1, 2), (1, 3), (0, 4), (1, 4)]
    rows = [
        torch.tensor(CENTRES[place]).double() + 0.4 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        for _, place in parts
    ]
    return torch.cat(rows), torch.tensor([c for c, _ in parts]).repeat_interleave(count)


def model_of(rows, labels, options=PLAIN, names=("left", "right")):
    """A few-shot model of features, without a network or pictures."""
    classes = len(names)
    fit = fit_prototypes(rows, labels, classes, options)
    sources = tuple(ImageSource(path=f"{names[c]}/{n:03d}.png", sha256="0" * 64) for n, c in enumerate(labels.tolist()))
    width = rows.shape[1]
    readout = PooledFeatures(
        kind=POOLED_FEATURES, vectors=torch.empty(0, width), bias=torch.empty(0), grid=(1, 1), unplaced=(),
        joined=(-1,), blocks=(width,),
    )  # fmt: skip
    backbone = Backbone(
        network=SimpleNamespace(parameters=lambda: iter([torch.zeros(1)])), readout=readout, rows_option="auto",
        preprocessing=Preprocessing(
            input_size=(3, 8, 8), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.5,) * 3, std=(0.5,) * 3
        ),
        classes=tuple(ClassName(label=name) for name in names), source=Source(name="made", architecture="made"),
    )  # fmt: skip
    samples = Samples(features=rows.float(), labels=labels, sources=sources)
    return fewshot_model(fit, backbone, samples, options, DataFacts(skipped=()))
