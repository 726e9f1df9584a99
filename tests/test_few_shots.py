"""The few-shot model on a trained network and real images."""

import json

import pytest

from toys import run


@pytest.mark.slow
def test_flowers_from_five_images_each(shared, tmp_path):
    network = f"local-dir:{shared / 'models' / 'mobilenetv2_100.imagenet'}"
    flowers = shared / "data" / "flowers17"
    few = tmp_path / "few.safetensors"
    code, out, err = run("fewshot", "fit", network, "--data", flowers, "--shots", 5, "-o", few, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["images"] == 30 and report["prototypes"] == 6
    assert report["accuracy"]["test"] > 0.85
    assert all(p["kind"] == "pure" for p in report["interpretation"]["prototypes"])
    image = sorted((flowers / "val" / "09_sunflower").iterdir())[0]
    code, out, _ = run("fewshot", "predict", image, "--model", few, "--json")
    found = json.loads(out)
    assert found["predictions"][0]["label"] == "09_sunflower" and found["matches"][0]["match"] > 0.9
    assert {n["label"] for n in found["neighbours"][:3]} == {"09_sunflower"}


@pytest.mark.slow
def test_characters_are_told_at_least_as_well_as_by_the_baselines(shared, tmp_path):
    code, out, err = run(
        "fewshot", "benchmark", f"local-dir:{shared / 'models' / 'mobilenetv2_100.imagenet'}", "--data",
        shared / "data" / "omniglot_background.zip", "--ways", "10", "--shots", 5, "--subsets", 3, "--seed", 7,
        "--cache-features", tmp_path, "--json",
    )  # fmt: skip
    assert code == 0, err
    found = {row["method"]: row for row in json.loads(out)["rows"]}
    assert found["prototypes-l2"]["mean"] > max(found["single-prototype"]["mean"], found["knn"]["mean"])
    assert found["prototypes-l2"]["mean"] >= found["softmax-l2"]["mean"] - 0.01
    assert found["prototypes-l2"]["mean"] > 0.9 and found["prototypes-l1"]["zero_weights"] > 0.8
