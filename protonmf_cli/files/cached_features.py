"""What the network gave for each class, on disk: another number of prototypes needs no second pass over the images."""

import json
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path

import safetensors
import safetensors.torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.models.images import ImageSource, Skipped
from protonmf_cli.models.part import ClassReading

KEY = "features"
TENSORS = ("rows", "pooled", "predicted", "crops")


class CachedFeatures(MutableMapping[int, ClassReading]):
    """class -> reading, one file each, in a folder named by a digest of weights, images and how they are read."""

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder = folder / f"features-{digest[:16]}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            raise InputError(
                f"the folder {folder} of --cache-features cannot be made: {failure.strerror}."
            ) from failure

    def __contains__(self, class_index: object) -> bool:
        try:
            with safetensors.safe_open(self._path(class_index), framework="pt") as file:
                return KEY in (file.metadata() or {})
        except (safetensors.SafetensorError, OSError):
            return False  # not there, or cut short: read again

    def __getitem__(self, class_index: int) -> ClassReading:
        try:
            with safetensors.safe_open(self._path(class_index), framework="pt") as file:
                meta = json.loads(file.metadata()[KEY])
                tensors = {name: file.get_tensor(name) for name in TENSORS}
        except FileNotFoundError:
            raise KeyError(class_index) from None
        return ClassReading(
            class_index=class_index,
            **tensors,
            images=tuple(ImageSource(**source) for source in meta["images"]),
            skipped=tuple(Skipped(**skip) for skip in meta["skipped"]),
            figures=meta["figures"],
        )

    def __setitem__(self, class_index: int, reading: ClassReading) -> None:
        meta = {
            "images": [asdict(source) for source in reading.images],
            "skipped": [asdict(skip) for skip in reading.skipped],
            "figures": reading.figures,
        }
        tensors = {name: getattr(reading, name).cpu().contiguous() for name in TENSORS}
        content = safetensors.torch.save(tensors, metadata={KEY: json.dumps(meta, sort_keys=True)})
        write_atomically(self._path(class_index), content)

    def __delitem__(self, class_index: int) -> None:
        self._path(class_index).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("class-*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, class_index: object) -> Path:
        return self.folder / f"class-{class_index:06d}.safetensors"
