"""Finished classes of a conversion on disk: what makes it resumable."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import torch
from torch import Tensor

from protonmf_cli.errors import InputError
from protonmf_cli.files.work.folder import FACTS, WorkFolder
from protonmf_cli.files.work.locks import acquired, lock_at
from protonmf_cli.files.work.per_class import ClassFiles
from protonmf_cli.models.class_part import ClassPart, PartExamples
from protonmf_cli.models.image_batches import ImageSource, Skipped


class FinishedElsewhere(Exception):  # noqa: N818
    """Another process finished the conversion, wrote the output and removed the work folder."""


LOOK_EVERY = 0.5
"""Seconds between looks at what other processes are at."""


class PartFiles(ClassFiles[ClassPart]):
    """class -> finished part, one file each."""

    key = "part"

    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> ClassPart:
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
                crops=tuple(jpeg[start:end] for start, end in pairwise([0, *tensors["ends"].tolist()])),
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
        return tensors, facts


class Shards(WorkFolder, PartFiles):
    """Finished parts in the conversion's work folder.

    Several processes fill it, on one machine or on many that share the folder: each group of classes is locked by the
    one that is at it, and a lock goes with its process. One process leads: it alone writes the output.
    """

    job = "conversion"

    def __init__(self, output: Path, digest: str, *, leads: bool = True, stays: bool = True) -> None:
        """
        Args:
            output: of the conversion.
            digest: of everything that decides the result.
            leads: whether this process is to write the output.
            stays: whether it waits for what others are at, to do it if they do not.
        """
        super().__init__(output, digest)
        self.leads, self.stays = leads, stays
        self._held: dict[int, filelock.FileLock] = {}

    def __enter__(self) -> Self:
        if not self.leads:
            self.make()
        elif not self.take():
            raise InputError(
                f"another {self.job} into {self._output} is running. Wait for it, or give another -o; several "
                "that work together are started with --processes or --share."
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for lock in self._held.values():
            lock.release()
        super().__exit__(kind, error, trace)

    def free(self, groups: Sequence[Sequence[int]]) -> Iterator[Sequence[int]]:
        """Those of the groups that are unfinished and with no other process; each is locked until `done`.

        Raises:
            FinishedElsewhere: another process wrote the output and cleared up.
        """
        for group in groups:
            if not self.folder.is_dir():
                raise FinishedElsewhere(self._output)
            if self._lacks(group) and self._lock_group(group):
                if self._lacks(group):  # nobody finished it in between
                    yield group
                else:
                    self.done(group)

    def done(self, group: Sequence[int]) -> None:
        """A group is finished."""
        self._held.pop(group[0]).release()

    def leave(self) -> None:
        """Remove the folder where nobody began with a class."""
        if {path.name for path in self.folder.glob("*")} <= {FACTS}:
            self.discard()

    def wait(self) -> bool:
        """Look again a little later, unless those that are at the rest can be left alone with it."""
        if self.stays:
            time.sleep(LOOK_EVERY)
        return self.stays

    def _lock_group(self, group: Sequence[int]) -> bool:
        lock = lock_at(self._path(group[0]).with_suffix(".lock"))
        try:
            if not acquired(lock):
                return False
        except FileNotFoundError as failure:
            raise FinishedElsewhere(self._output) from failure
        self._held[group[0]] = lock
        for c in group:
            self.sweep(c)
        return True

    def _lacks(self, group: Sequence[int]) -> bool:
        return any(c not in self for c in group)
