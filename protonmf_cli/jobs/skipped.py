"""Counting images that could not be read while a command runs over a data set."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError

if TYPE_CHECKING:
    from protonmf_cli.models.image_batches import ImageBatch, Skipped


@dataclass
class SkipWatch:
    """Remembers what the batches that pass by had to leave out."""

    skipped: list["Skipped"] = field(default_factory=list)

    def over(self, batches: Iterable["ImageBatch"]) -> Iterator["ImageBatch"]:
        """The same batches."""
        for batch in batches:
            self.skipped += batch.skipped
            yield batch

    def check(self, most: float, read: int, shown: Shown) -> None:
        """Name what was skipped; give up when it is too much.

        Raises:
            GateError: more than the share `most` of all images.
        """
        from protonmf_cli.cli.convert import check_skipped

        for skip in self.skipped[:5]:
            shown.note(f"skipped {skip.path}: {skip.reason}")
        check_skipped([asdict(skip) for skip in self.skipped], read, most)


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
