"""One small architecture of each kind of head: converted, explained and drawn on crops of real photographs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import toys
from protonmf_cli.files.networks.checkpoints import save_checkpoint
from protonmf_cli.models.backbone import ClassName
from toys import run, slow

KINDS = {
    "average": ("test_resnet", {}, 96),
    "scaled": ("test_convnext", {}, 96),
    "gated": ("mobilenetv3_small_050", {}, 96),
    "max pool": ("test_resnet", {"global_pool": "max"}, 96),
    "attention-pool": ("test_vit3", {"img_size": 96}, 96),
    "token-writes": ("test_vit", {"img_size": 96}, 96),
    "token-writes and votes": ("volo_d1_224", {"img_size": 64}, 64),
    "single-row": ("vit_base_patch16_xp_224", {"img_size": 32, "depth": 2}, 32),
    "branches": ("efficientvim_m1", {}, 128),
    "image-row": ("test_resnet", {}, 96),
}
QUICK = ("token-writes",)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory) -> Path:
    """Class folders of crops of a temple and of a flower."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for label, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        for split, count in (("train", 4), ("val", 1)):
            (folder / split / label).mkdir(parents=True)
            for n in range(count):
                top, left = generator.integers(0, 200, 2)
                Image.fromarray(pixels[top : top + 200, left : left + 260]).save(folder / split / label / f"{n}.png")
    return folder


@pytest.mark.parametrize("kind", [kind if kind in QUICK else slow(kind) for kind in KINDS])
def test_convert_explain_and_intervene(kind, photographs, tmp_path):
    architecture, model_args, side = KINDS[kind]
    torch.manual_seed(0)
    network = toys.randomised(timm.create_model(architecture, num_classes=2, **model_args))
    save_checkpoint(
        tmp_path / "network",
        network,
        architecture=architecture,
        model_args=model_args,
        preprocessing=replace(toys.PREPROCESSING, input_size=(3, side, side)),
        classes=(ClassName(label="temple"), ClassName(label="flower")),
    )
    model, picture = tmp_path / "m.safetensors", tmp_path / "m.png"
    rows = ("--rows", "image") if kind == "image-row" else ()
    code, out, err = run(
        "convert", f"local-dir:{tmp_path / 'network'}", "--data", photographs, "-o", model, "-p", 2, "--near", 1,
        "--json", *rows,
    )  # fmt: skip
    assert code == 0, err
    summary = json.loads(out)
    assert summary["readout"]["kind"] == kind
    assert summary["agreement"] == 1
    spatial = summary["readout"]["spatial"]
    assert ("no position can be shown" in err) == (not spatial)

    image = photographs / "val" / "flower" / "0.png"
    code, out, err = run("explain", image, "--model", model, "--png", picture, "--json")
    assert code == 0, err
    case = json.loads(out)
    assert abs(case["ledger_error"]) <= 1e-4
    assert picture.stat().st_size > 10_000
    parts = [part["contribution"] for part in case["contributions"]]
    rest = case["residual"]["contribution"] + case["bias"] + (case["no_place"] or 0)
    assert sum(parts) + rest == pytest.approx(case["logit"], abs=1e-4)
    assert len(parts) == 3
    assert (case["no_place"] is not None) == (kind in WITHOUT_PLACE)
    for part in case["contributions"]:
        assert (part["map"] is not None) == spatial
        assert part["contribution"] == pytest.approx(part["weight"] * part["evidence"])
        if spatial:
            assert part["localised"] == pytest.approx(np.sum(part["map"]), abs=1e-4)
            assert part["contribution"] == pytest.approx(part["localised"], abs=1e-6)
            assert np.sum(part["presence"]) == pytest.approx(part["evidence"], abs=1e-6)
    if spatial:
        assert np.sum(case["residual"]["map"]) == pytest.approx(case["residual"]["contribution"], abs=1e-4)

    edited = tmp_path / "edited.safetensors"
    words = ("intervene", image, "--model", model, "--class", "flower", "--zero", 1, "-o", edited, "--json")
    code, out, err = run(*words)
    assert code == 0, err
    found = json.loads(out)
    assert found["schema"].startswith("protonmf.intervention/")
    # an edit takes its own row away, and of "no place" what the prototype has of it; nothing else changes
    before = case if case["label"] == "flower" else explained(image, model)
    after = explained(image, edited)
    assert after["logit"] == pytest.approx(found["after"]["logit"], abs=1e-5)
    assert after["ledger_error"] < 1e-6
    assert after["bias"] == pytest.approx(before["bias"], abs=1e-4)
    assert after["residual"]["contribution"] == pytest.approx(before["residual"]["contribution"], abs=1e-4)
    was, now = ({c["prototype_id"]: c for c in each["contributions"]} for each in (before, after))
    (gone,) = (j for j, c in was.items() if (c["owner_label"], c["prototype"]) == ("flower", 1))
    assert now[gone]["contribution"] == 0
    assert all(now[j]["contribution"] == pytest.approx(was[j]["contribution"], abs=1e-6) for j in was if j != gone)
    lost = was[gone]["contribution"] + (before["no_place"] or 0) - (after["no_place"] or 0)
    assert found["before"]["logit"] - found["after"]["logit"] == pytest.approx(lost, abs=1e-4)

    code, out, err = run("audit", "--model", model, "--data", photographs, "--json")
    assert code == 0, err
    ranking = json.loads(out)["ranking"]
    assert len(ranking) == 4 and all((each["transplant"] is not None) <= spatial for each in ranking)
    words = ("--everywhere", "--class", ranking[0]["label"], "--zero", ranking[0]["prototype"], "--data", photographs)
    code, out, err = run("intervene", "--model", model, *words, "--json")
    assert code == 0, err
    assert json.loads(out)["after"]["accuracy"] == ranking[0]["without"]["accuracy"][1]


WITHOUT_PLACE = {"attention-pool", "token-writes", "token-writes and votes"}


def explained(image, model):
    code, out, err = run("explain", image, "--model", model, "--class", "flower", "--json")
    assert code == 0, err
    return json.loads(out)
