"""Augmented prototypes: the ledger without a residual, edits that take their share along, maps that stay."""

from dataclasses import replace

import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import InputError
from protonmf_cli.models.response import parts_of_rows
from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit
from toys import convert

WAYS = {
    "min-norm": ("--augment", "min-norm"),
    "paper": ("--augment", "paper"),
    "projections": ("--near", 0, "--recipe", "paper"),
}


@pytest.fixture(scope="module", params=WAYS)
def augmented(request, toy, tmp_path_factory):
    """Amounts with either rule, and ProtoNMF as printed."""
    target = tmp_path_factory.mktemp("augmented") / "m.safetensors"
    return protonmf_cli.load(convert(toy, target, "--no-stability", *WAYS[request.param]))


def test_augmented_prototypes_rebuild_the_head_exactly(augmented):
    vectors = augmented.backbone.readout.vectors
    assert torch.allclose(augmented.model.augmented_vectors(), vectors, atol=1e-5)
    shares = augmented.model.weights
    for c in range(4):
        assert float(shares.residual_share[shares.class_index == c].sum()) == pytest.approx(1, abs=1e-5)
    report = augmented.model.card.measured.augmentation
    assert report["change"]["largest"] >= report["change"]["median"] > 0
    assert -1 <= report["presence_correlation"] <= 1


def test_the_ledger_has_no_residual(augmented, toy):
    found = augmented.explain(toy.image(1), "red things")
    plain = augmented.explain(toy.image(1), "red things", form="plain")
    assert (found.form, plain.form) == ("augmented", "plain")
    assert found.residual == 0.0
    assert found.residual_share == 0.0
    assert found.residual_map is None
    assert found.bias == pytest.approx(float(augmented.model.bias[0]), abs=1e-6)
    assert found.logit == plain.logit
    assert sum(x.contribution for x in found.contributions) + found.bias == pytest.approx(found.logit, abs=1e-4)
    assert found.ledger_error < 1e-4
    moved = sum(x.contribution for x in found.contributions) - sum(x.contribution for x in plain.contributions)
    assert moved == pytest.approx(plain.residual + plain.bias - found.bias, abs=1e-4)
    for x in found.contributions:
        assert x.maps["contribution"].sum() == pytest.approx(x.localised, abs=1e-5)
        if found.reads_amounts:
            assert x.maps["presence"].sum() == pytest.approx(x.evidence, abs=1e-5)
        else:
            assert (x.maps["presence"] >= 0).all()


def test_an_edit_takes_its_share_of_the_residual(augmented, toy):
    before = augmented.explain(toy.image(0), "red things")
    for x in before.contributions:
        if x.owner_index != 0:
            continue
        half = augmented.scale("red things", {x.prototype: 0.5})
        after = half.explain(toy.image(0), "red things")
        assert after.logit == pytest.approx(before.logit - 0.5 * x.contribution, abs=1e-4)
        now = {other.prototype_id: other.contribution for other in after.contributions}
        assert now.keys() == {was.prototype_id for was in before.contributions}
        for was in before.contributions:
            factor = 0.5 if was.prototype_id == x.prototype_id else 1.0
            assert now[was.prototype_id] == pytest.approx(factor * was.contribution, abs=1e-4)


def test_removing_all_prototypes_leaves_the_bias(augmented, toy):
    model = augmented.model
    entries = model.entries(0)
    edits = [
        find_edit(model, 0, int(model.owner[j]), model.number(j), 0.0)
        for j in model.weights.prototype[entries].tolist()
    ]
    bare = apply_edits(model, edits, form="augmented")
    rows = augmented.backbone.read(augmented.crop(toy.image(0))[None]).rows
    assert float(parts_of_rows(bare, rows).logits[0, 0]) == pytest.approx(float(model.bias[0]), abs=1e-5)
    others = [parts_of_rows(each, rows).logits[0, 1:] for each in (bare, model)]
    assert torch.allclose(*others, atol=1e-6)  # the same rows; a product rounds by where they lie in memory


def test_edit_and_inverse_edit_cancel_in_augmented_form(augmented):
    model = augmented.model
    edit = find_edit(model, 0, 0, 1, 4.0)
    there = apply_edits(model, [edit], form="augmented")
    back = apply_edits(there, [replace(edit, factor=0.25)], form="augmented")
    assert torch.allclose(back.head_vectors(), model.head_vectors(), atol=1e-5)
    assert torch.allclose(back.weights.residual_share, model.weights.residual_share, atol=1e-5)
    assert [done["form"] for done in back.card.edits] == ["augmented", "augmented"]


def test_factors_that_cancel_the_shares_are_refused(augmented):
    model = augmented.model
    weights = model.weights
    hit = (weights.class_index == 0).nonzero()[:, 0]
    share = weights.residual_share.clone()
    share[hit] = 0.0
    share[hit[:2]] = 0.5
    balanced = replace(model, weights=replace(weights, residual_share=share))
    first, second = (find_edit(balanced, 0, 0, n, f) for n, f in ((1, 1.0), (2, -1.0)))
    with pytest.raises(InputError, match="make the residual shares of red things cancel"):
        apply_edits(balanced, [first, second], form="augmented")
    assert apply_edits(balanced, [first, second]).weights.value[hit[1]] == -weights.value[hit[1]]


def test_an_intercept_counts_once_whatever_carries_the_residual(augmented, toy):
    """Format 1 stored one; augmented, it goes back from the bias to the residual, or to the prototypes that carry it."""
    intercept = torch.tensor([3.0, -2.0, 1.0, 5.0])
    moved = replace(augmented.model, intercept=intercept)
    value = moved.weights.value.clone()
    value[moved.entries(0)[0]] = 0  # its share of the residual is carried by nobody
    for weights in (moved.weights, replace(moved.weights, value=value)):
        model = replace(moved, weights=weights, card=replace(moved.card, edits=({"form": "augmented"},)))
        for c in range(2):
            found = replace(augmented, model=model).explain(toy.image(c), str(c))
            assert found.bias == pytest.approx(float(model.bias[c]), abs=1e-5)
            assert found.ledger_error < 1e-4
    whole = replace(augmented, model=moved).explain(toy.image(0), "0", form="plain")
    assert whole.bias == pytest.approx(float(moved.bias[0]) + 3, abs=1e-5)
    assert whole.ledger_error < 1e-4


def test_a_class_without_images_keeps_its_residual_apart(toy, tmp_path):
    """Prototypes of other classes do not take it up, and an edit does not take it along."""
    (tmp_path / "data").mkdir()
    for name in ("red things", "blue things", "grey things"):
        (tmp_path / "data" / name).symlink_to(toy.data / "train" / name)
    words = ("--data", tmp_path / "data", "--augment", "min-norm", "--no-stability")
    loaded = protonmf_cli.load(convert(toy, tmp_path / "m.safetensors", *words))
    weights = loaded.model.weights
    assert loaded.model.entries(1) and not weights.residual_share[weights.class_index == 1].any()
    found = loaded.explain(toy.image(1), "green things")
    assert (found.form, found.without_prototypes) == ("augmented", True)
    assert abs(found.residual) > 1e-3
    assert found.ledger_error < 1e-4
    x = found.contributions[0]
    half = loaded.scale("green things", {(x.owner_label, x.prototype): 0.5})
    after = half.explain(toy.image(1), "green things")
    assert after.residual == pytest.approx(found.residual, abs=1e-6)
    assert after.logit == pytest.approx(found.logit - 0.5 * x.contribution, abs=1e-5)
    assert loaded.explain(toy.image(0), "red things").residual == 0


def test_a_model_that_is_not_augmented_says_so(toy, converted):
    with pytest.raises(InputError, match="no augmented prototypes"):
        protonmf_cli.load(converted).explain(toy.image(0), form="augmented")
