"""The plan of a ProtoPNet's training, and what an epoch does to the network."""

from dataclasses import replace

import pytest
import timm
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.models.backbone import ClassName, Preprocessing, Source
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, TrainingBatch
from protonmf_cli.models.protopnet.latent_patches import start_of_head
from protonmf_cli.models.protopnet.training_state import TrainingState
from protonmf_cli.options import PROTOPNET_RECIPES, ProtoPNetOptions
from protonmf_cli.pipelines.protopnet.setup import new_protopnet
from protonmf_cli.pipelines.protopnet.start import start_prototypes
from protonmf_cli.pipelines.protopnet.training import Trainer, plan

PREPROCESSING = Preprocessing(
    input_size=(3, 32, 32), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.5,) * 3, std=(0.25,) * 3
)
OPTIONS = ProtoPNetOptions(
    prototypes=2, width=8, epochs=3, warm_epochs=1, cycles=1, batch_size=4, validation=0.0, addon_rate=1e-2
)


class Images:
    """Two classes that differ in colour."""

    def __init__(self, apart: bool = False) -> None:
        generator = torch.Generator().manual_seed(0)
        self.crops = torch.randint(0, 120, (12, 3, 32, 32), generator=generator, dtype=torch.uint8)
        self.crops[:6, 0, 8:24, 8:24] += 130
        self.crops[6:, 2, 8:24, 8:24] += 130
        self.labels = torch.tensor([0] * 6 + [1] * 6)
        self.apart = apart

    def __len__(self) -> int:
        return 12

    def epoch(self, number, rank, world):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(number))
        for step in order.split(4):
            share = step[rank::world]
            yield TrainingBatch(crops=self.crops[share], labels=self.labels[share], total=len(step))

    def push(self):
        for c in (0, 1):
            sources = tuple(ImageSource(path=f"{c}/{n}", sha256=str(n)) for n in range(6))
            yield ImageBatch(class_index=c, crops=self.crops[self.labels == c], sources=sources)

    def held_out(self):
        return self.push() if self.apart else None

    def counts(self):
        return 12, 0


def new(options=OPTIONS):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("test_resnet", num_classes=2).eval()
    classes = (ClassName(label="red"), ClassName(label="blue"))
    source = Source(name="toy", architecture="test_resnet")
    net, backbone = new_protopnet(network, PREPROCESSING, source, classes, options, [2, 2], torch.device("cpu"))
    start_prototypes(net, backbone, Images().push(), 0)
    return net, backbone


def go(options=OPTIONS, state=None, keep=lambda _: None, **more):
    net, backbone = new(options)
    state = TrainingState() if state is None else state
    Trainer(net, backbone, Images(**more), options).run(state, keep)
    return net, backbone, state


def test_the_papers_schedule():
    steps = plan(replace(PROTOPNET_RECIPES["paper"], epochs=32))
    epochs = {s.epoch - 1: s for s in steps if s.stage in {"warm", "joint"}}  # the original counts from 0
    assert [n for n, s in epochs.items() if s.stage == "warm"] == [0, 1, 2, 3, 4]
    factors = {n: round(s.factor, 12) for n, s in epochs.items()}
    assert [factors[n] for n in (5, 8, 9, 13, 14, 18, 19)] == [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    assert round(factors[29] * 1e-4, 15) == 1e-9
    paper = PROTOPNET_RECIPES["paper"]
    assert (paper.backbone_rate, paper.addon_rate, paper.prototype_rate, paper.head_rate) == (1e-4, 3e-3, 3e-3, 1e-4)
    assert (paper.cluster, paper.separation, paper.l1) == (0.8, -0.08, 1e-4)
    assert (paper.backbone_decay, paper.addon_decay, paper.start) == (1e-3, 1e-3, "random")
    pushes = [s.epoch - 1 for s in steps if s.stage == "push"]
    assert pushes == [10, 20, 30, 31]
    place = [s.stage for s in steps].index("push")
    assert [s.stage for s in steps[place + 1 : place + 22]] == ["head"] * 20 + ["joint"]


def test_linear_similarity_has_no_passes_over_the_head():
    steps = plan(replace(OPTIONS, similarity="linear", last_layer="passes"))
    assert "head" not in {s.stage for s in steps}


def test_the_default_schedule_spans_the_epochs():
    steps = [s for s in plan(ProtoPNetOptions(epochs=15, warm_epochs=5, cycles=2)) if s.stage != "warm"]
    assert [s.epoch for s in steps if s.stage == "push"] == [10, 15]
    factors = [s.factor for s in steps if s.stage == "joint"]
    assert factors[0] == 1 and factors[5] == pytest.approx(0.5) and 0 < factors[-1] < 0.05
    assert factors == sorted(factors, reverse=True)


def test_training_learns_and_projects():
    net, _, state = go(replace(OPTIONS, epochs=6))
    assert state.log[-2]["cross_entropy"] < state.log[0]["cross_entropy"]
    assert state.pushes[-1]["accuracy_last_layer"] == 1
    assert state.pushes[-1]["duplicates"] == 0
    assert len(state.sources) == 4 and state.best["cycle"] == 1


def test_warm_epochs_leave_the_network_and_no_epoch_the_frozen_statistics():
    net, _ = new()
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    stages = {}

    def keep(state):
        now = {name.removeprefix("net.network."): value for name, value in state.tensors.items()}
        stages[state.done] = {name for name, value in before.items() if not torch.equal(now[name], value)}

    go(keep=keep)
    assert stages[1] == set()
    assert stages[2] and not [name for name in stages[2] if "running" in name or "tracked" in name]


def test_the_original_lets_statistics_move():
    net, _ = new()
    before = {name: value.clone() for name, value in net.network.state_dict().items()}
    trained, _, _ = go(replace(OPTIONS, frozen_norms=False, epochs=1))
    moved = [n for n, v in trained.network.state_dict().items() if "running" in n and not torch.equal(v, before[n])]
    assert moved


def test_the_head_is_reset_for_joint_epochs_unless_told_otherwise():
    heads = []

    def keep(state):
        heads.append((state.log[-1]["stage"], state.tensors["net.head"]))

    options = replace(OPTIONS, epochs=3, warm_epochs=0, cycles=2)
    net, _, _ = go(options, keep=keep)
    start = start_of_head(net.owner, 2)
    assert [stage for stage, _ in heads] == ["joint", "joint", "push", "joint", "push"]
    assert [torch.equal(head, start) for _, head in heads] == [True, True, False, True, False]
    heads.clear()
    go(replace(options, reset_head=False), keep=keep)
    assert [torch.equal(head, start) for _, head in heads] == [True, True, False, False, False]


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_that_goes_on_ends_like_one_that_was_never_stopped(done):
    states = {}

    def keep(state):
        states[state.done] = TrainingState(
            done=state.done, tensors={k: v.clone() for k, v in state.tensors.items()}, log=list(state.log),
            pushes=list(state.pushes), sources=list(state.sources), best=state.best,
        )  # fmt: skip

    options = replace(OPTIONS, cycles=2)
    whole, _, _ = go(options, keep=keep, apart=True)
    again, _, _ = go(options, state=states[done], apart=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_the_best_cycle_is_kept():
    accuracies = iter([0.2, 0.9, 0.8, 0.7, 0.6])
    net, backbone = new()
    trainer = Trainer(net, backbone, Images(apart=True), replace(OPTIONS, warm_epochs=1, cycles=2))
    trainer._held_out_accuracy = lambda: next(accuracies)
    state = TrainingState()
    trainer.run(state, lambda _: None)
    assert [row["stage"] for row in state.log] == ["warm", "joint", "push", "joint", "push"]
    assert state.best["cycle"] == 1 and state.best["accuracy"] == 0.8
    assert torch.equal(net.prototypes, state.tensors["best.prototypes"])
    assert not torch.equal(net.prototypes, state.tensors["net.prototypes"])


def test_a_loss_that_is_not_finite_is_named_and_the_last_state_is_good():
    states = []
    with pytest.raises(
        InputError, match=r"the (cross entropy|cluster|separation) became NaN or infinite in batch \d of epoch 2"
    ):
        go(
            replace(OPTIONS, backbone_rate=1e25),
            keep=lambda s: states.append({k: v.clone() for k, v in s.tensors.items()}),
        )
    assert len(states) == 1
    assert all(value.isfinite().all() for value in states[0].values())


def test_half_precision_trains_too():
    net, _, state = go(replace(OPTIONS, precision="bfloat16"))
    assert net.prototypes.dtype == torch.float32
    assert state.pushes[-1]["last_layer"]["kkt"] <= 1e-6
