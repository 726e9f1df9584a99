"""What the network gave for each class, on disk: fitting something else to it needs no second pass over the images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.checks import check_name
from protonmf_cli.files.work.per_class import ClassFiles
from protonmf_cli.files.work.spool import Spool, keep
from protonmf_cli.models.class_part import ClassReading
from protonmf_cli.models.image_batches import ImageSource, Skipped
from protonmf_cli.models.soft_matching import Samples

LARGE = ("rows", "crops")
"""Each in a file of its own, which is read range by range."""
DAY = 86400.0
"""Seconds after which nobody is writing a file any more that did not change."""


def _folder(folder: Path, name: str) -> Path:
    check_name(folder)
    try:
        (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        raise InputError(f"the folder {folder} of --cache-features cannot be made: {failure.strerror}.") from failure
    return folder / name


class CachedFeatures(ClassFiles[ClassReading]):
    """class -> reading, one file each, in a folder named by a digest of weights, images and how they are read."""

    key = "features"

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = _folder(folder, f"rows-{digest[:16]}")

    def __contains__(self, class_index: object) -> bool:
        return super().__contains__(class_index) and all(self._beside(class_index, name).is_file() for name in LARGE)

    def __setitem__(self, class_index: int, item: ClassReading) -> None:
        if class_index in self:  # another conversion of the same images was quicker
            return
        self.sweep(class_index, DAY)
        for name in LARGE:  # a class is there once its last file is
            keep(getattr(item, name), self._beside(class_index, name))
        super().__setitem__(class_index, item)

    def pack(self, item: ClassReading) -> tuple[dict[str, Tensor], dict[str, Any]]:
        facts = {
            "images": [asdict(source) for source in item.images],
            "skipped": [asdict(skip) for skip in item.skipped],
            "figures": item.figures,
            "shapes": {name: list(getattr(item, name).shape) for name in LARGE},
        }
        return {"pooled": item.pooled, "predicted": item.predicted}, facts

    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassReading:
        rows, crops = (
            Spool.opened(self._beside(class_index, name), facts["shapes"][name], dtype, torch.device("cpu"))
            for name, dtype in zip(LARGE, (torch.float32, torch.uint8), strict=True)
        )
        return ClassReading(
            class_index=class_index,
            rows=rows,
            crops=crops,
            **tensors,
            images=tuple(ImageSource(**source) for source in facts["images"]),
            skipped=tuple(Skipped(**skip) for skip in facts["skipped"]),
            figures=facts["figures"],
        )

    def _beside(self, class_index: object, name: str) -> Path:
        return self._path(class_index).with_suffix(f".{name}")


class CachedSamples(ClassFiles[tuple[Samples, tuple[Skipped, ...]]]):
    """class -> pooled features of its images and what could not be read, in a folder named like `CachedFeatures`'."""

    key = "samples"

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = _folder(folder, f"samples-{digest[:16]}")

    def pack(self, item: tuple[Samples, tuple[Skipped, ...]]) -> tuple[dict[str, Tensor], dict[str, Any]]:
        samples, skipped = item
        facts = {"images": [asdict(s) for s in samples.sources], "skipped": [asdict(s) for s in skipped]}
        return {"features": samples.features, "labels": samples.labels}, facts

    def unpack(
        self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> tuple[Samples, tuple[Skipped, ...]]:
        sources = tuple(ImageSource(**source) for source in facts["images"])
        return Samples(**tensors, sources=sources), tuple(Skipped(**skip) for skip in facts["skipped"])


def default_folder() -> Path:
    """Where features are kept unless the user names a folder."""
    return platformdirs.user_cache_path("protonmf", appauthor=False)
