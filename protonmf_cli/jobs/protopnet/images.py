"""The images of a ProtoPNet's training: classes, what is held out, what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Self

from protonmf_cli.errors import InputError, is_whole
from protonmf_cli.files.images.datasets import LabelledImages, class_folders, read_pairs
from protonmf_cli.files.images.reader import ImageFile, ImageReader
from protonmf_cli.files.images.sources.opening import splits_of
from protonmf_cli.files.images.training_images import read_all, split_held_out
from protonmf_cli.jobs.images import SkipWatch, check_overlap, labelled_images
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.models.backbone import ClassName, Preprocessing
from protonmf_cli.models.class_names import find_class
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.options import ImageWords, ProtoPNetOptions, without_secrets
from protonmf_cli.pipelines.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TrainingWords:
    """Which images to train on, and which to test on."""

    train: ImageWords
    val: ImageWords | None
    """None: the split val of the training data, where it has one."""
    on_test: bool
    """Choose the best cycle on the test images, as the original code does."""

    @classmethod
    def of(cls, train: ImageWords, val: str | PathLike[str] | ImageWords | None, *, on_test: bool) -> Self:
        """The same with a test that may be a folder alone, which is read as the training images are."""
        if isinstance(val, str | PathLike):
            val = replace(train, data=val if isinstance(val, str) else Path(val), split=None)
        return cls(train=train, val=None if val is None else ImageWords.of(val, split="val"), on_test=on_test)


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Readable images of all classes, and how the network wants them."""

    classes: tuple[ClassName, ...]
    fit: Sequence[ImageFile]
    """To train on, class after class."""
    apart: Sequence[ImageFile]
    """To choose the best cycle."""
    val: LabelledImages | None
    """The test, read once."""
    digests: Mapping[ImageFile, str]
    """sha256 of every training image."""
    skipped: Sequence[Skipped]
    reader: ImageReader
    preprocessing: Preprocessing
    selected_on: str
    """What chooses the best cycle, in words."""

    @property
    def counts(self) -> list[int]:
        """Training images of each class."""
        found = [0] * len(self.classes)
        for file in self.fit:
            found[file.class_index] += 1
        return found

    @property
    def tested(self) -> int:
        """Images of the test."""
        return 0 if self.val is None else sum(self.val.counts.values())


def read_training_set(
    words: TrainingWords, preprocessing: Preprocessing, options: ProtoPNetOptions, workers: int, progress: Progress
) -> TrainingSet:
    """Find, check and split the images.

    Args:
        words: which images.
        preprocessing: what the network sees of a picture.
        options: batch size, share held out and seed.
        workers: decoding threads.
        progress: is told what was skipped and what chooses the best cycle.

    Raises:
        InputError: fewer than two classes, a class without images, or images that are in train and in val.
        GateError: too many unreadable images.
    """
    classes = _classes_of(words.train)
    images = labelled_images(words.train, classes)
    val_words = words.val or _own_val(words.train)
    val = None if val_words is None else labelled_images(val_words, classes)
    for note in images.notes:
        progress.note(note)
    reader = image_reader(preprocessing, batch_size=options.batch_size, workers=workers)
    progress.stage("checking the images", sum(images.counts.values()))
    digests, skipped = _read(reader, images, words.train, progress)
    if val is not None and val_words is not None:
        readable, _ = _read(reader, val, val_words, progress)
        check_overlap(_paths(digests), _paths(readable))
        val = _only(val, readable)
    fit, apart = split_held_out(_only(images, digests), options.validation, options.seed)
    selected_on = "held-out training images" if apart else "nothing (last cycle)"
    if options.validation and not apart:
        progress.note(
            f"no class has enough images to hold out {options.validation:.0%} of them: the last cycle is kept"
        )
    if words.on_test and val is not None:
        apart, selected_on = val.of(val.files), "test"
        progress.warn(
            "the best cycle is selected on the test images, as in the original code (--validation 0.1 does not)"
        )
    return TrainingSet(
        classes=classes, fit=fit, apart=apart, val=val, digests=digests, skipped=skipped, reader=reader,
        preprocessing=preprocessing, selected_on=selected_on,
    )  # fmt: skip


def _classes_of(train: ImageWords) -> tuple[ClassName, ...]:
    """The classes that the training images bring along."""
    classes = class_folders(train.data, train.split or "")
    if len(classes) < 2:
        raise InputError(
            f"{without_secrets(str(train.data))} has {'one class folder' if classes else 'no class folders'} with images to "
            "train on; a classifier needs at least two. Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg."
        )
    return classes


def _own_val(train: ImageWords) -> ImageWords | None:
    """The split val beside the training images, where there is one."""
    return replace(train, split="val") if "val" in splits_of(train.data) else None


def _read(
    reader: ImageReader, images: LabelledImages, words: ImageWords, progress: Progress
) -> tuple[dict[ImageFile, str], list[Skipped]]:
    """sha256 of every image that can be read, and those that cannot; gives up when they are too many."""
    digests, skipped = read_all(reader, images.of(images.files))
    SkipWatch(skipped).check(words.max_skipped, len(digests), progress)
    return digests, skipped


def _paths(digests: Mapping[ImageFile, str]) -> dict[str, str]:
    """sha256 -> path."""
    return {digest: str(file.path) for file, digest in digests.items()}


def _only(images: LabelledImages, readable: Mapping[ImageFile, str]) -> LabelledImages:
    """The same classes with their readable files."""
    return replace(
        images, files={c: tuple(file for file in files if file in readable) for c, files in images.files.items()}
    )


def per_class_counts(source: Path | None, classes: tuple[ClassName, ...], default: int) -> tuple[int, ...]:
    """Prototypes of each class: a default, and lines `class,number` for others.

    Raises:
        InputError: a class is unknown or a number is none.
    """
    counts = [default] * len(classes)
    for name, number in [] if source is None else read_pairs(source):
        if not is_whole(number) or int(number) < 1:
            raise InputError(f"{source}: {number!r} of {name!r} is not a number of prototypes from 1.")
        try:
            counts[find_class(classes, name)] = int(number)
        except InputError as failure:
            raise InputError(f"--per-class {source}: {failure}") from failure
    return tuple(counts)


def squashed(preprocessing: Preprocessing, *, bilinear: bool = False) -> Preprocessing:
    """The whole picture pressed into the input, as ProtoPNet does with images cut to boxes.

    Args:
        preprocessing: the network's own.
        bilinear: resize as the original code does, whatever the network was trained with.
    """
    resized = replace(preprocessing, interpolation="bilinear") if bilinear else preprocessing
    return replace(resized, crop_pct=1.0, crop_mode="squash")
