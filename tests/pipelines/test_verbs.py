"""Explain, intervene, evaluate: ledgers that add up, edits that are linear heads, figures counted by hand."""

import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import InputError
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.maths.scoring import peak_box
from protonmf_cli.models.response import logit_parts, parts_of_rows, pooled_rows
from protonmf_cli.models.results import Edit
from protonmf_cli.pipelines.explaining.explanation import answers_of
from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit, intervene_on_data, outcomes
from protonmf_cli.pipelines.measuring.evaluation import evaluate_model
from toys import convert


@pytest.fixture(scope="module")
def loaded(converted):
    return protonmf_cli.load(converted)


@pytest.fixture(scope="module")
def projections(paper):
    return protonmf_cli.load(paper)


@pytest.fixture(scope="module", params=["amounts", "paper"])
def partial(request, toy, tmp_path_factory):
    """Converted without images of green things."""
    folder = tmp_path_factory.mktemp("partial")
    (folder / "data").mkdir()
    for name in ("red things", "blue things", "grey things"):
        (folder / "data" / name).symlink_to(toy.data / "train" / name)
    words = ("--near", 0, "--recipe", "paper", "--augment", "none") if request.param == "paper" else ()
    target = convert(toy, folder / "m.safetensors", "--data", folder / "data", "--no-stability", *words)
    return request.param, protonmf_cli.load(target)


@pytest.fixture(scope="module")
def images(loaded, toy):
    return find_images(toy.data, "val", loaded.model.card.classes, ClassMapping())


def part_of(explanation, prototype, owner=None):
    """The contribution of one prototype, by its number within its owner."""
    wanted = explanation.class_index if owner is None else owner
    return next(x for x in explanation.contributions if (x.owner_index, x.prototype) == (wanted, prototype))


@pytest.mark.parametrize("class_name", [None, "red things", "3"])
@pytest.mark.parametrize("map_kind", ["presence", "contribution"])
@pytest.mark.parametrize("kind", ["loaded", "projections"])
def test_the_ledger_adds_up(request, toy, kind, class_name, map_kind):
    loaded = request.getfixturevalue(kind)
    for c in range(4):
        found = loaded.explain(toy.image(c), class_name, map_kind=map_kind)
        reading = loaded.backbone.read(loaded.crop(toy.image(c))[None])
        assert found.unplaced is None  # all rows of this network have a place
        total = sum(x.contribution for x in found.contributions) + found.residual + found.bias
        assert total == pytest.approx(float(reading.logits[0][found.class_index]), abs=1e-4)
        assert found.ledger_error < 1e-4
        sizes = [abs(x.contribution) for x in found.contributions]
        assert sizes == sorted(sizes, reverse=True)
        assert len(sizes) == (3 if kind == "loaded" else 2)
        for x in found.contributions:
            assert x.weight * x.evidence == pytest.approx(x.contribution)
            assert x.maps["contribution"].sum() == pytest.approx(x.localised, abs=1e-6)
            assert x.localised + x.unlocalised == pytest.approx(x.contribution)
            left, top, right, bottom = x.box
            assert 0 <= left < right <= 64
            assert 0 <= top < bottom <= 64
            if kind == "loaded":
                assert x.maps["presence"].sum() == pytest.approx(x.evidence, abs=1e-6)
                assert x.unlocalised == pytest.approx(0, abs=1e-9)
                assert (x.weight * x.maps["presence"]) == pytest.approx(x.maps["contribution"])
                low, high = x.usual
                assert low <= 1 <= high
                assert x.peak > 0
                assert x.is_less_than_none == (x.evidence < 0)
            else:
                assert (x.maps["presence"] >= 0).all()
                assert (x.usual, x.peak, x.is_less_than_none) == (None, None, False)
        assert found.intercept == 0
        assert found.residual_map.sum() == pytest.approx(found.residual, abs=1e-5)
        assert found.reads_amounts == (kind == "loaded")
        if kind == "loaded":
            assert found.residual_codes is None
        else:
            assert found.residual_codes.shape == (4, 4)


def test_boxes_of_the_training_patches_are_around_their_maps(loaded, toy):
    boxes = set()
    for x in loaded.explain(toy.image(0)).contributions:
        for view in x.examples:
            assert view.box == peak_box(torch.from_numpy(view.map), (64, 64))
            boxes.add(view.box)
    assert any(left != top and right != bottom for left, top, right, bottom in boxes)


def test_predictions_are_the_networks(loaded, toy):
    found = loaded.explain(toy.image(1))
    logits = loaded.backbone.read(loaded.crop(toy.image(1))[None]).logits[0]
    assert [p.class_index for p in found.predictions] == logits.argsort(descending=True).tolist()
    assert sum(p.probability for p in found.predictions) == pytest.approx(1)
    assert found.class_index == int(logits.argmax())


def test_a_class_without_images_is_made_of_other_classes_and_says_so(partial, toy):
    kind, loaded = partial
    assert loaded.model.own(1) == []
    found = loaded.explain(toy.image(0), "green things")
    assert found.without_prototypes
    assert found.best_with_prototypes.class_index in {0, 2, 3}
    reading = loaded.backbone.read(loaded.crop(toy.image(0))[None])
    assert found.logit == pytest.approx(float(reading.logits[0, 1]))
    assert found.ledger_error < 1e-4
    with pytest.raises(InputError, match="green things has no prototype"):
        find_edit(loaded.model, 1, 1, 1, 0.0)
    if kind == "paper":
        assert found.residual_share == 1.0
        assert found.contributions == ()
        assert found.residual == pytest.approx(found.logit - found.bias, abs=1e-4)
        return
    # --near 1, and one class more as it has none of its own: the two classes whose rows of the head are nearest
    vectors = loaded.backbone.readout.vectors
    cosine = torch.cosine_similarity(vectors[1], vectors, dim=1)
    nearest = sorted((0, 2, 3), key=lambda c: -float(cosine[c]))[:2]
    assert used_by(loaded.model, 1) == [loaded.model.whole(c) for c in sorted(nearest)]
    assert {x.owner_index for x in found.contributions} == set(nearest)
    assert found.residual_share < 1
    owner = nearest[0]
    edited = loaded.scale("green things", {(loaded.model.card.classes[owner].label, 0): 0.0})
    lost = part_of(found, 0, owner).contribution
    assert edited.predict(toy.image(0), "green things").logit == pytest.approx(found.logit - lost, abs=1e-5)


def used_by(model, class_index):
    return model.weights.prototype[model.entries(class_index)].tolist()


@pytest.mark.parametrize("kind", ["loaded", "projections"])
def test_an_edit_is_another_linear_head(request, kind, images):
    """V_c - (1 - f) w d_j on the network's own features gives the edited model's logits."""
    loaded = request.getfixturevalue(kind)
    model, vectors = loaded.model, loaded.backbone.readout.vectors.clone()
    edits = [find_edit(model, 0, 0, 2, 0.0), find_edit(model, 2, 2, 1, -0.5)]
    edited = apply_edits(model, edits)
    for edit in edits:
        place = used_by(model, edit.class_index).index(edit.prototype_id)
        weight = model.weights.value[model.entries(edit.class_index)[place]]
        reader = model.exact.readers(edit.class_index)[place].float()
        vectors[edit.class_index] -= (1 - edit.factor) * weight * reader
    batch = next(loaded.reader.batches(images.of(images.files)))
    rows = loaded.backbone.read(batch.crops).rows
    expected = rows.sum(dim=1) @ vectors.T + loaded.backbone.readout.bias
    assert torch.allclose(parts_of_rows(edited, rows).logits, expected, atol=1e-4)
    assert torch.equal(edited.prototypes, model.prototypes)
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
    assert part_of(found, 1).contribution == 0
    assert found.ledger_error < 1e-9
    before, after = loaded.predict(toy.image(0), "red things"), edited.predict(toy.image(0), "red things")
    assert found.logit == pytest.approx(after.logit)
    whole = loaded.explain(toy.image(0), "red things")
    assert before.logit - after.logit == pytest.approx(part_of(whole, 1).contribution, abs=1e-6)
    for x in found.contributions:  # no other row changes
        if (x.owner_index, x.prototype) != (0, 1):
            assert x.contribution == part_of(whole, x.prototype, x.owner_index).contribution


@pytest.mark.parametrize(
    ("owner", "number", "words"),
    [
        (0, 3, "red things has no prototype 3; it has 1 to 2"),
        (0, 0, "no prototype 0"),
        (1, 3, "green things has no prototype 3"),
    ],
)
def test_edits_that_cannot_be(loaded, owner, number, words):
    with pytest.raises(InputError, match=words):
        find_edit(loaded.model, 0, owner, number, 0.0)


def test_prototypes_that_a_class_is_not_connected_to_cannot_be_edited(loaded):
    model = loaded.model
    used = used_by(model, 0)
    unused = next(j for j in range(len(model.prototypes)) if j not in used)
    owner = int(model.owner[unused])
    name = model.card.classes[owner].shown
    with pytest.raises(InputError, match=f"does not use prototype {model.number(unused)} of {name}.*everywhere"):
        find_edit(model, 0, owner, model.number(unused), 0.0)
    near = next(j for j in used if int(model.owner[j]) != 0)
    edit = find_edit(model, 0, int(model.owner[near]), model.number(near), 0.0)
    assert edit.prototype_id == near
    key = (model.card.classes[int(model.owner[near])].label, model.number(near))
    edited = loaded.scale("red things", {key: 0.0})
    assert edited.model.card.edits[0]["prototype_id"] == near
    with pytest.raises(InputError, match="has the weight 0 in class red things: there is nothing left to edit"):
        edited.scale("red things", {key: 0.5})
    everywhere = loaded.scale_everywhere({(name, model.number(unused)): 0.0})
    assert everywhere.model.card.edits[0]["prototype_id"] == unused
    assert not torch.equal(everywhere.model.head_vectors()[0], model.head_vectors()[0])


def test_the_paper_s_prototypes_are_of_their_own_class_alone(projections):
    assert used_by(projections.model, 0) == projections.model.own(0)
    with pytest.raises(InputError, match="class red things does not use prototype 1 of green things, so it") as caught:
        find_edit(projections.model, 0, 1, 1, 0.0)
    assert "everywhere" not in str(caught.value)
    with pytest.raises(InputError, match="Convert again without recipe paper"):
        projections.scale_everywhere({("green things", 1): 0.0})


def test_intervention_on_data_counts_by_hand(loaded, images):
    edited = apply_edits(loaded.model, [find_edit(loaded.model, 0, 0, 1, -20.0)])
    found = intervene_on_data(loaded.backbone, loaded.model, edited, loaded.reader.batches(images.of(images.files)))
    right, flips = [0, 0], []
    for batch in loaded.reader.batches(images.of(images.files)):
        for crop, source in zip(batch.crops, batch.sources, strict=True):
            tops = [
                outcomes(loaded.backbone, m, crop, [0])[0].predictions[0].class_index for m in (loaded.model, edited)
            ]
            right = [n + (top == batch.class_index) for n, top in zip(right, tops, strict=True)]
            if tops[0] != tops[1]:
                flips.append((source.path, tops[0], tops[1]))
    assert flips, "the edit is meant to change something"
    assert [(f.path, f.before, f.after) for f in found.flips] == flips
    assert (found.accuracy_before, found.accuracy_after) == pytest.approx(tuple(n / found.images for n in right))
    for count, before, after in found.per_class.values():
        assert before != after <= count
    unchanged = apply_edits(loaded.model, [find_edit(loaded.model, 3, 3, 1, 1.0)])
    batches = loaded.reader.batches(images.of(images.files))
    again = intervene_on_data(loaded.backbone, loaded.model, unchanged, batches, edited={3})
    assert (again.flips, again.accuracy_before) == ((), again.accuracy_after)
    assert {c: (n, b) for c, (n, b, a) in again.per_class.items() if b == a} == {3: (6, again.per_class[3][1])}


def test_evaluation_counts_by_hand(loaded, images):
    chosen = [1, 2]
    scores = evaluate_model(loaded.backbone, loaded.model, loaded.reader.batches(images.of(chosen)), chosen)
    model, right, among, agree, total = loaded.model, 0, 0, 0, 0
    for batch in loaded.reader.batches(images.of(chosen)):
        reading = loaded.backbone.read(batch.crops)
        parts = logit_parts(model, pooled_rows(reading.rows, model.placed))
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


def test_after_an_edit_of_one_class_the_others_are_answered_by_the_network(loaded, toy):
    crop = loaded.crop(toy.image(2))[None]
    reading = loaded.backbone.read(crop)
    edited = apply_edits(loaded.model, [find_edit(loaded.model, 2, 2, 1, 0.0)])
    (answer,) = answers_of(loaded.backbone, edited, crop)
    exact = logit_parts(edited.exact, pooled_rows(reading.rows.double(), edited.placed)).logits[0]
    network = reading.logits[0].double()
    assert torch.equal(answer.logits[[0, 1, 3]], network[[0, 1, 3]])
    assert float(answer.logits[2]) == pytest.approx(float(exact[2]), abs=1e-9)
    assert abs(float(network[2] - exact[2])) > 0.1
    everywhere = apply_edits(loaded.model, [Edit(class_index=-1, prototype_id=0, factor=0.0)])
    (answer,) = answers_of(loaded.backbone, everywhere, crop)
    exact = logit_parts(everywhere.exact, pooled_rows(reading.rows.double(), edited.placed)).logits[0]
    assert torch.allclose(answer.logits, exact, atol=1e-9)
