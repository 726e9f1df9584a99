"""Finished classes of a conversion on disk: what makes it resumable."""

import json
import shutil
from collections.abc import Iterator, MutableMapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock
import safetensors
import safetensors.torch
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.models.images import ImageSource, Skipped
from protonmf_cli.models.part import ClassPart, PartExamples

KEY = "part"


class Shards(MutableMapping[int, ClassPart]):
    """class -> finished part, one file each, in a work folder beside the output.

    The work folder has one sub-folder per conversion, named by a digest of everything that decides its
    result; another conversion to the same output never touches it. Use as a context: it holds a lock.
    """

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

    def __contains__(self, class_index: object) -> bool:
        path = self._path(class_index)
        if not path.is_file():
            return False
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return KEY in (file.metadata() or {})
        except (safetensors.SafetensorError, OSError):
            return False  # cut short by a full disk or a crash: computed again

    def __getitem__(self, class_index: int) -> ClassPart:
        path = self._path(class_index)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                meta = json.loads(file.metadata()[KEY])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise KeyError(class_index) from None
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
                sources=tuple(ImageSource(**source) for source in meta["sources"]),
            ),
            images=tuple(ImageSource(**source) for source in meta["images"]),
            skipped=tuple(Skipped(**skip) for skip in meta["skipped"]),
            figures=meta["figures"],
        )

    def __setitem__(self, class_index: int, part: ClassPart) -> None:
        examples = part.examples
        tensors = {
            "prototypes": part.prototypes,
            "pooled": part.pooled,
            "predicted": part.predicted,
            "sample": part.sample,
            "stability": part.stability,
            "score": examples.score,
            "box": examples.box,
            "map": examples.map,
            "image": examples.image,
            "jpeg": torch.frombuffer(bytearray(b"".join(examples.crops) or b"\0"), dtype=torch.uint8),
            "ends": torch.tensor([len(jpeg) for jpeg in examples.crops], dtype=torch.int64).cumsum(0),
        }
        meta = {
            "images": [asdict(source) for source in part.images],
            "sources": [asdict(source) for source in examples.sources],
            "skipped": [asdict(skip) for skip in part.skipped],
            "figures": part.figures,
        }
        whole = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
        content = safetensors.torch.save(whole, metadata={KEY: json.dumps(meta, sort_keys=True)})
        write_atomically(self._path(class_index), content)

    def __delitem__(self, class_index: int) -> None:
        self._path(class_index).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("class-*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, class_index: object) -> Path:
        return self.folder / f"class-{class_index:06d}.safetensors"
