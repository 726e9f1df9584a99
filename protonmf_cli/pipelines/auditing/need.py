"""What a classifier loses on labelled images when a prototype is taken out: all prototypes in one pass."""

from collections.abc import Sequence

import torch
from torch import Tensor

from protonmf_cli.models.audit import Need
from protonmf_cli.models.response import parts_of_read
from protonmf_cli.pipelines.auditing.removal import Removal

AT_ONCE = 2**24
"""Logits held at a time."""


class Needs:
    """Counts, batch by batch, who is right with and without each prototype."""

    def __init__(self, removal: Removal, groups: Sequence[str] = ()) -> None:
        self._removal, self._model = removal, removal.model
        self.owner: list[int] = removal.model.owner.tolist()
        self.groups = list(groups)
        """Names; an image is of one of them, or of none."""
        count = len(self.owner)
        self._images: dict[int, int] = {}
        self._right: dict[int, int] = {}
        self._left = torch.zeros(count, dtype=torch.int64)
        self._probability = torch.zeros(count, 2, dtype=torch.float64)
        self._all = torch.zeros(count, dtype=torch.int64)
        self._sizes = torch.zeros(len(self.groups), dtype=torch.int64)
        self._grouped = torch.zeros(len(self.groups), dtype=torch.int64)
        self._left_grouped = torch.zeros(count, len(self.groups), dtype=torch.int64)

    @property
    def images(self) -> int:
        """That were counted."""
        return sum(self._images.values())

    @property
    def accuracy(self) -> float:
        """Of the model as it is."""
        return sum(self._right.values()) / max(1, self.images)

    def add(self, read: Tensor, target: int, group: Tensor | None = None) -> Tensor:
        """Count images of one class, and return their predicted classes (B,).

        Args:
            read: what the decision reads of them.
            target: their class.
            group: (B,) number of each image's group, -1 for none.
        """
        logits, scores = parts_of_read(self._model, read).logits, self._removal.scores(read)
        top = logits.argmax(dim=1)
        self._images[target] = self._images.get(target, 0) + len(read)
        self._right[target] = self._right.get(target, 0) + int((top == target).sum())
        member = self._membership(group, len(read))
        self._sizes += member.sum(dim=0)
        self._grouped += (member & (top == target).cpu()[:, None]).sum(dim=0)
        step = max(1, AT_ONCE // (logits.numel() or 1))
        for start in range(0, len(self.owner), step):
            part = slice(start, min(start + step, len(self.owner)))
            without = self._removal.without(logits, scores, part)
            right = (without.argmax(dim=2) == target).cpu()
            self._all[part] += right.sum(dim=0)
            self._left_grouped[part] += (right.mT.long() @ member.long()) if self.groups else 0
            self._add_own(part, target, right, logits, without)
        return top.cpu()

    def _membership(self, group: Tensor | None, count: int) -> Tensor:
        """(B, G) whether each image is of each group."""
        numbers = torch.full((count,), -1) if group is None else group
        return numbers[:, None] == torch.arange(len(self.groups))

    def _add_own(self, part: slice, target: int, right: Tensor, logits: Tensor, without: Tensor) -> None:
        """What only the prototypes of the images' own class need."""
        own = [k - part.start for k in range(part.start, part.stop) if self.owner[k] == target]
        if not own:
            return
        numbers = torch.tensor(own) + part.start
        self._left[numbers] += right[:, own].sum(dim=0)
        before = logits.cpu().double().softmax(dim=1)[:, target].sum()
        after = without[:, own].cpu().double().softmax(dim=2)[:, :, target].sum(dim=0)
        self._probability[numbers] += torch.stack([before.expand(len(own)), after], dim=1)

    def of(self, prototype: int) -> Need | None:
        """Of one prototype; None where there are no images of its class."""
        owner = self.owner[prototype]
        images = self._images.get(owner, 0)
        if not images:
            return None
        before, after = (self._probability[prototype] / images).tolist()
        return Need(
            own=(self._right[owner] / images, int(self._left[prototype]) / images),
            probability=(before, after),
            everything=(self.accuracy, int(self._all[prototype]) / self.images),
            images=images,
            worst_group=self._worst(prototype),
        )

    def by_group(self) -> dict[str, tuple[int, float]]:
        """Images and accuracy of each group that has images."""
        rows = zip(self.groups, self._sizes.tolist(), self._grouped.tolist(), strict=True)
        return {name: (size, right / size) for name, size, right in rows if size}

    def _worst(self, prototype: int) -> tuple[float, float] | None:
        known = self._sizes > 0
        if not known.any():
            return None
        shares = (counts[known] / self._sizes[known] for counts in (self._grouped, self._left_grouped[prototype]))
        before, after = (float(share.min()) for share in shares)
        return before, after
