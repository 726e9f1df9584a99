"""Explain, intervene, evaluate: ledgers that add up, edits that are linear heads, figures counted by hand."""

from dataclasses import replace

import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import InputError
from protonmf_cli.files.datasets import ClassMapping, find_images
from protonmf_cli.models.prototype import logit_parts
from protonmf_cli.models.results import Edit
from protonmf_cli.pipelines.evaluation import evaluate_model
from protonmf_cli.pipelines.intervention import apply_edits, find_edit, intervene_on_data, outcome


@pytest.fixture(scope="module")
def loaded(converted):
    return protonmf_cli.load(converted)


@pytest.fixture(scope="module")
def images(loaded, toy):
    return find_images(toy.data, "val", loaded.model.card.classes, ClassMapping())


@pytest.mark.parametrize("class_name", [None, "red things", "3"])
@pytest.mark.parametrize("map_kind", ["presence", "contribution"])
def test_the_ledger_adds_up(loaded, toy, class_name, map_kind):
    for c in range(4):
        found = loaded.explain(toy.image(c), class_name, map_kind=map_kind)
        total = sum(x.contribution for x in found.contributions) + found.residual + found.bias
        network = loaded.backbone.read(loaded.crop(toy.image(c))[None]).logits[0]
        assert total == pytest.approx(float(network[found.class_index]), abs=1e-4)
        assert found.ledger_error < 1e-4
        for x in found.contributions:
            assert x.weight * x.evidence == pytest.approx(x.contribution)
            assert x.maps["contribution"].sum() == pytest.approx(x.localised, abs=1e-6)
            assert x.localised + x.unlocalised == pytest.approx(x.contribution)
            assert (x.maps["presence"] >= 0).all()
            left, top, right, bottom = x.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
        delta = float(loaded.model.intercept[found.class_index])
        assert found.residual_map.sum() - delta == pytest.approx(found.residual, abs=1e-5)


def test_predictions_are_the_networks(loaded, toy):
    found = loaded.explain(toy.image(1))
    logits = loaded.backbone.read(loaded.crop(toy.image(1))[None]).logits[0]
    assert [p.class_index for p in found.predictions] == logits.argsort(descending=True).tolist()
    assert sum(p.probability for p in found.predictions) == pytest.approx(1)
    assert found.class_index == int(logits.argmax())


def test_a_class_without_prototypes_is_all_residual_and_says_so(loaded, toy):
    kept = loaded.model.weights.class_index != 1
    weights = replace(loaded.model.weights, **{n: v[kept] for n, v in vars(loaded.model.weights).items()})
    vectors = loaded.backbone.readout.vectors
    residual = loaded.model.residual.clone()
    residual[1] = vectors[1]
    bare = replace(loaded, model=replace(loaded.model, weights=weights, residual=residual))
    found = bare.explain(toy.image(0), "green things")
    assert found.without_prototypes
    assert found.residual_share == 1.0
    assert found.contributions == ()
    assert found.best_with_prototypes.class_index in {0, 1, 2, 3}
    assert found.ledger_error < 1e-4
    with pytest.raises(InputError, match="class green things has no prototypes"):
        find_edit(bare.model, 1, 1, 1, 0.0)


def test_an_edit_is_another_linear_head(loaded, images):
    """V_c - (1 - f) a b_j on the network's own features gives the edited model's logits."""
    model, vectors = loaded.model, loaded.backbone.readout.vectors.clone()
    edits = [find_edit(model, 0, 0, 2, 0.0), find_edit(model, 2, 2, 1, -0.5)]
    edited = apply_edits(model, edits)
    for edit in edits:
        hit = (model.weights.class_index == edit.class_index) & (model.weights.prototype == edit.prototype_id)
        weight = model.weights.value[hit]
        vectors[edit.class_index] -= (1 - edit.factor) * weight * model.prototypes[edit.prototype_id]
    batch = next(loaded.reader.batches(images.of(images.files)))
    pooled = loaded.backbone.read(batch.crops).rows.sum(dim=1)
    expected = pooled @ vectors.T + loaded.backbone.readout.bias
    assert torch.allclose(logit_parts(edited, pooled).logits, expected, atol=1e-4)
    assert len(edited.card.edits) == 2
    assert model.card.edits == ()


def test_edit_and_inverse_edit_cancel(loaded):
    there = apply_edits(loaded.model, [Edit(class_index=0, prototype_id=0, factor=4.0)])
    back = apply_edits(there, [Edit(class_index=0, prototype_id=0, factor=0.25)])
    assert torch.equal(back.weights.value, loaded.model.weights.value)
    assert not torch.equal(there.weights.value, loaded.model.weights.value)


def test_an_edited_model_explains_its_own_logits(loaded, toy):
    edited = loaded.scale("red things", {1: 0.0})
    found = edited.explain(toy.image(0), "red things")
    assert found.contributions[0].contribution == 0
    assert found.ledger_error < 1e-9
    before, after = loaded.predict(toy.image(0), "red things"), edited.predict(toy.image(0), "red things")
    assert found.logit == pytest.approx(after.logit)
    lost = loaded.explain(toy.image(0), "red things").contributions[0].contribution
    assert before.logit - after.logit == pytest.approx(lost, abs=1e-6)


@pytest.mark.parametrize(
    ("owner", "number", "words"),
    [
        (0, 3, "red things has no prototype 3; it has 1 to 2"),
        (0, 0, "no prototype 0"),
        (1, 0, "green things has no prototype 0"),
    ],
)
def test_edits_that_cannot_be(loaded, owner, number, words):
    with pytest.raises(InputError, match=words):
        find_edit(loaded.model, 0, owner, number, 0.0)


def test_prototypes_that_a_class_does_not_borrow_cannot_be_edited(loaded):
    model = loaded.model
    used = model.weights.prototype[model.weights.class_index == 0].tolist()
    unused = next(j for j in range(len(model.prototypes)) if j not in used)
    owner = int(model.owner[unused])
    name = model.card.classes[owner].shown
    with pytest.raises(InputError, match=f"does not use prototype {model.number(unused)} of {name}"):
        find_edit(model, 0, owner, model.number(unused), 0.0)
    borrowed = next(j for j in used if int(model.owner[j]) != 0)
    edit = find_edit(model, 0, int(model.owner[borrowed]), model.number(borrowed), 0.0)
    assert edit.prototype_id == borrowed
    key = (model.card.classes[int(model.owner[borrowed])].label, model.number(borrowed))
    assert loaded.scale("red things", {key: 0.0}).model.card.edits[0]["prototype_id"] == borrowed


def test_intervention_on_data_counts_by_hand(loaded, images):
    edited = apply_edits(loaded.model, [find_edit(loaded.model, 0, 0, 1, -20.0)])
    found = intervene_on_data(loaded.backbone, loaded.model, edited, loaded.reader.batches(images.of(images.files)))
    right, flips = [0, 0], []
    for batch in loaded.reader.batches(images.of(images.files)):
        for crop, source in zip(batch.crops, batch.sources, strict=True):
            tops = [outcome(loaded.backbone, m, crop, 0).predictions[0].class_index for m in (loaded.model, edited)]
            right = [n + (top == batch.class_index) for n, top in zip(right, tops, strict=True)]
            if tops[0] != tops[1]:
                flips.append((source.path, tops[0], tops[1]))
    assert flips, "the edit is meant to change something"
    assert [(f.path, f.before, f.after) for f in found.flips] == flips
    assert (found.accuracy_before, found.accuracy_after) == pytest.approx(tuple(n / found.images for n in right))
    for count, before, after in found.per_class.values():
        assert before != after <= count


def test_evaluation_counts_by_hand(loaded, images):
    chosen = [1, 2]
    scores = evaluate_model(loaded.backbone, loaded.model, loaded.reader.batches(images.of(chosen)), chosen)
    model, right, among, agree, total = loaded.model, 0, 0, 0, 0
    for batch in loaded.reader.batches(images.of(chosen)):
        reading = loaded.backbone.read(batch.crops)
        parts = logit_parts(model, reading.rows.sum(dim=1))
        only = parts.prototypes + parts.bias
        for n in range(len(batch.sources)):
            total += 1
            right += int(only[n].argmax()) == batch.class_index
            agree += int(only[n].argmax()) == int(reading.logits[n].argmax())
            among += chosen[int(only[n, chosen].argmax())] == batch.class_index
    assert scores.images == total
    assert scores.accuracy["prototypes_only"] == pytest.approx(right / total)
    assert scores.agreement["prototypes_only"] == pytest.approx(agree / total)
    assert scores.restricted["accuracy"]["prototypes_only"] == pytest.approx(among / total)
    assert scores.accuracy["prototype_model"] == scores.accuracy["black_box"]
    assert scores.agreement["prototype_model"] == 1
    assert scores.max_abs_logit_difference < 1e-4
    low, high = scores.intervals["accuracy"]["prototypes_only"]
    assert low <= right / total <= high
    assert set(scores.per_class) == set(chosen)
