"""Which trials an audit makes: a few for every prototype, more for those that flip most."""

from collections.abc import Sequence

import torch

from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.options import AuditOptions
from protonmf_cli.pipelines.auditing.transplant import Kind, Trial, Tries, shift_elsewhere
from protonmf_cli.pipelines.explaining.pasting import TrainingPatches
from protonmf_cli.pipelines.progress import Progress

FIRST_PATCHES, FIRST_HOSTS, RECOLOURED = 2, 3, 1
"""Of every prototype: patches, images that each is pasted into, and images that take over each picture's colours."""
CLOSER, FEWEST_CLOSER = 1 / 6, 12
"""Share of the prototypes that are looked at closer, those that flip most, and how many at least."""


class Plan:
    """Makes the trials."""

    def __init__(self, model: PrototypeModel, tries: Tries, patches: TrainingPatches, options: AuditOptions) -> None:
        self._tries, self._patches, self._options = tries, patches, options
        self._owner: list[int] = model.owner.tolist()
        self._parts = model.parts
        self._generator = torch.Generator().manual_seed(options.seed)

    def first(self, progress: Progress) -> None:
        """Every prototype on a few images."""
        trials: list[Trial] = []
        for k in self._parts:
            for example in self._patches.numbers(k)[:FIRST_PATCHES]:
                trials += self._trials(k, "pasted", example, FIRST_HOSTS)
                trials += self._trials(k, "recoloured", example, RECOLOURED)
        self._run("pasting patches", trials, progress)

    def closer(self, progress: Progress) -> None:
        """The telling ones on more images, beside other pieces of the same pictures."""
        flips = {k: max(self._flips(k, "pasted"), self._flips(k, "recoloured")) for k in range(len(self._owner))}
        telling = sorted((k for k, share in flips.items() if share), key=lambda k: (-flips[k], k))
        trials: list[Trial] = []
        for k in telling[: max(FEWEST_CLOSER, round(CLOSER * len(self._owner)))]:
            for example in self._patches.numbers(k):
                trials += self._trials(k, "pasted", example, self._options.hosts)
                trials += self._trials(k, "elsewhere", example, self._options.hosts)
                if self._flips(k, "recoloured"):
                    trials += self._trials(k, "recoloured", example, self._options.hosts)
        self._run("looking closer", trials, progress)

    def _flips(self, prototype: int, kind: Kind) -> float:
        found = self._tries.of(prototype, kind)
        return sum(each.flipped for each in found) / max(1, len(found))

    def _run(self, stage: str, trials: Sequence[Trial], progress: Progress) -> None:
        progress.stage(stage, len(trials))
        for done in self._tries.run(trials):
            progress.advance(done)

    def _trials(self, prototype: int, kind: Kind, example: int, count: int) -> list[Trial]:
        hosts = self._tries.hosts
        chosen, size = hosts.for_class(self._owner[prototype], count, self._generator), hosts.crops.shape[2:]
        shifts = [shift_elsewhere(size, self._generator) if kind == "elsewhere" else (0, 0) for _ in chosen]
        return [
            Trial(prototype=prototype, kind=kind, host=n, example=example, shift=shift)
            for n, shift in zip(chosen, shifts, strict=True)
        ]
