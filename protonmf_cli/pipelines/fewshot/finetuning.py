"""Readjusting the network of a few-shot model, on batches with the model's own loss or in episodes.

Batches: cross-entropy and the penalty of the class weights as in `maths.soft_prototypes`, prototypes and weights
trained along; instead of the anchors, which stay behind when the features move, a term that draws prototypes of one
class together and pushes those of different classes apart (the perspective of "Using prototypes to improve
convolutional networks interpretability", 2017). Episodes: a few images of a few classes give
one prototype per class, their mean, and others are told apart by the soft match with them (Snell et al. 2017), with the
same term.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.maths.losses import label_attraction
from protonmf_cli.maths.soft_prototypes import Penalty, matches
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import TrainingBatch
from protonmf_cli.models.protopnet.training_state import TrainingState, restore_tensors, tensors_of
from protonmf_cli.models.readouts.readout import Network
from protonmf_cli.options import FewShotOptions, FineTuned, FineTuneOptions
from protonmf_cli.pipelines.fewshot.fitting import PrototypeFit
from protonmf_cli.pipelines.progress import SILENT, Progress

FAR = math.sqrt(2)
"""Distance beyond which prototypes of different classes are far enough: that of unlike directions of length one."""


class TuningSource(Protocol):
    """Where the images come from."""

    @property
    def labels(self) -> list[int]:
        """Class of every image."""

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """All images, shuffled and augmented."""

    def of_steps(self, epoch: int, steps: Sequence[Sequence[int]]) -> Iterator[TrainingBatch]:
        """Batches of the given images, augmented."""


class FineTuner:
    """One run; `run` goes on from wherever the state is."""

    def __init__(
        self,
        backbone: Backbone,
        fit: PrototypeFit,
        source: TuningSource,
        options: FewShotOptions,
        tuning: FineTuneOptions,
        *,
        progress: Progress = SILENT,
    ) -> None:
        """Prepare a run.

        Args:
            backbone: its network is trained in place.
            fit: where prototypes and class weights start.
            source: training images.
            options: of the fit.
            tuning: what is trained and how.

        Raises:
            InputError: the last stage of this network is not known, or episodes have too few images.
        """
        self.backbone, self.fit, self.source, self.progress = backbone, fit, source, progress
        self.penalty, self.tuning = Penalty(norm=options.norm, alpha=fit.choice.alpha), tuning
        self.owner = fit.owner.to(backbone.device)
        self.prototypes = nn.Parameter(fit.model.prototypes.to(backbone.device, torch.float32))
        self.weights = nn.Parameter(fit.model.weights.to(backbone.device, torch.float32))
        if tuning.mode == "episodes":
            _episodes(source.labels, tuning, 0)
        trained = set(trained_parameters(backbone.network, tuning.stages))
        for name, parameter in backbone.network.named_parameters():
            parameter.requires_grad_(name in trained)
        network = [p for p in backbone.network.parameters() if p.requires_grad]
        groups = [{"params": network, "start_rate": tuning.rate}]
        groups.append({"params": [self.prototypes, self.weights], "start_rate": tuning.prototype_rate})
        self.optimiser = torch.optim.Adam(groups, lr=tuning.rate)
        self.net = nn.ModuleDict({"network": backbone.network})
        self.net.register_parameter("prototypes", self.prototypes)
        self.net.register_parameter("weights", self.weights)

    def run(self, state: TrainingState, keep: Callable[[TrainingState], None]) -> TrainingState:
        """Go on from a state to the end, handing the state to `keep` after every epoch.

        Raises:
            InputError: the loss is not finite; the state kept last is good.
        """
        if state.done:
            restore_tensors(state.tensors, self.net, {"adam": self.optimiser})
        for epoch in range(state.done, self.tuning.epochs):
            began = time.monotonic()
            row = self._epoch(epoch) | {"seconds": time.monotonic() - began}
            state.log.append(row)
            state.done = epoch + 1
            state.tensors = tensors_of(self.net, {"adam": self.optimiser})
            keep(state)
        self.backbone.network.requires_grad_(False)
        return state

    def _epoch(self, epoch: int) -> dict[str, Any]:
        tuning = self.tuning
        self.progress.stage(f"fine-tuning, epoch {epoch + 1} of {tuning.epochs}", len(self.source.labels))
        factor = 0.5 * (1 + math.cos(math.pi * epoch / tuning.epochs))
        for group in self.optimiser.param_groups:
            group["lr"] = group["start_rate"] * factor
        sums, images = torch.zeros(3, dtype=torch.float64), 0
        in_episodes = tuning.mode == "episodes"
        if in_episodes:
            batches = self.source.of_steps(epoch, _episodes(self.source.labels, tuning, epoch))
        else:
            batches = self.source.batches(epoch)
        for batch in batches:
            features = self._features(batch)
            labels = batch.labels.to(features.device)
            found = self._episode(features, labels) if in_episodes else self._batch(features, labels)
            entropy, pull, right, count = found
            loss = entropy + tuning.pull * pull
            if not in_episodes:
                loss = loss + self.penalty.of_weights(self.weights)
            if not bool(loss.isfinite()):
                raise InputError(
                    f"the loss became NaN or infinite in epoch {epoch + 1} of the fine-tuning. The state before it is "
                    "kept: give the same command with a smaller --rate in another output."
                )
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            sums += count * torch.tensor([float(entropy.detach()), float(pull.detach()), right / count])
            images += count
            self.progress.advance(len(labels))
        means = (sums / images).tolist()
        return dict(zip(("cross_entropy", "pull", "accuracy"), means, strict=True)) | {"epoch": epoch + 1}

    def _features(self, batch: TrainingBatch) -> Tensor:
        """(B, D) normalised features, with a gradient; batch norms keep their statistics."""
        reading = self.backbone.readout.read(self.backbone.network, self.backbone.normalise(batch.crops))
        return self.fit.normaliser(reading.rows.mean(dim=1))

    def _batch(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """Cross-entropy, the term of the prototypes, right answers, answers."""
        logits = matches(features, self.prototypes, self.fit.model.scale) @ self.weights.mT
        pull = label_attraction(self.prototypes, self.owner, FAR)
        return functional.cross_entropy(logits, labels), pull, int((logits.argmax(dim=1) == labels).sum()), len(labels)

    def _episode(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, int, int]:
        """The same, for an episode: the first half of each class's images gives its prototype."""
        chosen = labels.unique()
        given = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        for c in chosen:
            own = (labels == c).nonzero()[:, 0]
            given[own[: len(own) // 2]] = True
        means = torch.stack([features[given & (labels == c)].mean(dim=0) for c in chosen])
        truth = torch.searchsorted(chosen, labels[~given])
        matched = matches(features[~given], means, self.fit.model.scale)
        entropy = functional.nll_loss(matched.clamp_min(1e-12).log(), truth)
        pull = label_attraction(means, chosen, FAR)
        return entropy, pull, int((matched.argmax(dim=1) == truth).sum()), len(truth)


def _episodes(labels: Sequence[int], tuning: FineTuneOptions, epoch: int) -> list[list[int]]:
    """Numbers of the images of each episode of one epoch; about as many images as there are.

    Raises:
        InputError: fewer than two classes have two images.
    """
    of_class: dict[int, list[int]] = {}
    for number, label in enumerate(labels):
        of_class.setdefault(label, []).append(number)
    enough = sorted(c for c, own in of_class.items() if len(own) > 1)
    if len(enough) < 2:
        raise InputError("episodes need at least two classes of two images. Give --mode batches.")
    generator = random.Random(f"{tuning.seed} {epoch}")
    ways = min(tuning.ways, len(enough))
    size = sum(min(tuning.per_class, len(of_class[c])) for c in enough) * ways / len(enough)
    found = []
    for _ in range(max(1, round(len(labels) / size))):
        chosen = sorted(generator.sample(enough, ways))
        counts = {c: min(tuning.per_class, len(of_class[c])) for c in chosen}
        found.append([n for c in chosen for n in generator.sample(of_class[c], counts[c])])
    return found


def trained_parameters(network: Network, stages: FineTuned) -> list[str]:
    """Names of the parameters that are trained: all, or those behind the last but one stage that timm names.

    Raises:
        InputError: timm names no stages of this network.
    """
    names = [name for name, _ in network.named_parameters()]
    if stages == "all":
        return names
    known = [info["module"] for info in getattr(network, "feature_info", [])]
    before = known[-2] if len(known) > 1 else ""
    inside = [number for number, name in enumerate(names) if name.startswith(f"{before}.")]
    if not before or not inside or inside[-1] + 1 == len(names):
        raise InputError("the last stage of this network is not known. Give --finetune all.")
    return names[inside[-1] + 1 :]
