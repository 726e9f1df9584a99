"""A trained network on a few real images: quick, but no toy."""

import json

import pytest

import protonmf_cli
from toys import run

CLASSES = ("n02007558_flamingo", "n03452741_grand_piano", "n02110341_dalmatian")


@pytest.fixture(scope="module")
def flamingo(shared, tmp_path_factory):
    """ResNet18 of 24 classes, converted on 14 images of three of them."""
    folder = tmp_path_factory.mktemp("real")
    for name in CLASSES:
        for split in ("train", "val"):
            target = folder / "data" / split / name
            target.mkdir(parents=True)
            for image in sorted((shared / "data" / "caltech101_imagenet" / split / name).iterdir())[:14]:
                (target / image.name).symlink_to(image)
    code, out, err = run(
        "convert",
        f"local-dir:{shared / 'models' / 'resnet18.caltech24'}",
        "--data",
        folder / "data",
        "-o",
        folder / "m.safetensors",
        "--json",
    )
    assert code == 0, err
    return folder, json.loads(out)


def test_exact_with_some_of_the_classes(flamingo):
    folder, report = flamingo
    assert (report["classes"], report["classes_with_images"], report["prototypes"]) == (24, 3, 9)
    assert report["agreement"] == 1
    assert report["max_abs_logit_difference"] <= 1e-4
    code, out, _ = run("evaluate", "--data", folder / "data", "--model", folder / "m.safetensors", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["restricted"]["accuracy"]["prototype_model"] >= 0.9


def test_a_class_without_images_is_said_to_be_made_of_others(flamingo, shared):
    folder, _ = flamingo
    image = sorted((shared / "data/caltech101_imagenet/val/n04147183_schooner").iterdir())[0]
    code, out, err = run(
        "explain", image, "--model", folder / "m.safetensors", "--among", "all", "--png", folder / "e.png"
    )
    assert code == 0, err
    said = " ".join(out.split())
    assert "has no prototypes of its own in this model: its rows are of other classes" in said
    assert "more of its logit is residual. The best class with prototypes is" in said
    code, out, _ = run("explain", image, "--model", folder / "m.safetensors", "--among", "all", "--json")
    found = json.loads(out)
    owners = {c["owner_index"] for c in found["contributions"]}
    assert len(owners) == 3 and found["class_index"] not in owners  # all there are: fewer than --near + 1
    assert found["without_prototypes"]
    total = sum(c["contribution"] for c in found["contributions"]) + found["residual"]["contribution"] + found["bias"]
    assert total == pytest.approx(found["logit"], abs=1e-4)
    words = ("--class", "schooner", "--zero", 1, "--model", folder / "m.safetensors")
    code, out, err = run("intervene", image, *words)
    assert (code, out) == (3, "")
    assert "has no prototypes of its own in this model; its rows are of other classes" in err


def test_removing_the_largest_contribution_lowers_the_logit(flamingo):
    folder, _ = flamingo
    loaded = protonmf_cli.load(folder / "m.safetensors")
    for image in sorted((folder / "data/val/n02007558_flamingo").iterdir())[:5]:
        found = loaded.explain(image, "flamingo")
        largest = max(found.contributions, key=lambda c: c.contribution)
        assert largest.owner_index == found.class_index
        edited = loaded.scale("flamingo", {largest.prototype: 0.0})
        assert edited.predict(image, "flamingo").logit == pytest.approx(found.logit - largest.contribution, abs=1e-4)
        assert largest.contribution > 0
