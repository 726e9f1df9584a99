"""Training a ProtoPNet: warm epochs, joint epochs, push and last layer, from a plan that the options decide.

Reference: Chen et al. 2019, section 2.2.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from protonmf_cli.errors import InputError
from protonmf_cli.maths.losses import cluster_cost, other_class_mask, separation_cost
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.image_batches import ImageBatch, TrainingBatch
from protonmf_cli.models.protopnet.latent_patches import Answer, ProtoPNet, start_of_head
from protonmf_cli.models.protopnet.training_state import TrainingState, restore_tensors, tensors_of
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.progress import SILENT, Progress
from protonmf_cli.pipelines.protopnet.activations import accuracy, read_activations
from protonmf_cli.pipelines.protopnet.processes import ALONE, Processes
from protonmf_cli.pipelines.protopnet.push import push

Stage = Literal["warm", "joint", "head", "push"]


class TrainingSource(Protocol):
    """Where a training run's images come from."""

    def __len__(self) -> int:
        """Images of one epoch."""

    def epoch(self, number: int, rank: int, world: int) -> Iterator[TrainingBatch]:
        """Shuffled and augmented."""

    def push(self) -> Iterator[ImageBatch]:
        """The training images as they are, class after class."""

    def held_out(self) -> Iterator[ImageBatch] | None:
        """Images that choose the best cycle; None where there are none."""

    def counts(self) -> tuple[int, int]:
        """Images of `push` and of `held_out`."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One epoch, or one push with its last layer."""

    stage: Stage
    epoch: int
    """From 1; of a push the epoch before it."""
    cycle: int
    """Pushes before this step."""
    factor: float = 1.0
    """Of the learning rates."""


def plan(options: ProtoPNetOptions) -> list[Step]:
    """Every step of a run, in order.

    >>> [s.stage for s in plan(ProtoPNetOptions(epochs=3, warm_epochs=1, cycles=2))]
    ['warm', 'joint', 'push', 'joint', 'push']
    """
    joint = max(0, options.epochs - options.warm_epochs)
    pushes = _push_epochs(options, joint)
    steps: list[Step] = []
    cycle = 0
    for epoch in range(1, options.epochs + 1):
        number = epoch - options.warm_epochs - 1
        if number < 0:
            steps.append(Step(stage="warm", epoch=epoch, cycle=cycle))
        else:
            steps.append(Step(stage="joint", epoch=epoch, cycle=cycle, factor=_factor(options, number, joint)))
        if epoch in pushes:
            steps.append(Step(stage="push", epoch=epoch, cycle=cycle))
            cycle += 1
            if options.last_layer == "passes" and options.similarity != "linear":
                steps += [Step(stage="head", epoch=epoch, cycle=cycle)] * options.head_epochs
    return steps


def ends_cycle(steps: Sequence[Step], number: int) -> bool:
    """Whether a step is the last one of its cycle: a push, or the last pass over the head after it."""
    following = steps[number + 1].stage if number + 1 < len(steps) else "warm"
    return steps[number].stage in {"push", "head"} and following != "head"


def _push_epochs(options: ProtoPNetOptions, joint: int) -> set[int]:
    """Epochs (from 1) that end with a push; the last one always does."""
    if options.push_every is not None:
        # the original counts epochs from 0 and pushes after epoch 10, 20, ...
        found = {number + 1 for number in range(options.push_every, options.epochs, options.push_every)}
    else:
        cycles = max(1, min(options.cycles, joint))
        found = {options.warm_epochs + round(n * joint / cycles) for n in range(1, cycles + 1)}
    return found | {options.epochs}


def _factor(options: ProtoPNetOptions, number: int, joint: int) -> float:
    """Factor of the joint rates in joint epoch `number` (from 0) of `joint`."""
    if options.schedule == "steps":
        return 0.1 ** ((number + 1) // options.rate_step)
    return 0.5 * (1 + math.cos(math.pi * number / joint))


Keep = Callable[[TrainingState], None]


class Trainer:
    """One run; `run` goes through the plan from wherever the state is."""

    def __init__(
        self,
        net: ProtoPNet,
        backbone: Backbone,
        source: TrainingSource,
        options: ProtoPNetOptions,
        *,
        progress: Progress = SILENT,
        processes: Processes = ALONE,
        told: Callable[[dict[str, Any]], None] = lambda row: None,
    ) -> None:
        """Prepare a run.

        Args:
            net: as it starts; trained in place.
            backbone: the same network, to read images.
            source: images.
            options: losses and schedule.
            progress: is told epochs and pushes.
            processes: that train together.
            told: gets every row of the log.
        """
        self.net, self.backbone, self.source, self.options = net, backbone, source, options
        self.progress, self.processes, self.told = progress, processes, told
        self.steps = plan(options)
        self.optimisers = _optimisers(net, options)
        self.other = other_class_mask(net.owner, len(net.head))
        self.most = float(net.prototypes.shape[1]) if options.cap_costs else None

    def run(self, state: TrainingState, keep: Keep) -> TrainingState:
        """Go on from a state to the end, handing the state to `keep` after every step.

        Raises:
            InputError: a term of the loss is not finite; the state kept last is good.
            NotExactError: a last layer could not be solved to the tolerance.
        """
        if state.done:
            self._restore(state)
        else:
            self.processes.share([*self.net.state_dict().values()])
        for number in range(state.done, len(self.steps)):
            step = self.steps[number]
            began = time.monotonic()
            row = self._push(step, state) if step.stage == "push" else self.epoch(step, number)
            row |= {"seconds": time.monotonic() - began}
            state.log.append(row)
            self._choose_best(step, state, number, row)
            state.done = number + 1
            state.tensors = self._tensors() | {k: v for k, v in state.tensors.items() if k.startswith("best.")}
            keep(state)
            self.told(row)
        self._take_best(state)
        return state

    # -- epochs ------------------------------------------------------------------------------------------------

    def epoch(self, step: Step, number: int) -> dict[str, Any]:
        """One pass over the training images; returns its row of the log.

        Args:
            step: what is trained.
            number: seeds the order of the images, and dropout layers.
        """
        self.progress.stage(f"epoch {step.epoch} of {self.options.epochs} ({step.stage})", len(self.source))
        self._set_mode(step)
        if self.options.reset_head and step.stage != "head":
            self.net.head.data = start_of_head(self.net.owner, len(self.net.head))
        optimiser = self.optimisers[step.stage]
        for group in optimiser.param_groups:
            group["lr"] = group["start_rate"] * step.factor
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        sums = torch.zeros(len(TERMS) + 2, dtype=torch.float64)
        devices = [self.backbone.device] if self.backbone.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            # of dropout layers; whole numbers hash alike in every process
            torch.manual_seed(hash((self.options.seed, number, self.processes.rank)) % 2**31)
            for count, batch in enumerate(self.source.epoch(number, self.processes.rank, self.processes.world)):
                terms, right = self._costs(batch)
                self._check_finite(terms, step, count)
                loss = self._loss(terms, step) / batch.total
                optimiser.zero_grad()
                loss.backward()
                self.processes.add_gradients(parameters)
                optimiser.step()
                found = [*(float(terms[name].sum().detach()) for name in TERMS), right, len(batch.labels)]
                sums += torch.tensor(found, dtype=torch.float64)
                self.progress.advance(batch.total)
        self._set_mode(None)
        self._check_network(step, batch)
        return self._row(step, self.processes.add(sums))

    def _costs(self, batch: TrainingBatch) -> tuple[dict[str, Tensor], int]:
        """Terms image by image, and how many images are right."""
        if not len(batch.labels):
            zero = self.net.prototypes.sum()[None] * 0
            return dict.fromkeys(TERMS, zero), 0
        labels = batch.labels.to(self.backbone.device)
        half = self.options.precision == "bfloat16"
        with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=half):
            answer: Answer = self.net(self.backbone.normalise(batch.crops))
        terms = {
            "cross_entropy": functional.cross_entropy(answer.logits, labels, reduction="none"),
            "cluster": cluster_cost(answer.distances, labels, self.net.owner, self.most),
            "separation": separation_cost(answer.distances, labels, self.net.owner, self.most),
        }
        return terms, int((answer.logits.argmax(dim=1) == labels).sum())

    def _loss(self, terms: dict[str, Tensor], step: Step) -> Tensor:
        """The sum over this process's images."""
        loss = (
            terms["cross_entropy"].sum()
            + self.options.cluster * terms["cluster"].sum()
            + self.options.separation * terms["separation"].sum()
        )
        if step.stage == "head":
            loss = loss + len(terms["cluster"]) * self.options.l1 * (self.net.head * self.other).abs().sum()
        return loss

    def _check_network(self, step: Step, batch: TrainingBatch) -> None:
        """Refuse a network that the last step of an epoch broke: no later loss would tell."""
        finite = all(bool(p.isfinite().all()) for p in self.net.parameters())
        if finite and len(batch.labels):
            with torch.inference_mode():
                finite = bool(self.net(self.backbone.normalise(batch.crops)).distances.isfinite().all())
        if not finite:
            raise InputError(
                f"the network's features became NaN or infinite in epoch {step.epoch} ({step.stage}). {self._remedy()}"
            )

    def _remedy(self) -> str:
        other = "" if self.options.precision == "float32" else ", or --precision float32"
        return (
            "The state after the step before it is kept: give the same command with smaller rates (--backbone-rate, "
            f"--rate) in another output{other}."
        )

    def _check_finite(self, terms: dict[str, Tensor], step: Step, count: int) -> None:
        for name, values in terms.items():
            if not bool(values.isfinite().all()):
                raise InputError(
                    f"the {name.replace('_', ' ')} became NaN or infinite in batch {count + 1} of epoch {step.epoch} "
                    f"({step.stage}). {self._remedy()}"
                )

    def _set_mode(self, step: Step | None) -> None:
        """Evaluation mode between epochs; in an epoch train mode, batch norms only if they are not frozen."""
        self.net.train(step is not None)
        if step is None:
            return
        for name, parameter in self.net.named_parameters():
            trained = {"warm": not name.startswith("network."), "joint": True, "head": False}[step.stage]
            parameter.requires_grad_(step.stage == "head" if name == "head" else trained)
        if self.options.frozen_norms:
            if step.stage != "joint":
                self.net.network.eval()
            for module in self.net.network.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _row(self, step: Step, sums: Tensor) -> dict[str, Any]:
        means = (sums / sums[-1]).tolist()
        row: dict[str, Any] = {"stage": step.stage, "epoch": step.epoch, "cycle": step.cycle}
        row |= dict(zip((*TERMS, "accuracy"), means, strict=False))
        row["l1"] = float((self.net.head * self.other).abs().sum())
        rates = {g["name"]: g["lr"] for g in self.optimisers[step.stage].param_groups}
        return row | {"rates": rates, "held_out": self._held_out_accuracy()}

    def _held_out_accuracy(self) -> float | None:
        batches = self.source.held_out()
        if batches is None:
            return None
        return accuracy(self.net, read_activations(self.net, self.backbone, batches))

    # -- push and last layer -----------------------------------------------------------------------------------

    def _push(self, step: Step, state: TrainingState) -> dict[str, Any]:
        row: dict[str, Any] = {"stage": "push", "epoch": step.epoch, "cycle": step.cycle}
        if self.processes.leads:
            facts, state.sources = push(
                self.net, self.backbone, self.source.push, self.source.counts()[0], self.options, self.progress
            )
            state.pushes.append(facts)
            row |= facts
        self.processes.share([self.net.prototypes.data, self.net.head.data])
        row["held_out"] = self._held_out_accuracy()
        return row

    def _choose_best(self, step: Step, state: TrainingState, number: int, row: dict[str, Any]) -> None:
        """Remember the best finished cycle: by held-out accuracy, the later one when equal; else the last."""
        if not ends_cycle(self.steps, number):
            return
        found = row["held_out"]
        if state.best is None or found is None or found >= state.best["accuracy"]:
            cycle = step.cycle + (step.stage == "push")
            state.best = {"cycle": cycle, "accuracy": found, "sources": state.sources}
            state.tensors |= {f"best.{name}": t.detach().cpu().clone() for name, t in self.net.state_dict().items()}

    # -- state -------------------------------------------------------------------------------------------------

    def _tensors(self) -> dict[str, Tensor]:
        return tensors_of(self.net, self.optimisers)

    def _restore(self, state: TrainingState) -> None:
        restore_tensors(state.tensors, self.net, self.optimisers)

    def _take_best(self, state: TrainingState) -> None:
        found = {k.removeprefix("best."): v for k, v in state.tensors.items() if k.startswith("best.")}
        self.net.load_state_dict(found)
        self.net.requires_grad_(False).eval()


TERMS = ("cross_entropy", "cluster", "separation")


def train_last_layer(
    net: ProtoPNet,
    backbone: Backbone,
    source: TrainingSource,
    options: ProtoPNetOptions,
    passes: int,
    *,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Train the head alone, with a new optimiser, as the original code does after a push and after pruning.

    Args:
        net, backbone: the network; its batch statistics move too, unless they are frozen.
        source: images.
        options: loss, rate and batch norms.
        passes: over the images.
        progress: is told every pass.

    Returns:
        passes, and of the last one the mean cross entropy and the share of right images; l1; other_class_weights.

    Raises:
        InputError: a term of the loss is not finite.
    """
    trainer = Trainer(net, backbone, source, replace(options, epochs=max(1, passes)), progress=progress)
    row: dict[str, Any] = {}
    for number in range(passes):
        row = trainer.epoch(Step(stage="head", epoch=number + 1, cycle=0), number)
    net.requires_grad_(False).eval()
    return {
        "passes": passes,
        "cross_entropy": row.get("cross_entropy"),
        "accuracy_in_training": row.get("accuracy"),
        "l1": options.l1,
        "other_class_weights": int((net.head.detach()[trainer.other] != 0).sum()),
    }


def _optimisers(net: ProtoPNet, options: ProtoPNetOptions) -> dict[str, torch.optim.Adam]:
    """One per stage; all live for the whole run."""
    addon = {"name": "addon", "params": list(net.addon.parameters()), "lr": options.addon_rate}
    addon |= {"weight_decay": options.addon_decay}
    prototypes = {"name": "prototypes", "params": [net.prototypes], "lr": options.prototype_rate}
    network = {"name": "backbone", "params": list(net.network.parameters()), "lr": options.backbone_rate}
    network |= {"weight_decay": options.backbone_decay}
    head = {"name": "head", "params": [net.head], "lr": options.head_rate}
    stages: dict[str, Sequence[dict[str, Any]]] = {
        "warm": (addon, prototypes),
        "joint": (network, addon, prototypes),
        "head": (head,),
    }
    found = {}
    for stage, groups in stages.items():
        present = [dict(group) for group in groups if group["params"]]
        found[stage] = torch.optim.Adam(present)
        for group in found[stage].param_groups:
            group["start_rate"] = group["lr"]
    return found
