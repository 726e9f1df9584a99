"""One safetensors file per class in a folder: what finished classes and cached features have in common."""

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
from torch import Tensor

from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.leftovers import sweep

Item = TypeVar("Item")


class ClassFiles(MutableMapping[int, Item]):
    """class -> item; a file that was cut short counts as missing, so that it is made again."""

    folder: Path
    key: str
    """Of the metadata; a file without it is not ours."""

    @abstractmethod
    def pack(self, item: Item) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON-able facts of an item."""

    @abstractmethod
    def unpack(self, class_index: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Item:
        """The inverse of `pack`."""

    def __contains__(self, class_index: object) -> bool:
        path = self._path(class_index)
        if not path.is_file():
            return False
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return self.key in (file.metadata() or {})
        except (safetensors.SafetensorError, OSError):
            return False  # cut short by a full disk or a crash

    def __getitem__(self, class_index: int) -> Item:
        try:
            with safetensors.safe_open(self._path(class_index), framework="pt") as file:
                facts = json.loads(file.metadata()[self.key])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise KeyError(class_index) from None
        return self.unpack(class_index, tensors, facts)

    def facts(self, class_index: int) -> dict[str, Any]:
        """What `pack` noted of an item beside its tensors."""
        with safetensors.safe_open(self._path(class_index), framework="pt") as file:
            found: dict[str, Any] = json.loads(file.metadata()[self.key])
        return found

    def __setitem__(self, class_index: int, item: Item) -> None:
        self.put(class_index, self.content(item))

    def content(self, item: Item) -> bytes:
        """The file of an item."""
        tensors, facts = self.pack(item)
        whole = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        content: bytes = safetensors.torch.save(whole, metadata={self.key: json.dumps(facts, sort_keys=True)})
        return content

    def put(self, class_index: int, content: bytes) -> None:
        """Store what `content` made, here or in another process."""
        write_atomically(self._path(class_index), content)

    def sweep(self, class_index: int, age: float = 0.0) -> None:
        """Remove what processes left that were killed while they wrote a class, untouched for so many seconds."""
        sweep(self.folder, self._path(class_index).stem, age, any_suffix=True)

    def __delitem__(self, class_index: int) -> None:
        self._path(class_index).unlink()

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(int(path.stem.partition("-")[2]) for path in self.folder.glob("class-*.safetensors")))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _path(self, class_index: object) -> Path:
        return self.folder / f"class-{class_index:06d}.safetensors"
