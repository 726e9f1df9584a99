"""Counting images that could not be read while a command runs over a data set."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from protonmf_cli.cli.console import Shown

if TYPE_CHECKING:
    from protonmf_cli.models.images import ImageBatch, Skipped


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
