"""A whole ProtoPNet on real handwritten digits, from the untrained network of the demonstration."""

import json

import pytest

from protonmf_cli.files.images.digits import save_network, untrained_network, write_digits
from protonmf_cli.jobs.loaded import load
from protonmf_cli.pipelines.demo_training import train_classifier
from toys import run


@pytest.mark.slow
def test_digits(tmp_path):
    train, _ = write_digits(tmp_path / "data")
    network = untrained_network(0)
    train_classifier(network, train.pixels, train.labels, epochs=4, seed=0)
    save_network(tmp_path / "network", network)
    code, out, err = run(
        "protopnet", "train", f"local-dir:{tmp_path / 'network'}", "--data", tmp_path / "data", "-o",
        tmp_path / "digits.safetensors", "--epochs", 5, "--warm-epochs", 2, "--cycles", 1, "--device", "cpu", "--json", "-q",
    )  # fmt: skip
    assert code == 0, err
    report = json.loads(out)
    assert report["accuracy"]["test"] > 0.95
    assert report["push"]["duplicates"] == 0 and report["push"]["last_layer"]["kkt"] <= 1e-6
    model = load(tmp_path / "digits.safetensors").model
    assert model.card.measured.distance_from_own_patch < 1e-3
    for c in range(10):
        sources = [model.examples.sources[model.examples.of(j)[0]].path for j in model.own(c)]
        assert len(sources) == 10 and len(set(sources)) >= 5
    code, out, err = run(
        "protopnet", "evaluate", tmp_path / "digits.safetensors", "--data", tmp_path / "data", "--json"
    )
    assert code == 0, err
    quality = json.loads(out)
    assert quality["accuracy"] == report["accuracy"]["test"]
    assert quality["prototypes"]["unique"] == 100 and quality["prototypes"]["fewest_images_of_a_class"] >= 5
    assert quality["purity"] > 0.7
