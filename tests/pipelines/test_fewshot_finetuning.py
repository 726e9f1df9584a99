"""Fine-tuning a few-shot model's network, virtual examples and adversarial changes, on a small trained network."""

import copy
import math

import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.datasets import ClassMapping, class_folders, find_images
from protonmf_cli.files.images.training_images import TrainingImages
from protonmf_cli.files.networks.backbones import features_backbone, load_features
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.maths.losses import label_attraction
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.protopnet.training_state import TrainingState
from protonmf_cli.options import AugmentationOptions, FewShotOptions, FineTuneOptions
from protonmf_cli.pipelines.fewshot import adversarial
from protonmf_cli.pipelines.fewshot.adversarial import adversarial_check
from protonmf_cli.pipelines.fewshot.features import read_samples
from protonmf_cli.pipelines.fewshot.finetuning import FineTuner, trained_parameters
from protonmf_cli.pipelines.fewshot.fitting import fit_prototypes
from protonmf_cli.pipelines.fewshot.model import fewshot_model
from protonmf_cli.pipelines.fewshot.virtual_examples import virtual_examples

OPTIONS = FewShotOptions(scales=(5.0,), anchors=(3e-3,), alphas=(1e-2,), folds=3)


@pytest.fixture(scope="module")
def given(toy):
    """Backbone, training images, samples and their fit."""
    classes = class_folders(toy.data, "train")
    images = find_images(toy.data, "train", classes, ClassMapping())
    network, preprocessing, source, _ = load_features(BackboneRequest(name=toy.name))
    backbone = features_backbone(network, preprocessing, classes, source, (-1,))
    reader = image_reader(preprocessing, batch_size=8, workers=2)
    samples, _ = read_samples(backbone, reader.batches(images.of(images.files)))
    fit = fit_prototypes(samples.features, samples.labels, len(classes), OPTIONS)
    training = TrainingImages(
        files=images.of(images.files), reader=reader, augmentation=AugmentationOptions(), batch_size=8, seed=0
    )
    return backbone, training, samples, fit


def tuner(given, **changes):
    from dataclasses import replace

    backbone, training, _, fit = given
    backbone = replace(backbone, network=copy.deepcopy(backbone.network))
    tuning = FineTuneOptions(**{"stages": "all", "epochs": 4, "rate": 1e-3, "batch_size": 8} | changes)
    return FineTuner(backbone, fit, training, OPTIONS, tuning), backbone


@pytest.mark.parametrize("mode", ["batches", "episodes"])
def test_an_interrupted_run_ends_like_a_whole_one(given, mode):
    kept = []
    whole, _ = tuner(given, mode=mode)
    state = whole.run(TrainingState(), lambda s: kept.append(copy.deepcopy(s)))
    again, _ = tuner(given, mode=mode)
    resumed = again.run(kept[1], lambda s: None)
    assert [row["epoch"] for row in resumed.log] == [1, 2, 3, 4] and resumed.done == 4
    assert state.tensors.keys() == resumed.tensors.keys()
    for name, tensor in state.tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


@pytest.mark.parametrize("mode", ["batches", "episodes"])
def test_the_loss_falls(given, mode):
    trained, _ = tuner(given, mode=mode, epochs=8)
    log = trained.run(TrainingState(), lambda s: None).log
    assert log[-1]["cross_entropy"] + log[-1]["pull"] < log[0]["cross_entropy"] + log[0]["pull"]


def test_only_the_last_stage_is_trained(given):
    before = given[0].network.state_dict()
    trained, backbone = tuner(given, stages="last")
    names = set(trained_parameters(backbone.network, "last"))
    trained.run(TrainingState(), lambda s: None)
    changed = {name for name, tensor in backbone.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed and changed <= names and all(name.startswith("layer4.") for name in changed)
    assert not any(p.requires_grad for p in backbone.network.parameters())


def test_episodes_train_the_network_but_not_the_fitted_prototypes(given):
    trained, _ = tuner(given, mode="episodes", epochs=1)
    start = trained.prototypes.detach().clone()
    trained.run(TrainingState(), lambda s: None)
    assert torch.equal(trained.prototypes, start)


def test_a_loss_that_is_not_finite_is_refused(given):
    trained, _ = tuner(given, rate=1e30)
    kept = []
    with pytest.raises(InputError, match=r"became NaN or infinite in epoch \d of the fine-tuning. The state before it"):
        trained.run(TrainingState(), lambda s: kept.append(s.done))


def test_prototypes_of_one_class_are_drawn_together():
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(6, 3, generator=generator, dtype=torch.float64).requires_grad_()
    owner = torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradcheck(lambda p: label_attraction(p, owner, 2.0), prototypes)
    before = prototypes.detach().clone()
    for _ in range(300):
        (slope,) = torch.autograd.grad(label_attraction(prototypes, owner, 2.0), prototypes)
        prototypes = (prototypes - 0.1 * slope).detach().requires_grad_()
    distances = torch.cdist(prototypes, prototypes)
    same = owner[:, None] == owner
    assert distances[same].max().item() < 0.05 < 1.9 < distances[~same].min().item()
    assert not torch.equal(before, prototypes)
    assert label_attraction(prototypes[:1], owner[:1], 2.0).item() == 0


def test_attraction_is_a_mean_over_pairs_whatever_their_number():
    prototypes = torch.tensor([[0.0], [1.0], [3.0], [3.5]], dtype=torch.float64)
    owner = torch.tensor([0, 0, 0, 1])
    alike = (1 + 9 + 4) / 3
    apart = (0 + 0 + 1.5**2) / 3  # of 3.5, 2.5 and 0.5 only the last is within the margin
    assert label_attraction(prototypes, owner, 2.0).item() == pytest.approx(alike + apart)
    twice = torch.cat([prototypes, prototypes + 100])
    pairs = label_attraction(twice, torch.cat([owner, owner + 2]), 2.0).item()
    assert pairs == pytest.approx(alike + 2 * 1.5**2 / 22)


def test_virtual_examples_are_found(given):
    backbone, training, samples, fit = given
    model = fewshot_model(fit, backbone, samples, OPTIONS, DataFacts(skipped=()))
    crops = [training.reader.read(file)[0] for file in training.files]
    start = {one.prototype: one for one in virtual_examples(backbone, model, [0, 2], crops, steps=1)}
    found = virtual_examples(backbone, model, [0, 2], crops, steps=60)
    assert [one.prototype for one in found] == [0, 2]
    for one in found:
        assert one.picture.shape == (64, 64, 3) and one.picture.dtype.name == "uint8"
        assert one.match > 0.99 and one.agreement > start[one.prototype].agreement + 0.5
        crop = torch.from_numpy(one.picture.copy()).permute(2, 0, 1)
        read = model.evidence.of_features(backbone.read(crop[None]).rows.mean(dim=1), model.prototypes)
        assert float(read[0, one.prototype]) == pytest.approx(one.match, abs=1e-3)
    grey = [crop.float().mean(dim=0, keepdim=True).expand(3, -1, -1).byte() for crop in crops]
    picture = virtual_examples(backbone, model, [0], grey, steps=20)[0].picture.astype(int)
    assert abs(picture - picture.mean(axis=2, keepdims=True)).max() <= 1 < picture.std()
    again = virtual_examples(backbone, model, [0], crops, steps=5, seed=1)
    assert (again[0].picture == virtual_examples(backbone, model, [0], crops, steps=5, seed=1)[0].picture).all()


def test_small_changes_of_the_pixels_flip_what_lies_between_classes(given, monkeypatch):
    backbone, training, samples, fit = given
    model = fewshot_model(fit, backbone, samples, OPTIONS, DataFacts(skipped=()))
    crops = [training.reader.read(file)[0] for file in training.files]
    monkeypatch.setattr(adversarial, "CHANGES", (1.0, 4.0, 16.0, 64.0))
    found = adversarial_check(backbone, model, crops, batch_size=7)
    margins = [one.margin for _, one in found.images]
    assert margins == sorted(margins) and sorted(n for n, _ in found.images) == list(range(len(crops)))
    shares = [found.flipped(change) for change in adversarial.CHANGES]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] > 0.2  # along the other sign: 0.03
    logits = fit.logits(samples.features)
    for n, one in found.images:
        assert one.class_index == int(logits[n].argmax())
        assert (one.other is None) == (one.change is None) and one.other != one.class_index
    assert found.correlation is None or not math.isnan(found.correlation)
    with pytest.raises(InputError, match="no images to attack"):
        adversarial_check(backbone, model, [])
