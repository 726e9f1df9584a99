"""Whole conversions of trained networks on real images: the promises of the README, measured."""

import json

import pytest
import torch

import pages
import protonmf_cli
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.maths.metrics import logit_share, median_share
from toys import run

pytestmark = pytest.mark.slow

NETWORKS = [
    ("mobilenetv2_100.imagenet", "average", 0.959),
    ("resnet18.caltech24", "average", 0.863),
    ("tf_mobilenetv3_large_minimal_100.imagenet", "gated", 0.959),
    ("deit_tiny_patch16_224.imagenet", "token-writes", 0.969),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=[name for name, _, _ in NETWORKS])
def trained(request, shared, tmp_path_factory):
    """One network, converted on the training images with three prototypes per class."""
    name, kind, accuracy = request.param
    target = tmp_path_factory.mktemp("trained") / "prototypes.safetensors"
    data = shared / "data" / "caltech101_imagenet"
    words = ("--data", data, "-p", 3, "--cache-features", target.parent / "features", "--json")
    code, out, err = run("convert", f"local-dir:{shared / 'models' / name}", *words, "-o", target)
    assert code == 0, err
    return target, json.loads(out), data, kind, accuracy


def test_conversion_is_exact(trained):
    _, report, _, kind, _ = trained
    assert (report["classes_with_images"], report["prototypes"]) == (24, 72)
    assert report["max_abs_logit_difference"] <= 1e-4
    assert report["agreement"] == 1
    assert report["readout"]["kind"] == kind


def test_accuracy_is_untouched_on_val(trained):
    target, _, data, _, accuracy = trained
    code, out, err = run("evaluate", "--data", data, "--model", target, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["images"] == 291
    assert found["agreement"]["prototype_model"] == 1
    assert found["exactness"]["max_abs_logit_difference"] <= 1e-4
    for who in ("black_box", "prototype_model"):
        assert found["restricted"]["accuracy"][who] == pytest.approx(accuracy, abs=5e-4)


def test_every_ledger_adds_up_on_val(trained):
    target, _, data, _, _ = trained
    loaded = protonmf_cli.load(target)
    images = sorted((data / "val").rglob("*.jpg"))[::6]
    assert len(images) > 45
    for image in images:
        found = loaded.explain(image)
        assert (found.unplaced is not None) == bool(loaded.backbone.readout.unplaced)
        total = sum(c.contribution for c in found.contributions) + found.residual + (found.unplaced or 0) + found.bias
        assert total == pytest.approx(found.logit, abs=1e-4)
        for c in found.contributions:  # number and picture say the same
            assert c.maps["presence"].sum() == pytest.approx(c.evidence, abs=1e-5)
            assert c.maps["contribution"].sum() == pytest.approx(c.contribution, abs=1e-5)


CARRIED = {  # logit share; accuracy, that of own prototypes alone, agreement; cancellation, its 90 %; cosine of halves
    "average": (0.91, 0.949, 0.87, 0.95, 1.15, 1.3, 0.88),
    "token-writes": (0.89, 0.952, 0.95, 0.965, 1.55, 1.9, 0.96),
}


@pytest.mark.parametrize("trained", [NETWORKS[0], NETWORKS[3]], indirect=True, ids=["mobilenetv2", "deit_tiny"])
def test_prototypes_carry_the_decision_and_hardly_cancel(trained, shared):
    target, report, data, kind, _ = trained
    share, accurate, own_only, agreeing, median, high, stable = CARRIED[kind]
    code, out, err = run("evaluate", "--data", data, "--model", target, "--table", "cancellation", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["logit_share"]["prototypes_only"] >= share
    assert found["restricted"]["accuracy"]["prototypes_only"] >= accurate
    assert found["restricted"]["agreement"]["prototypes_only"] >= agreeing
    assert report["stability"] >= stable
    right = next(row for row in found["tables"]["cancellation"]["rows"] if row["images_are"] == "right")
    assert right["median"] <= median and right["high"] <= high
    assert right["own"] >= 0.99  # the largest row is the class's own
    # the near classes are what lets the prototypes tell classes apart
    own = target.parent / "own.safetensors"
    words = ("--data", data, "-p", 3, "--near", 0, "--cache-features", target.parent / "features", "-q")
    assert run("convert", report["model"], *words, "-o", own)[0] == 0
    code, out, err = run("evaluate", "--data", data, "--model", own, "--json")
    assert code == 0, err
    alone = json.loads(out)
    assert alone["restricted"]["accuracy"]["prototypes_only"] >= own_only
    assert alone["restricted"]["agreement"]["prototypes_only"] < found["restricted"]["agreement"]["prototypes_only"]


def test_no_augmented_prototype_explodes(trained):
    target, report, data, _, _ = trained
    augmented = target.parent / "augmented.safetensors"
    words = ("--data", data, "-p", 3, "--augment", "min-norm", "--cache-features", target.parent / "features")
    code, out, err = run("convert", report["model"], *words, "-o", augmented, "--json", "--force")
    assert code == 0, err
    found = json.loads(out)["augmentation"]
    assert found["changed_much"] == []
    assert found["change"]["largest"] < 10
    assert found["presence_correlation"] >= 0.8
    assert found["fallback"] == []


@pytest.mark.parametrize("trained", NETWORKS[3:], indirect=True, ids=["deit_tiny_patch16_224.imagenet"])
def test_patches_of_a_class_token_network_carry_its_decision(trained):
    """The patch rows' share of the centred true-class logit, in the median over val, is at least one."""
    target, _, data, _, _ = trained
    loaded = protonmf_cli.load(target)
    readout = loaded.backbone.readout
    images = find_images(data, "val", loaded.model.card.classes, ClassMapping())
    shares = []
    for batch in loaded.reader.batches(images.of(images.files)):
        reading = loaded.backbone.read(batch.crops)
        patches = reading.rows[:, : readout.places].sum(dim=1) @ readout.vectors.T
        goal = torch.full((len(batch.sources),), batch.class_index)
        everything = torch.arange(len(readout.bias))
        shares.append(logit_share(patches, reading.logits, goal, everything))
    assert median_share(torch.cat(shares)) >= 1.0


def test_the_report_is_small_and_does_what_intervene_does(trained, browser, tmp_path):
    target, _, data, _, _ = trained
    words = ("--data", data, "--per-class", 10, "--json")
    code, out, err = run("report", "--model", target, "-o", tmp_path / "report.html", *words)
    assert code == 0, err
    report = json.loads(out)
    assert report["images"] == 226 and report["classes"] == 24 and report["left_out"] == []
    assert report["bytes"] < 10.5e6
    with pages.opened(browser, tmp_path / "report.html", "#explain?image=60") as page:
        for each in page.query_selector_all("article.part")[:2]:
            pages.slide(page, int(each.get_attribute("data-prototype")), 0.3)
        command = pages.command_of(page, target, data)
        mine = pages.logits(page)
    code, out, err = run(*command[1:], "--json")
    assert code == 0, err
    after = {p["class_index"]: p["logit"] for p in json.loads(out)["after"]["predictions"]}
    assert list(mine) == list(after)
    assert all(abs(mine[c] - after[c]) < 1e-4 for c in mine)
