"""Which trials an audit makes: a few for every prototype, more for those that flip most."""

from collections.abc import Sequence

import torch

from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import ExampleView
from protonmf_cli.options import AuditOptions
from protonmf_cli.pipelines.auditing.signs import Decode
from protonmf_cli.pipelines.auditing.transplant import Kind, Trial, Tries, moved
from protonmf_cli.pipelines.explaining.explanation import example_views
from protonmf_cli.pipelines.explaining.pasting import PartPatch, strongest_region
from protonmf_cli.pipelines.progress import Progress

FIRST_PATCHES, FIRST_HOSTS, RECOLOURED = 2, 3, 1
"""Of every prototype: patches, images that each is pasted into, and images that take over each picture's colours."""
CLOSER, FEWEST_CLOSER = 1 / 6, 12
"""Share of the prototypes that are looked at closer, those that flip most, and how many at least."""


class Plan:
    """Makes the trials."""

    def __init__(self, model: PrototypeModel, tries: Tries, decode: Decode, options: AuditOptions) -> None:
        self.views = [example_views(model, k) for k in range(len(model.prototypes))]
        self._model, self._tries, self._decode, self._options = model, tries, decode, options
        self._owner: list[int] = model.owner.tolist()
        self._generator = torch.Generator().manual_seed(options.seed)

    def first(self, progress: Progress) -> None:
        """Every prototype on a few images."""
        trials: list[Trial] = []
        for k in range(len(self._owner)):
            for patch in self._patches(k, FIRST_PATCHES):
                trials += self._trials(k, "pasted", patch, FIRST_HOSTS)
                trials += self._trials(k, "recoloured", patch, RECOLOURED)
        self._run("pasting patches", trials, progress)

    def closer(self, progress: Progress) -> None:
        """The telling ones on more images, beside other pieces of the same pictures."""
        flips = {k: max(self._flips(k, "pasted"), self._flips(k, "recoloured")) for k in range(len(self._owner))}
        telling = sorted((k for k, share in flips.items() if share), key=lambda k: (-flips[k], k))
        trials: list[Trial] = []
        for k in telling[: max(FEWEST_CLOSER, round(CLOSER * len(self._owner)))]:
            for patch in self._patches(k, len(self.views[k])):
                trials += self._trials(k, "pasted", patch, self._options.hosts)
                trials += self._trials(k, "elsewhere", patch, self._options.hosts)
                if self._flips(k, "recoloured"):
                    trials += self._trials(k, "recoloured", patch, self._options.hosts)
        self._run("looking closer", trials, progress)

    def _flips(self, prototype: int, kind: Kind) -> float:
        found = self._tries.of(prototype, kind)
        return sum(each.flipped for each in found) / max(1, len(found))

    def _run(self, stage: str, trials: Sequence[Trial], progress: Progress) -> None:
        progress.stage(stage, len(trials))
        for done in self._tries.run(trials):
            progress.advance(done)

    def _patches(self, prototype: int, count: int) -> list[PartPatch]:
        found = (self._patch(view) for view in self.views[prototype][:count])
        return [patch for patch in found if patch is not None and patch.region.any()]

    def _patch(self, view: ExampleView) -> PartPatch | None:
        if view.map is None:
            return None
        pixels = self._decode(view.jpeg)
        grid = torch.from_numpy(self._model.evidence.kind.drawn(view.map))
        return PartPatch(pixels=pixels, region=strongest_region(grid, (pixels.shape[1], pixels.shape[2])))

    def _trials(self, prototype: int, kind: Kind, patch: PartPatch, count: int) -> list[Trial]:
        hosts = self._tries.hosts.for_class(self._owner[prototype], count, self._generator)
        patches = [moved(patch, self._generator) if kind == "elsewhere" else patch for _ in hosts]
        return [Trial(prototype=prototype, kind=kind, host=n, patch=p) for n, p in zip(hosts, patches, strict=True)]
