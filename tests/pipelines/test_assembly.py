"""The assembly on drawn classes: each is visited three times, in pieces or whole, and what is measured is counted again."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

import toys
from benchmarks.assembly_cost import DrawnClasses, drawn_backbone
from protonmf_cli.files.store import load_model
from protonmf_cli.maths.metrics import logit_share
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.readouts.readout import spread
from protonmf_cli.models.response import logit_parts
from protonmf_cli.options import ConversionOptions
from protonmf_cli.pipelines.conversion import sums, training_figures, usual_images
from protonmf_cli.pipelines.conversion.assembly import assemble_model
from protonmf_cli.pipelines.conversion.sums import sums_of

CLASSES, IMAGES, WIDTH = 5, 12, 24
OPTIONS = ConversionOptions(near=2, stability=False)


def drawn(pooled=1):
    backbone = drawn_backbone(CLASSES, WIDTH)
    if pooled > 1:
        backbone = replace(backbone, readout=replace(backbone.readout, unplaced=("class token",)))
    return backbone, DrawnClasses(backbone.readout.vectors, IMAGES, 2, sums=pooled, side=7)


def assembled(pooled=1, options=OPTIONS):
    backbone, finished = drawn(pooled)
    return backbone, finished, assemble_model(backbone, finished, options, data=DataFacts())


@pytest.mark.parametrize("reconstruction", ["amounts", "paper"])
def test_a_class_is_visited_three_times_at_most(reconstruction):
    options = replace(OPTIONS, reconstruction=reconstruction, near=2 if reconstruction == "amounts" else 0)
    _, finished, _ = assembled(options=options)
    assert finished.visits == Counter(dict.fromkeys(range(CLASSES), 3 if reconstruction == "amounts" else 2))


@pytest.mark.parametrize("pooled", [1, 2])
def test_sums_are_those_of_all_images(pooled):
    _, finished = drawn(pooled)
    found = sums_of(finished)
    parts = [finished[c] for c in range(CLASSES)]
    whole, unit = [], []
    for n, part in enumerate(parts):
        rows = part.pooled.double()
        length_one = torch.nn.functional.normalize(rows[:, 0], dim=1)
        assert torch.allclose(found.projected[n], part.prototypes.double() @ rows[:, 0].mean(dim=0))
        assert torch.allclose(found.mean_at_length_one[n], length_one.mean(dim=0).float())
        whole.append(rows.sum(dim=1) - rows.sum(dim=1).mean(dim=0))
        unit.append(length_one - length_one.mean(dim=0))
    for covariance, rows in ((found.within, torch.cat(whole)), (found.within_at_length_one, torch.cat(unit))):
        assert torch.allclose(covariance, rows.mT @ rows / len(rows))
    rest = torch.cat([part.pooled[:, 1:].sum(dim=1) for part in parts]).double().mean(dim=0)
    assert torch.allclose(found.unplaced_mean, rest)
    assert found.unplaced_mean.any() == (pooled > 1)


@pytest.mark.parametrize("pooled", [1, 2])
def test_pieces_of_classes_give_what_whole_classes_give(pooled, monkeypatch):
    _, _, whole = assembled(pooled)
    for module in (sums, training_figures, usual_images):
        monkeypatch.setattr(module, "BLOCK", 5)
    monkeypatch.setattr(training_figures, "LOGITS", 4 * CLASSES)
    monkeypatch.setattr(usual_images, "COLUMNS", 7)
    _, _, pieces = assembled(pooled)
    for name in ("usual", "unplaced_mean", "edit_readers"):
        assert torch.allclose(getattr(whole.amounts, name), getattr(pieces.amounts, name), rtol=1e-4, atol=1e-6)
    for name in ("mean", "covariance", "rest", "distances"):
        one, other = (getattr(model.amounts.images, name) for model in (whole, pieces))
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-7), name
    one, other = (model.card.conversion for model in (whole, pieces))
    assert one.per_class.keys() == other.per_class.keys()
    assert one.agreement == other.agreement
    assert one.residual_share == pytest.approx(other.residual_share, abs=1e-6)
    assert whole.card.readout.relative_difference == pytest.approx(pieces.card.readout.relative_difference, rel=1e-5)


@pytest.mark.parametrize("pooled", [1, 2])
def test_figures_are_those_of_every_image_s_logits(pooled):
    backbone, finished, model = assembled(pooled)
    exact, shares, spreads, agree, right = model.exact, [], [], 0, {}
    for c in range(CLASSES):
        part = finished[c]
        parts = logit_parts(exact, part.pooled.double())
        target = torch.full((IMAGES,), c)
        shares.append(logit_share(parts.carried, parts.logits, target, model.active_classes))
        spreads.append(spread(part.pooled.sum(dim=1) @ backbone.readout.vectors.mT + backbone.readout.bias))
        top = parts.logits.argmax(dim=1)
        agree += int((top == part.predicted).sum())
        right[str(c)] = float((top == target).double().mean())
        found = model.card.conversion.per_class[str(c)]
        assert found.residual_share == pytest.approx(1 - float(shares[-1].quantile(0.5)), abs=1e-5)
        assert found.accuracy == right[str(c)]
    figures = model.card.conversion
    assert figures.agreement == agree / (CLASSES * IMAGES)
    assert figures.residual_share == pytest.approx(1 - float(torch.cat(shares).quantile(0.5)), abs=1e-5)
    vectors, relative = backbone.readout.vectors.double(), model.card.readout.relative_difference
    off = (model.head_vectors() - vectors).norm(dim=1).max()
    farthest = max(float(finished[c].pooled.sum(dim=1).norm(dim=1).max()) for c in range(CLASSES))
    assert relative == pytest.approx(1e-7 + float(off) * farthest / min(spreads), rel=1e-5)


def test_the_paper_s_recipe_is_measured_on_all_rows_also_where_some_have_no_place(toy, tmp_path):
    vit = toys.make_vit(replace(toy, folder=tmp_path))
    target = toys.convert(vit, tmp_path / "m.safetensors", "--recipe", "paper", "--near", 0, "--no-stability")
    card = load_model(target)[0].card
    assert card.conversion.agreement == 1
    assert card.readout.relative_difference < 1e-4
