"""How usual an image is: the distance it stands on, what is planted stands out, and what cannot be known is not said."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_amount_edits import model_of

from protonmf_cli.models.amounts import LEVELS
from protonmf_cli.models.response import logit_parts
from protonmf_cli.models.results import Edit
from protonmf_cli.pipelines.conversion.sums import sums_of
from protonmf_cli.pipelines.conversion.training_figures import TrainingFigures
from protonmf_cli.pipelines.conversion.usual_images import usual_images, with_usual_images
from protonmf_cli.pipelines.explaining.intervention import apply_edits
from protonmf_cli.pipelines.explaining.unlikeness import REST_WEIGHT, SHRINKAGE, Unlikeness, UsualClass


@pytest.fixture(scope="module")
def planted():
    """A model of five classes, and their training images."""
    model, parts = sure_model()
    return with_images(model, parts), parts


def sure_model(**size):
    """A model that tells the classes of its training images apart by linear discriminants, and these images."""
    model, _, parts = model_of(images=40, unplaced=False, **size)
    means = torch.stack([part.pooled[:, 0].double().mean(dim=0) for part in parts.values()])
    off = torch.cat([part.pooled[:, 0].double() - mean for part, mean in zip(parts.values(), means, strict=True)])
    head = torch.linalg.solve(off.mT @ off / len(off), means.mT).mT
    bias = -(head * means).sum(dim=1) / 2
    return replace(model, residual=head - model.prototype_vectors, bias=bias), parts


def with_images(model, parts):
    """The model with what its training images are like, as the assembly looks at them."""
    images = usual_images(model, sums_of(parts))
    if images is None:
        return model
    readout = SimpleNamespace(vectors=model.head_vectors())
    figures = TrainingFigures(model, SimpleNamespace(device=torch.device("cpu"), readout=readout), images)
    seen = {}
    for c, part in parts.items():
        count = len(part.pooled)
        seen[c] = SimpleNamespace(**vars(part), images=range(count), predicted=torch.zeros(count))
    found = {c: measured.levels for c, _, measured in figures.of_all(seen.items())}
    return with_usual_images(model, images, {c: each for c, each in found.items() if each is not None})


def pooled_of(parts, c):
    return parts[c].pooled.double()


def logits_of(model, pooled):
    return logit_parts(model.exact, pooled).logits


def surely(model, c, count):
    """Logits that leave no doubt of a class."""
    return 1e3 * torch.nn.functional.one_hot(torch.full((count,), c), len(model.bias)).double()


def image_of(model, c, amounts, rest=None):
    """An image of a class: the mean of its images, with amounts of its parts changed, and a rest."""
    images = model.amounts.images
    row = images.mean[c].double() + torch.tensor(amounts, dtype=torch.float64) @ model.exact.basis(c)
    return row if rest is None else row + rest


def outside(model, c, seed=0):
    """A direction that no part of a class has."""
    basis = model.exact.basis(c).numpy()
    drawn = np.random.default_rng(seed).normal(size=basis.shape[1])
    drawn -= np.linalg.lstsq(basis.T, drawn, rcond=None)[0] @ basis
    return torch.from_numpy(drawn / np.linalg.norm(drawn))


def test_the_distance_is_mahalanobis_in_the_parts_and_one_number_outside(planted):
    model, parts = planted
    unit = {c: torch.nn.functional.normalize(pooled_of(parts, c)[:, 0], dim=1).numpy() for c in range(5)}
    off = np.concatenate([rows - rows.mean(axis=0) for rows in unit.values()])
    basis = model.exact.basis(2).numpy()
    amounts = np.linalg.lstsq(basis.T, off.T, rcond=None)[0].T
    left = off - amounts @ basis
    covariance = amounts.T @ amounts / len(off)
    spread = np.sqrt(np.diag(covariance))
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.diag(spread**2)
    other = np.linalg.lstsq(basis.T, (unit[1] - unit[2].mean(axis=0)).T, rcond=None)[0].T
    rest = unit[1] - unit[2].mean(axis=0) - other @ basis
    sides = np.einsum("ns,st,nt->n", other, np.linalg.inv(shrunk), other) / len(basis), (rest**2).sum(axis=1)
    wanted = np.sqrt((sides[0] + REST_WEIGHT * sides[1] / (left**2).sum(axis=1).mean()) / (1 + REST_WEIGHT))
    found = UsualClass(model, model.amounts.images, 2).distance(torch.from_numpy(unit[1]))
    assert found.numpy() == pytest.approx(wanted, rel=1e-3)


def test_each_training_image_is_left_out_of_its_own_class_s_mean(planted):
    model, parts = planted
    rows = torch.nn.functional.normalize(pooled_of(parts, 3)[:, 0], dim=1)
    usual, found = UsualClass(model, model.amounts.images, 3), []
    for n in range(len(rows)):
        usual.mean = torch.cat([rows[:n], rows[n + 1 :]]).mean(dim=0)
        found.append(float(usual.distance(rows[n : n + 1])))
    assert logits_of(model, pooled_of(parts, 3)).softmax(dim=1)[:, 3].min() > 0.999  # no other class counts
    wanted = np.quantile(found, np.linspace(0, 1, LEVELS))
    assert model.amounts.images.distances[3].numpy() == pytest.approx(wanted, rel=1e-3)


def test_the_middle_training_image_is_at_0_and_one_in_twenty_are_above_1(planted):
    model, parts = planted
    measure = Unlikeness.of(model)
    scores = torch.cat(
        [measure.scores(pooled_of(parts, c)[:, 0], logits_of(model, pooled_of(parts, c))) for c in range(5)]
    )
    assert float(scores.median()) == pytest.approx(0, abs=0.15)
    assert float((scores > 1).double().mean()) == pytest.approx(0.05, abs=0.03)


def test_how_bright_an_image_is_does_not_count(planted):
    model, parts = planted
    measure, read, logits = Unlikeness.of(model), pooled_of(parts, 0)[:4, 0], surely(model, 0, 4)
    assert torch.allclose(measure.scores(3 * read, logits), measure.scores(read, logits))


def test_the_amount_that_was_changed_is_named_with_the_ledger_s_own_numbers(planted):
    model, _ = planted
    usual = UsualClass(model, model.amounts.images, 1)
    for place, sign in ((0, -1), (1, 1), (3, 1)):  # two of its own, one of another class
        amounts = [0.0] * len(model.entries(1))
        amounts[place] = 30 * sign * float(usual.spread[place])
        row = 2.5 * image_of(model, 1, amounts)
        found = Unlikeness.of(model).of_image(row, surely(model, 1, 1)[0])
        named = found.amounts[0]
        assert named.prototype_id == int(model.weights.prototype[model.entries(1)[place]])
        assert math.copysign(1, named.deviations) == sign
        assert named.amount == pytest.approx(float(model.exact.readers(1)[place] @ row))
        assert named.usual == pytest.approx(float(model.exact.readers(1)[place] @ usual.mean * row.norm()))
        assert (named.amount > named.usual) == (sign > 0)
        assert found.score > 1
        owner = "" if place < 2 else f" of {named.owner_name}"
        assert f"prototype {named.prototype}{owner} is {named.amount:.2f}, usually {named.usual:.2f}" in found.said


def test_what_no_part_holds_is_said_to_be_left(planted):
    model, _ = planted
    plain = Unlikeness.of(model).of_image(image_of(model, 1, [0.0] * 6), surely(model, 1, 1)[0])
    strange = Unlikeness.of(model).of_image(
        image_of(model, 1, [0.0] * 6, 0.5 * outside(model, 1)), surely(model, 1, 1)[0]
    )
    assert plain.rest < 0.1 and plain.score < 0 and plain.share == 0
    assert strange.rest > 3 and strange.score > 1 and strange.share == 1
    assert f"what the parts leave is {strange.rest:.1f} times as far off as usual" in strange.said
    assert "less usual for class 1 than all of its training images" in strange.said
    assert plain.said.endswith("as usual for class 1 as its most usual training images")


def test_the_share_is_that_of_the_class_s_own_training_images(planted):
    model, _ = planted
    usual = UsualClass(model, model.amounts.images, 4)
    levels = usual.quantiles
    assert usual.share_below(float(levels[12])) == pytest.approx(0.6)
    assert usual.share_below(float(levels[12] + levels[13]) / 2) == pytest.approx(0.625)
    assert (usual.share_below(0.0), usual.share_below(1e3)) == (0.0, 1.0)


def test_between_two_classes_each_counts_with_its_probability(planted):
    model, parts = planted
    measure, read = Unlikeness.of(model), pooled_of(parts, 0)[:3, 0]
    one, other = (measure.distances(read, surely(model, c, 3)) for c in (0, 2))
    logits = surely(model, 0, 3) + surely(model, 2, 3)
    logits[:, 2] += math.log(3)
    assert torch.allclose(measure.distances(read, logits), 0.25 * one + 0.75 * other)
    assert (one < other).all()


def test_an_edit_leaves_amounts_as_they_are_and_the_class_that_wins_counts(planted):
    model, parts = planted
    read = pooled_of(parts, 0)[:1, 0]
    edited = apply_edits(model, [Edit(class_index=0, prototype_id=0, factor=0.0)])
    everywhere = apply_edits(model, [Edit(class_index=-1, prototype_id=0, factor=0.0)])
    for changed in (edited, everywhere):
        for c in (0, 2):
            assert Unlikeness.of(changed).distances(read, surely(model, c, 1)) == pytest.approx(
                Unlikeness.of(model).distances(read, surely(model, c, 1))
            )
    before, after = (Unlikeness.of(m).of_image(read[0], logits_of(m, read[:, None])[0]) for m in (model, edited))
    assert before.class_index == 0
    assert after.class_index == int(logits_of(edited, read[:, None]).argmax())


def test_of_a_class_without_training_images_nobody_knows(planted):
    model, parts = planted
    entries = model.weights.class_index
    bare = replace(
        model,
        bias=torch.cat([model.bias, model.bias[:1]]),
        card=replace(model.card, classes=(*model.card.classes, model.card.classes[0])),
    )
    assert len(entries) == len(bare.weights.value)
    read, logits = pooled_of(parts, 0)[:2, 0], surely(bare, 5, 2)
    logits[1] = surely(bare, 0, 1)[0]
    scores = Unlikeness.of(bare).scores(read, logits)
    assert scores.isnan().tolist() == [True, False]
    found = Unlikeness.of(bare).of_image(read[0], logits[0])
    assert (found.score, found.share, found.amounts) == (None, None, ())
    assert found.said == "not known, as this model has no training images of class 0"


def test_one_image_of_a_class_says_nothing_of_its_own_and_none_of_any_class_says_nothing():
    model, parts = sure_model()
    parts[1].pooled = parts[1].pooled[:1]
    found = with_images(model, parts)
    assert not found.amounts.images.distances[1].any()
    said = Unlikeness.of(found).of_image(pooled_of(parts, 1)[0, 0], surely(found, 1, 1)[0])
    assert said.share is None
    assert said.said.startswith(f"{said.score:.1f}, for class 1, of which this model has one training image")
    for part in parts.values():
        part.pooled = part.pooled[:1]
    assert with_images(model, parts).amounts.images is None
    assert Unlikeness.of(model) is None


def test_parts_that_span_all_rows_leave_nothing():
    model, parts = sure_model(width=6)
    found = with_images(model, parts)
    scores = Unlikeness.of(found).scores(pooled_of(parts, 0)[:, 0], surely(found, 0, 40))
    assert scores.isfinite().all() and float(scores.abs().max()) < 10
    assert Unlikeness.of(found).of_image(pooled_of(parts, 1)[0, 0], surely(found, 0, 1)[0]).rest < 0.1


@pytest.mark.parametrize("variance", [0.0, -1e-20])  # of rounding
def test_an_amount_that_never_varies_says_nothing_and_leaves_the_others_alone(planted, variance):
    model, parts = planted
    images, size = model.amounts.images, len(model.entries(0))
    covariance = images.covariance[: size**2].reshape(size, size).clone()
    covariance[0], covariance[:, 0] = 1e-12, 1e-12
    covariance[0, 0] = variance
    flat = torch.cat([covariance.flatten(), images.covariance[size**2 :]])
    usual, whole = UsualClass(model, replace(images, covariance=flat), 0), UsualClass(model, images, 0)
    rows = torch.nn.functional.normalize(pooled_of(parts, 1)[:3, 0], dim=1)
    off, rest = usual.standardised(rows)
    assert not off[:, 0].any() and torch.equal(off[:, 1:], whole.standardised(rows)[0][:, 1:])
    sub = covariance[1:, 1:].double()
    spread = sub.diagonal().sqrt()
    damped = (1 - SHRINKAGE) * sub / torch.outer(spread, spread) + SHRINKAGE * torch.eye(size - 1)
    sides = ((off[:, 1:] @ torch.linalg.inv(damped)) * off[:, 1:]).sum(dim=1) / size
    wanted = ((sides + REST_WEIGHT * rest) / (1 + REST_WEIGHT)).sqrt()
    assert usual.distance(rows).numpy() == pytest.approx(wanted.numpy(), rel=1e-6)


def test_two_images_of_one_class_alone_are_at_one_distance_and_say_nothing():
    model, parts = sure_model()
    for c, part in parts.items():
        part.pooled = part.pooled[: 2 if c == 1 else 1]
    assert with_images(model, parts).amounts.images is None
