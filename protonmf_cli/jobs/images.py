"""Labelled images of a job: which, which of them could not be read, and whether two splits share some."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from protonmf_cli.errors import GateError, InputError
from protonmf_cli.files.images.bounding_boxes import find_boxed_images, images_for
from protonmf_cli.files.images.datasets import ClassMapping, LabelledImages
from protonmf_cli.files.images.sources.opening import check_there
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.card import Card
from protonmf_cli.models.image_batches import ImageBatch, Skipped
from protonmf_cli.options import ImageWords
from protonmf_cli.pipelines.progress import Progress


def labelled_images(words: ImageWords, classes: tuple[ClassName, ...], *, multi_label: bool = False) -> LabelledImages:
    """The images that words name, by class.

    Args:
        words: with a split, see `ImageWords.of`.
        classes: of the model.
        multi_label: whether an image may be of several of them.

    Raises:
        InputError: nothing is there, a folder matches no class, or an image has no box.
    """
    mapping = replace(mapping_of(words), multi_label=multi_label)
    return find_boxed_images(words.data, words.split or "", classes, mapping, words.boxes)


def images_of_model(words: ImageWords, card: Card) -> LabelledImages:
    """As `labelled_images`, with a note where the model was trained on cut images and these are not."""
    return images_for(card, words.data, words.split or "", mapping_of(words), words.boxes)


def mapping_of(words: ImageWords) -> ClassMapping:
    """How folders become classes."""
    return ClassMapping(file=words.class_map, by_order=words.class_order)


@dataclass
class SkipWatch:
    """Remembers what the batches that pass by had to leave out."""

    skipped: list[Skipped] = field(default_factory=list)

    def over(self, batches: Iterable[ImageBatch]) -> Iterator[ImageBatch]:
        """The same batches.

        Raises:
            InputError: after the last one, none of them had an image that could be read.
        """
        read = 0
        for batch in batches:
            self.skipped += batch.skipped
            read += len(batch.sources)
            yield batch
        if self.skipped and not read:
            raise nothing_read(self.skipped)

    def check(self, most: float, read: int, progress: Progress) -> None:
        """Name what was skipped; give up when it is too much.

        Raises:
            GateError: more than the share `most` of all images.
        """
        note_skipped(self.skipped, progress)
        check_skipped(self.skipped, read, most)


NAMED = 5
"""Skipped images that are named one by one."""


def note_skipped(skipped: Sequence[Skipped], progress: Progress) -> None:
    """Name some of the images that could not be read."""
    for skip in skipped[:NAMED]:
        progress.note(f"skipped {skip.path}: {skip.reason}")
    if len(skipped) > NAMED:
        progress.note(f"skipped {len(skipped) - NAMED} more images, which could not be read either")


def nothing_read(skipped: Sequence[Skipped]) -> InputError:
    """What to say where no image could be read."""
    first = skipped[0]
    return InputError(
        f"none of the {len(skipped)} images could be read, e.g. {first.path} {first.reason}. Repair them, or give others."
    )


def check_skipped(skipped: Sequence[Skipped], read: int, most: float) -> None:
    """Give up when too many images could not be read.

    Raises:
        GateError: with the files and what to do.
    """
    share = len(skipped) / max(1, read + len(skipped))
    if share > most:
        names = "; ".join(f"{skip.path} {skip.reason}" for skip in skipped[:3])
        raise GateError(
            f"{len(skipped)} of {read + len(skipped)} images could not be read ({share:.1%}, at most {most:.1%} is allowed): "
            f"{names}. Repair or remove them, or give --max-skipped {min(1.0, share + 0.01):.2f}."
        )


def check_overlap(train: Mapping[str, str], val: Mapping[str, str]) -> None:
    """Refuse test images that are also training images.

    Args:
        train, val: sha256 -> path of every image.

    Raises:
        InputError: naming some of them.
    """
    both = [f"{train[digest]} = {path}" for digest, path in val.items() if digest in train]
    if both:
        raise InputError(
            f"{len(both)} images of val are also in train ({'; '.join(both[:3])}): accuracy on val would mean nothing. "
            "Remove them from one of the two."
        )


def check_data(data: Path | str) -> None:
    """Refuse data that does not exist or is of no kind that is read, before anything is loaded.

    Raises:
        InputError: naming it.
    """
    check_there(data)
