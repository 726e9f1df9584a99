"""The images of a ProtoPNet's training: classes, what is held out, what is refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from protonmf_cli.cli.console import Bars, Shown
from protonmf_cli.errors import InputError
from protonmf_cli.options import ProtoPNetOptions

if TYPE_CHECKING:
    from protonmf_cli.files.images.datasets import LabelledImages
    from protonmf_cli.files.images.reader import ImageFile, ImageReader
    from protonmf_cli.models.backbone import ClassName, Preprocessing
    from protonmf_cli.models.image_batches import Skipped


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Readable images of all classes, and how the network wants them."""

    classes: "tuple[ClassName, ...]"
    fit: "Sequence[ImageFile]"
    """To train on, class after class."""
    apart: "Sequence[ImageFile]"
    """To choose the best cycle."""
    val: "LabelledImages | None"
    """The test, read once."""
    digests: "Mapping[ImageFile, str]"
    """sha256 of every training image."""
    skipped: "Sequence[Skipped]"
    reader: "ImageReader"
    preprocessing: "Preprocessing"
    selected_on: str
    """What chooses the best cycle, in words."""

    @property
    def counts(self) -> list[int]:
        """Training images of each class."""
        found = [0] * len(self.classes)
        for file in self.fit:
            found[file.class_index] += 1
        return found


def read_training_set(
    data: Path,
    preprocessing: "Preprocessing",
    options: ProtoPNetOptions,
    *,
    boxes: Path | None,
    on_test: bool,
    workers: int,
    max_skipped: float,
    shown: Shown,
    bars: Bars,
) -> TrainingSet:
    """Find, check and split the images.

    Args:
        data: class folders, or train/ and val/ above them.
        preprocessing: what the network sees of a picture.
        options: batch size, share held out and seed.
        boxes: bounding boxes that pictures are cut to.
        on_test: choose the best cycle on val, as the original code does.

    Raises:
        InputError: fewer than two classes, a class without images, or images that are in train and in val.
        GateError: too many unreadable images.
    """
    from protonmf_cli.files.images.bounding_boxes import find_boxed_images
    from protonmf_cli.files.images.datasets import ClassMapping, class_folders
    from protonmf_cli.files.images.training_images import read_all, split_held_out
    from protonmf_cli.jobs.images import SkipWatch, check_overlap
    from protonmf_cli.jobs.loaded import image_reader

    classes = class_folders(data, "train")
    if len(classes) < 2:
        raise InputError(
            f"{data} has {'one class folder' if classes else 'no class folders'} with images to train on; a classifier "
            "needs at least two. Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg."
        )
    images = find_boxed_images(data, "train", classes, ClassMapping(), boxes)
    val = None
    if data.is_dir() and (data / "val").is_dir():
        val = find_boxed_images(data, "val", classes, ClassMapping(), boxes)
    for note in images.notes:
        shown.note(note)
    reader = image_reader(preprocessing, batch_size=options.batch_size, workers=workers)
    bars.stage("checking the images", sum(images.counts.values()))
    digests, skipped = read_all(reader, images.of(images.files))
    SkipWatch(skipped).check(max_skipped, len(digests), shown)
    kept = {c: tuple(file for file in files if file in digests) for c, files in images.files.items()}
    if val is not None:
        readable, broken = read_all(reader, val.of(val.files))
        SkipWatch(broken).check(max_skipped, len(readable), shown)
        check_overlap(
            {digest: str(file.path) for file, digest in digests.items()},
            {digest: str(file.path) for file, digest in readable.items()},
        )
        val = replace(val, files={c: tuple(f for f in files if f in readable) for c, files in val.files.items()})
    fit, apart = split_held_out(replace(images, files=kept), options.validation, options.seed)
    selected_on = "held-out training images" if apart else "nothing (last cycle)"
    if options.validation and not apart:
        shown.note(f"no class has enough images to hold out {options.validation:.0%} of them: the last cycle is kept")
    if on_test and val is not None:
        apart, selected_on = val.of(val.files), "test"
        shown.warn("the best cycle is selected on the test images, as in the original code (--validation 0.1 does not)")
    return TrainingSet(
        classes=classes,
        fit=fit,
        apart=apart,
        val=val,
        digests=digests,
        skipped=skipped,
        reader=reader,
        preprocessing=preprocessing,
        selected_on=selected_on,
    )


def per_class_counts(source: Path | None, classes: "tuple[ClassName, ...]", default: int) -> tuple[int, ...]:
    """Prototypes of each class: a default, and lines `class,number` for others.

    Raises:
        InputError: a class is unknown or a number is none.
    """
    counts = [default] * len(classes)
    if source is None:
        return tuple(counts)
    from protonmf_cli.files.images.datasets import read_pairs
    from protonmf_cli.models.prototype import find_class

    for name, number in read_pairs(source):
        if not number.isdecimal() or int(number) < 1:
            raise InputError(f"{source}: {number!r} of {name!r} is not a number of prototypes from 1.")
        try:
            counts[find_class(classes, name)] = int(number)
        except InputError as failure:
            raise InputError(f"--per-class {source}: {failure}") from failure
    return tuple(counts)


def squashed(preprocessing: "Preprocessing") -> "Preprocessing":
    """The whole picture pressed into the input, as ProtoPNet does with images cut to boxes."""
    return replace(preprocessing, crop_pct=1.0, crop_mode="squash")
