"""What the network gave for each class, on disk: another number of prototypes needs no second pass over the images."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.class_files import ClassFiles
from protonmf_cli.models.images import ImageSource, Skipped
from protonmf_cli.models.part import ClassReading

TENSORS = ("rows", "pooled", "predicted", "crops")


class CachedFeatures(ClassFiles[ClassReading]):
    """class -> reading, one file each, in a folder named by a digest of weights, images and how they are read."""

    key = "features"

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder / f"features-{digest[:16]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise InputError(
                f"the folder {folder} of --cache-features cannot be made: {failure.strerror}."
            ) from failure

    def pack(self, item: ClassReading) -> tuple[dict[str, Tensor], dict[str, Any]]:
        facts = {
            "images": [asdict(source) for source in item.images],
            "skipped": [asdict(skip) for skip in item.skipped],
            "figures": item.figures,
        }
        return {name: getattr(item, name) for name in TENSORS}, facts

    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassReading:
        return ClassReading(
            class_index=class_index,
            **tensors,
            images=tuple(ImageSource(**source) for source in facts["images"]),
            skipped=tuple(Skipped(**skip) for skip in facts["skipped"]),
            figures=facts["figures"],
        )
