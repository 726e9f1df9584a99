"""Finished classes of a conversion on disk: what makes it resumable."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.class_files import ClassFiles
from protonmf_cli.models.images import ImageSource, Skipped
from protonmf_cli.models.part import ClassPart, PartExamples


class Shards(ClassFiles[ClassPart]):
    """class -> finished part, one file each, in a work folder beside the output.

    The work folder has one sub-folder per conversion, named by a digest of everything that decides its
    result; another conversion to the same output never touches it. Use as a context: it holds a lock.
    """

    key = "part"

    def __init__(self, output: Path, digest: str) -> None:
        self.work = output.parent / f".{output.name}.work"
        self.folder = self.work / digest[:16]
        self._lock = filelock.FileLock(output.parent / f".{output.name}.lock")
        self._output = output

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
            self.folder.mkdir(parents=True, exist_ok=True)
        except filelock.Timeout as failure:
            raise InputError(
                f"another conversion into {self._output} is running. Wait for it, or give another -o."
            ) from failure
        except OSError as failure:
            self._lock.release()
            raise InputError(f"{self.work} cannot be made: {failure.strerror or failure}.") from failure
        for path in self.folder.glob("*.part"):  # left by a process that was killed while writing
            path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def discard(self) -> None:
        """Remove this conversion's shards, once its result is safe."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.work.is_dir() and not any(self.work.iterdir()):
            self.work.rmdir()

    def others(self) -> int:
        """Unfinished conversions to the same output with other options, data or weights."""
        return sum(path != self.folder for path in self.work.iterdir())

    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassPart:
        ends = tensors["ends"].tolist()
        jpeg = bytes(tensors["jpeg"].numpy())
        return ClassPart(
            class_index=class_index,
            prototypes=tensors["prototypes"],
            pooled=tensors["pooled"],
            predicted=tensors["predicted"],
            sample=tensors["sample"],
            stability=tensors["stability"],
            examples=PartExamples(
                score=tensors["score"],
                box=tensors["box"],
                map=tensors["map"],
                image=tensors["image"],
                crops=tuple(jpeg[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True) if ends),
                sources=tuple(ImageSource(**source) for source in facts["sources"]),
            ),
            images=tuple(ImageSource(**source) for source in facts["images"]),
            skipped=tuple(Skipped(**skip) for skip in facts["skipped"]),
            figures=facts["figures"],
        )

    def pack(self, item: ClassPart) -> tuple[dict[str, Tensor], dict[str, Any]]:
        examples = item.examples
        tensors = {
            "prototypes": item.prototypes,
            "pooled": item.pooled,
            "predicted": item.predicted,
            "sample": item.sample,
            "stability": item.stability,
            "score": examples.score,
            "box": examples.box,
            "map": examples.map,
            "image": examples.image,
            "jpeg": torch.frombuffer(bytearray(b"".join(examples.crops) or b"\0"), dtype=torch.uint8),
            "ends": torch.tensor([len(jpeg) for jpeg in examples.crops], dtype=torch.int64).cumsum(0),
        }
        facts = {
            "images": [asdict(source) for source in item.images],
            "sources": [asdict(source) for source in examples.sources],
            "skipped": [asdict(skip) for skip in item.skipped],
            "figures": item.figures,
        }
        return {name: tensor.clone() for name, tensor in tensors.items()}, facts
