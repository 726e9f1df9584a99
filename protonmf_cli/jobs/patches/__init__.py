"""Are the training patches in a model file what it says? Their images and the network are looked at again."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path

from protonmf_cli.errors import GateError, InputError, ModelFileError
from protonmf_cli.files.images.ahead import ahead
from protonmf_cli.files.images.datasets import LabelledImages
from protonmf_cli.files.images.reader import ImageFile, ImageReader, crop_of_jpeg, cropped, encode_jpeg, read
from protonmf_cli.files.images.sources.source import SourceError
from protonmf_cli.files.networks.preprocessing import crop_for
from protonmf_cli.files.store import load_model
from protonmf_cli.jobs.images import images_of_model
from protonmf_cli.jobs.loaded import Loaded, image_reader, load, local_file
from protonmf_cli.jobs.machine import threads_of, workers_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import ImageWords, Machine
from protonmf_cli.pipelines.progress import LOGGED, Progress
from protonmf_cli.pipelines.stored_patches import (
    WORDS,
    CheckedPrototype,
    Reread,
    Said,
    check_stored_patches,
    least_map,
    named_images,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PatchInspection:
    """What the stored training patches of a file are beside their images; `check_patches` stops at what is wrong."""

    path: Path
    model: PrototypeModel
    data: ImageWords
    prototypes: tuple[CheckedPrototype, ...]
    images: int
    """Named by patches, each counted once."""
    notes: tuple[str, ...]
    """What was not looked at, and why."""

    @property
    def failed(self) -> list[CheckedPrototype]:
        """Prototypes of which something is not as the file says."""
        return [each for each in self.prototypes if each.faults]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """What is as the file says, of how many: sources, classes and pictures of patches; maps and entries of
        prototypes; classes as wholes."""
        patches = [patch for each in self.prototypes for patch in each.patches]
        maps = [each for each in self.prototypes if each.map is not None and each.least_map is not None]
        signs = [each for each in self.prototypes if each.negative is not None]
        wholes = [each for each in self.prototypes if each.left is not None]
        return {
            "sources": (sum(p.image.said == "as said" for p in patches), len(patches)),
            "classes": _true([p.own_class for p in patches]),
            "pictures": _true([p.same_picture for p in patches]),
            "maps": (sum("map" not in each.faults for each in maps), len(maps)),
            "nonnegative": (sum(not each.negative for each in signs), len(signs)),
            "wholes": (sum("whole" not in each.faults for each in wholes), len(wholes)),
        }


def _true(found: Sequence[bool | None]) -> tuple[int, int]:
    known = [each for each in found if each is not None]
    return sum(known), len(known)


def inspect_patches(
    model: Loaded | str | PathLike[str],
    data: ImageWords | str | PathLike[str],
    *,
    machine: Machine | None = None,
    progress: Progress = LOGGED,
) -> PatchInspection:
    """Look at the training patches of a model file again: their images, their classes, and what the network gives.

    Args:
        model: a file, or a model that is loaded.
        data: the images that it was made from (the split train where there are two).
        machine: where and how the network computes.
        progress: is told each image, and notes.

    Raises:
        ModelFileError: the file is missing, damaged or foreign.
        InputError: it holds no patches, or the data hold none of their images.
    """
    machine, words = machine or Machine(), ImageWords.of(data, split="train")
    with threads_of(machine):
        opened = _opened(model, machine, progress)
        card, sources = opened.model.card, named_images(opened.model)
        if not sources:
            raise InputError(f"{opened.path} holds no training patches, so there is nothing to look at again.")
        if card.data.boxes and words.boxes is None:
            raise InputError("this model was made from images cut to bounding boxes: give --boxes too.")
        listed = images_of_model(words, card)
        for note in (*listed.notes, *opened.notes):
            progress.note(note)
        images = _Images.of(listed, opened.reader)
        if not images.any_named(sources):
            raise InputError(
                f"{listed.where} has none of the {len(sources)} images that {opened.path} names, e.g. "
                f"{sources[0].path}: give the data that the model was made from."
            )
        progress.stage("looking at the patches again", len(sources))
        found = check_stored_patches(
            opened.model,
            opened.backbone,
            ahead(images.reread, sources, workers=opened.reader.workers, window=3 * opened.reader.batch_size),
            crop_of_jpeg,
            encode_jpeg,
            batch_size=opened.reader.batch_size,
            progress=progress,
        )
    return PatchInspection(
        path=opened.path, model=opened.model, data=words, prototypes=found, images=len(sources), notes=opened.notes
    )  # fmt: skip


def check_patches(found: PatchInspection) -> None:
    """Pass, or stop where something is not as the file says.

    Raises:
        GateError: saying how many prototypes fail, and by what.
    """
    failed = found.failed
    if not failed:
        return
    kinds = {kind: sum(kind in each.faults for each in failed) for kind in WORDS}
    said = ", ".join(f"{count} by {WORDS[kind]}" for kind, count in kinds.items() if count)
    raise GateError(
        f"{len(failed)} of {len(found.prototypes)} prototypes are not as {found.path} says: {said}. Do not trust what "
        "it shows of them."
    )


@dataclass(frozen=True, kw_only=True)
class _Opened:
    path: Path
    model: PrototypeModel
    backbone: Backbone | None
    reader: ImageReader
    notes: tuple[str, ...]


def _opened(model: Loaded | str | PathLike[str], machine: Machine, progress: Progress) -> _Opened:
    """A model with its network, or without where that is not to be had."""
    if isinstance(model, Loaded):
        return _of_loaded(model)
    try:
        return _of_loaded(load(model, machine=machine, progress=progress))
    except ModelFileError:
        raise
    except InputError as failure:
        path = local_file(Path(model), offline=machine.offline)
        found, _ = load_model(path)
        reader = image_reader(found.card.preprocessing, batch_size=machine.batch_size, workers=workers_of(machine))
        channels = (found.card.members or (found.card,))[0].preprocessing.input_size[0]
        reader = replace(reader, crop=crop_for(found.card), channels=channels)
        note = f"maps are not compared, for there is no network: {failure.words}"
        return _Opened(path=path, model=found, backbone=None, reader=reader, notes=(note,))


def _of_loaded(loaded: Loaded) -> _Opened:
    spatial = any(space.grid is not None for space in loaded.model.spaces)
    notes: tuple[str, ...] = ()
    if not spatial:
        notes = ("maps are not compared: the rows of this network have no place.",)
    elif least_map(loaded.model) is None:
        notes = ("maps are not compared: the factorisation stopped before they were a solution.",)
    return _Opened(
        path=loaded.path, model=loaded.model, backbone=loaded.backbone, reader=loaded.reader, notes=notes
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class _Images:
    """The images of the data, by name and by file name."""

    reader: ImageReader
    by_name: dict[str, list[ImageFile]] = field(default_factory=dict)
    by_last: dict[str, list[ImageFile]] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    """Name -> sha256, of what was read."""

    @classmethod
    def of(cls, images: LabelledImages, reader: ImageReader) -> "_Images":
        found = cls(reader=reader)
        for file in images.of(images.files):
            found.by_name.setdefault(file.name, []).append(file)
            found.by_last.setdefault(_last(file.name), []).append(file)
        return found

    def any_named(self, sources: Sequence[ImageSource]) -> bool:
        """Whether any image is there under its name, or under its file name with its content."""
        return any(source.path in self.by_name for source in sources) or any(
            self._moved(source) is not None for source in sources
        )

    def reread(self, source: ImageSource) -> Reread:
        """An image as the data hold it now; one that lies under another class is known by file name and content."""
        named = self.by_name.get(source.path, [])
        if named and self._digest(named[0]) == source.sha256:
            return self._read(source, named, "as said")
        if (moved := self._moved(source)) is not None:
            return self._read(source, [moved], "as said")
        return self._read(source, named, "changed") if named else Reread(source=source, said="missing")

    def _moved(self, source: ImageSource) -> ImageFile | None:
        """The image with the same file name and content in another class."""
        close = self.by_last.get(_last(source.path), [])
        return next((file for file in close if self._digest(file) == source.sha256), None)

    def _digest(self, file: ImageFile) -> str:
        if file.name not in self.digests:
            try:
                self.digests[file.name] = hashlib.sha256(read(file.path)).hexdigest()
            except SourceError:
                raise
            except InputError as failure:
                file.check_source(failure.__cause__)
                self.digests[file.name] = ""
        return self.digests[file.name]

    def _read(self, source: ImageSource, files: Sequence[ImageFile], said: Said) -> Reread:
        classes = tuple(dict.fromkeys(c for file in files for c in (file.labels or (file.class_index,))))
        reader, crop, reason = self.reader, None, ""
        try:
            crop, _ = cropped(
                read(files[0].path), reader.crop, channels=reader.channels, exif_transpose=reader.exif_transpose,
                box=files[0].box,
            )  # fmt: skip
        except SourceError:
            raise
        except InputError as failure:
            reason = str(failure)
        return Reread(source=source, said=said, classes=classes, crop=crop, reason=reason)


def _last(name: str) -> str:
    return name.rpartition("/")[2]
