"""What a few-shot model says of itself, on made clusters where the truth is known."""

import numpy as np
import pytest
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.store import load_model
from protonmf_cli.maths.principal_axes import spread_of
from protonmf_cli.options import FewShotOptions
from protonmf_cli.pipelines.fewshot.interpretation import interpret, position_of
from protonmf_cli.pipelines.fewshot.plane import place_of, plane_of
from twisted import CENTRES, model_of, twisted


@pytest.fixture(scope="module")
def model():
    return model_of(*twisted(0))


def nearest_centre(model, prototype):
    return int(torch.cdist(model.prototypes[[prototype]], torch.tensor(CENTRES).float()).argmin())


def test_scattered_classes_and_the_ambiguous_prototype_are_named(model):
    found = interpret(model)
    assert {c: sorted(nearest_centre(model, j) for j in own) for c, own in found.scattered.items()} == {
        0: [0, 1],
        1: [2, 3],
    }
    (shared,) = [f for f in found.prototypes if f.kind != "pure"]
    assert nearest_centre(model, shared.prototype) == 4
    assert shared.kind == "ambiguous" and sorted(shared.classes()) == [0, 1]
    assert shared.entropy > 0.6 > 0.2 > max(f.entropy for f in found.prototypes if f.kind == "pure")
    assert len(shared.members) == 16 and found.singletons == [] and found.of_kind("unused") == []


def test_images_where_classes_meet_come_first(model):
    meetings = interpret(model).meetings
    assert len(meetings) == 48
    assert {m.sample for m in meetings[:16]} == set(range(32, 48))  # the shared cluster
    assert all(m.margin < 0.3 for m in meetings[:16]) and all(m.margin > 0.8 for m in meetings[16:])


def test_a_prototype_is_described_by_its_samples(model):
    rows, _ = twisted(0)
    for facts in interpret(model).prototypes:
        own = rows[list(facts.members)].float().double()
        assert torch.allclose(facts.spread.mean, own.mean(dim=0), atol=0.02)
        covariance = facts.spread.directions.mT @ torch.diag(facts.spread.variances) @ facts.spread.directions
        assert np.allclose(covariance, np.cov(own.T.numpy(), bias=True), atol=0.02)
        first = facts.directions[0]
        places = (own - own.mean(dim=0)) @ facts.spread.directions[0]
        assert {first.low, first.high} == {facts.members[int(places.argmin())], facts.members[int(places.argmax())]}
        assert 0.5 <= first.share <= 1


def test_one_prototype_per_class_cannot_tell_them(model):
    rows, labels = twisted(0)
    single = model_of(rows, labels, FewShotOptions(normalisation="none", prototypes=1))
    assert interpret(single).scattered == {}
    assert single.card.measured.accuracy["train"] < 0.75 < model.card.measured.accuracy["train"]


def test_a_sample_far_from_all_others_is_a_singleton():
    rows, labels = twisted(0)
    rows, labels = torch.cat([rows, torch.tensor([[40.0, 40.0]]).double()]), torch.cat([labels, torch.tensor([2])])
    model = model_of(rows, labels, names=("left", "right", "alone"))
    found = interpret(model)
    (alone,) = found.singletons
    assert int(model.owner[alone]) == 2 and found.prototypes[alone].members == (48,)
    assert found.prototypes[alone].directions == ()


def test_a_prototype_that_nothing_matches_is_unused(model):
    weights = model.dense_weights.clone()
    from dataclasses import replace

    moved = replace(model, prototypes=torch.cat([model.prototypes[:-1], torch.tensor([[500.0, 500.0]])]))
    assert interpret(moved).of_kind("unused") == [len(weights) - 1]


def test_where_an_image_lies(model):
    clear, between, far = (
        position_of(model, torch.tensor([place])) for place in ([-3.0, -3.0], [0.0, 8.0], [60.0, 0.0])
    )
    assert not clear.is_ambiguous and int(clear.logits.argmax()) == 0 and clear.entropy < 0.2
    assert between.is_ambiguous and between.entropy > 0.6
    assert far.typical == 0 and clear.typical > 0
    assert [n.label for n in clear.neighbours] == [0] * 5
    distances = [n.distance for n in clear.neighbours]
    assert distances == sorted(distances) and clear.neighbours[0].source.path.startswith("left/")
    assert float(clear.matches.sum()) == pytest.approx(1)


def test_the_plane_is_a_principal_component_analysis(model):
    from sklearn.decomposition import PCA

    rows, labels = twisted(0)
    plane = plane_of(model)
    known = PCA(2).fit(rows.numpy())
    for axis in range(2):
        places = known.transform(rows.float().double().numpy())[:, axis]
        assert np.allclose(np.abs(plane.samples[:, axis]), np.abs(places), atol=1e-4)
    assert np.allclose(plane.shares, known.explained_variance_ratio_)
    assert plane.labels.tolist() == labels.tolist() and len(plane.prototypes) == 5 and len(plane.flagged) == 1
    distances = np.linalg.norm(plane.samples[:, None] - plane.prototypes[None], axis=2).min(axis=1)
    assert distances.max() < 2.5


def test_one_axis_is_enough_for_a_plane():
    rows = torch.tensor([[0.0], [0.1], [5.0], [5.1]]).double()
    plane = plane_of(model_of(rows, torch.tensor([0, 0, 1, 1])))
    assert plane.shares[1] == 0 and not plane.samples[:, 1].any()


def test_weights_of_samples_count():
    rows = torch.randn(20, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.arange(20).double()
    found = spread_of(rows, weights)
    assert np.allclose(found.mean, np.average(rows, axis=0, weights=weights))
    covariance = found.directions.mT @ torch.diag(found.variances) @ found.directions
    assert np.allclose(covariance, np.cov(rows.T.numpy(), aweights=weights.numpy(), bias=True))


def test_other_models_are_refused(converted):
    model, _ = load_model(converted)
    with pytest.raises(InputError, match="not a few-shot model. Make one with `protonmf fewshot fit`"):
        interpret(model)


@pytest.mark.slow
def test_nothing_keeps_a_model_that_was_interpreted():
    import gc
    import weakref

    model = model_of(*twisted(0))
    interpret(model)
    plane_of(model)
    place_of(model, torch.tensor([[0.0, 8.0]]))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
