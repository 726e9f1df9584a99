"""A prototype's training patches pasted into images of other classes: does its class follow?"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from protonmf_cli.maths.metrics import wilson_interval
from protonmf_cli.models.audit import Share, Transplant
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.response import parts_of_read, read_of
from protonmf_cli.pipelines.auditing.removal import Removal
from protonmf_cli.pipelines.explaining.pasting import PartPatch

Kind = Literal["pasted", "elsewhere", "recoloured"]
"""A patch at its own place; as large a piece of its picture from another place; the picture's colours."""


def shift_elsewhere(size: Sequence[int], generator: torch.Generator) -> tuple[int, int]:
    """How far down and right a piece of a picture (height, width) is moved: a quarter of it at least either way."""
    down, right = (int(torch.randint(n // 4, n - n // 4, (), generator=generator)) for n in size)
    return down, right


def moved(patch: PartPatch, shift: tuple[int, int]) -> PartPatch:
    """The same shape at another place of the same picture; what leaves it on one side enters on the other."""
    return PartPatch(pixels=patch.pixels, region=patch.region.roll(shift, dims=(0, 1)))


def recoloured(host: Tensor, picture: Tensor) -> Tensor:
    """The host with mean and spread of every channel as in a picture (Reinhard et al. 2001, in RGB); both uint8."""
    own, wanted = host.double().flatten(1), picture.double().flatten(1)
    scale = wanted.std(dim=1) / own.std(dim=1).clamp_min(1.0)
    shifted = (own - own.mean(dim=1, keepdim=True)) * scale[:, None] + wanted.mean(dim=1, keepdim=True)
    return shifted.round().clamp(0, 255).to(torch.uint8).reshape(host.shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Hosts:
    """Images that patches are pasted into."""

    crops: Tensor
    """uint8 (N, channels, height, width)"""
    target: Tensor
    """(N,) int64 true classes."""
    top: Tensor
    """(N,) int64 predicted classes."""
    paths: tuple[str, ...]

    def for_class(self, class_index: int, count: int, generator: torch.Generator) -> list[int]:
        """Numbers of `count` images, or all there are, that neither are of a class nor are taken for it."""
        free = ((self.target != class_index) & (self.top != class_index)).nonzero()[:, 0]
        return free[torch.randperm(len(free), generator=generator)[:count]].tolist()


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One changed image: of which prototype, what was done, to which host with which of its patches.

    It holds no picture, as an audit makes tens of thousands of them.
    """

    prototype: int
    kind: Kind
    host: int
    example: int
    """Number of the training patch."""
    shift: tuple[int, int] = (0, 0)
    """How far down and right the piece is moved."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """What came of it."""

    trial: Trial
    after: int
    """Predicted class."""
    flipped: bool
    """To the prototype's class."""
    left: bool
    """Also when the prototype is taken out."""


class Tries:
    """Runs trials, and counts what came of them."""

    def __init__(
        self,
        backbone: Backbone,
        removal: Removal,
        hosts: Hosts,
        patch: Callable[[int], PartPatch],
        batch_size: int,
    ) -> None:
        """Prepare for a model.

        Args:
            backbone: the network.
            removal: of its prototypes, on its device.
            hosts: what patches are pasted into.
            patch: a training patch by its number.
            batch_size: changed images in one pass of the network.
        """
        self.hosts, self.owner, self.batch_size = hosts, removal.model.owner.tolist(), batch_size
        self._patch = patch
        self._backbone, self._removal = backbone, removal
        self.tried: dict[tuple[int, Kind], list[Tried]] = {}

    def picture(self, trial: Trial) -> Tensor:
        """The changed image."""
        host, patch = self.hosts.crops[trial.host], self._patch(trial.example)
        return recoloured(host, patch.pixels) if trial.kind == "recoloured" else moved(patch, trial.shift).on(host)

    def run(self, trials: Sequence[Trial]) -> Iterator[int]:
        """Read the changed images in batches, and remember what came of them; yields the size of each batch."""
        for start in range(0, len(trials), self.batch_size):
            batch = trials[start : start + self.batch_size]
            pictures = torch.stack([self.picture(trial) for trial in batch])
            read = read_of(self._removal.model, self._backbone.read(pictures).rows)
            logits, scores = parts_of_read(self._removal.model, read).logits, self._removal.scores(read)
            number = torch.tensor([trial.prototype for trial in batch], device=logits.device)
            without = self._removal.each_without(logits, scores, number)
            for trial, after, left in zip(batch, logits.argmax(1).tolist(), without.argmax(1).tolist(), strict=True):
                wanted = self.owner[trial.prototype]
                found = Tried(trial=trial, after=after, flipped=after == wanted, left=after == wanted == left)
                self.tried.setdefault((trial.prototype, trial.kind), []).append(found)
            yield len(batch)

    def of(self, prototype: int, kind: Kind) -> list[Tried]:
        """What came of the trials of one kind."""
        return self.tried.get((prototype, kind), [])

    def transplant(self, prototype: int, of_class: Sequence[int]) -> Transplant | None:
        """The shares of one prototype; None where none of its patches could be pasted.

        Args:
            prototype: which one.
            of_class: all prototypes of its class.
        """
        pasted, recoloured = self.of(prototype, "pasted"), self.of(prototype, "recoloured")
        if not pasted:
            return None
        return Transplant(
            flips=share_of([each.flipped for each in pasted]),
            elsewhere=share_of([each.flipped for each in self.of(prototype, "elsewhere")]),
            siblings=share_of([e.flipped for k in of_class if k != prototype for e in self.of(k, "pasted")]),
            left=share_of([each.left for each in pasted]),
            recoloured=share_of([each.flipped for each in recoloured]),
            recoloured_left=share_of([each.left for each in recoloured]),
            carries_colours=prototype == max(of_class, key=lambda k: (self._taken_by_colours(k), -k)),
        )

    def _taken_by_colours(self, prototype: int) -> float:
        found = self.of(prototype, "recoloured")
        return sum(each.flipped - each.left for each in found) / max(1, len(found))


def share_of(found: Sequence[bool]) -> Share:
    """How many of them are true.

    >>> share_of([True, False]).value
    0.5
    """
    low, high = wilson_interval(sum(found), len(found))
    return Share(hits=sum(found), trials=len(found), low=low, high=high)
