"""`inspect` on networks: how a head would be read, and every network that cannot be converted, by its sentence."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import toys
from protonmf_cli.cli.arguments import model_arguments
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.models.backbone import probe_readout
from protonmf_cli.pipelines.conversion.network_figures import read_network
from toys import run


def inspected(*words: object) -> dict:
    code, out, err = run("inspect", *words, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_networks_folder(toy):
    seen = inspected(toy.name)
    assert seen["schema"] == "protonmf.network/1"
    assert (seen["classes"], seen["input_size"]) == (4, [3, 64, 64])
    assert seen["readout"]["kind"] == "average"
    assert seen["readout"]["grid"] == [4, 4]
    assert seen["relative_difference_float64"] <= 1e-12
    assert seen["relative_difference_float32"] <= 1e-5
    assert seen["placed_share"] == pytest.approx(1, abs=1e-5)
    assert seen["clipped_share"] == 0
    assert seen == inspected(toy.network)


def test_in_words_with_what_has_no_place(monkeypatch):
    before, asked, limit = torch.get_num_threads(), [], torch.set_num_threads
    monkeypatch.setattr(torch, "set_num_threads", lambda count: asked.append(count) or limit(count))
    code, out, err = run("inspect", "test_vit", "--no-pretrained", "--threads", 1)
    assert code == 0, err
    assert (asked, torch.get_num_threads()) == ([1, before], before)
    text = " ".join(out.split())
    assert "test_vit (test_vit), 0.4 million weights, drawn at random" in text
    assert "token-writes, 10 x 10 places, 103 rows of width 64" in text
    assert "100 of 103 rows; without a place: class token, start and biases, MLP writes; places carry" in text
    assert "of the squared rows lie below zero; a conversion splits them by sign" in text
    assert "two photographs that come with scikit-learn; drawn weights say little of what trained ones" in text
    assert max(map(len, out.splitlines())) <= 120


def test_rows_can_be_chosen_and_a_single_row_shows_nothing():
    code, out, _ = run("inspect", "test_vit", "--no-pretrained", "--rows", "cls")
    assert code == 0
    assert "single-row, no places (not spatial), 1 row of width 64" in out
    assert "contributions are exact, but no position can be shown" in out
    assert inspected("test_vit", "--no-pretrained", "--rows", "cls")["placed_share"] is None


def test_shares_are_those_of_the_rows():
    backbone, _ = load_backbone(BackboneRequest(name="test_vit", model_args={"num_classes": 3}, pretrained=False))
    toys.randomised(backbone.network)
    backbone = replace(backbone, readout=probe_readout(backbone.network, (3, 160, 160), "auto", "toy")[0])
    crops = torch.randint(0, 255, (3, 3, 160, 160), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = read_network(backbone, crops)
    rows = backbone.read(crops).rows.double().numpy()
    placed, vectors = rows[:, :100], backbone.readout.vectors.double().numpy()
    assert seen.clipped_share == pytest.approx(np.square(np.minimum(placed, 0)).sum() / np.square(placed).sum())
    shares = []
    for image in rows:
        logits = image.sum(axis=0) @ vectors.T
        best = (logits + backbone.readout.bias.double().numpy()).argmax()
        whole = logits[best] - logits.mean()
        shares.append((image[:100].sum(axis=0) @ vectors.T)[best] - (image[:100].sum(axis=0) @ vectors.T).mean())
        shares[-1] /= whole
    assert seen.placed_share == pytest.approx(np.median(shares), rel=1e-4)
    pair = read_network(backbone, crops[:2]).placed_share
    assert pair == pytest.approx(np.median(shares[:2]), rel=1e-4)


def test_layers_of_training_are_switched_off():
    seen = inspected(
        "test_resnet", "--no-pretrained", "--model-arg", "drop_rate=0.5", "--model-arg", "drop_path_rate=0.5"
    )
    assert seen["relative_difference_float64"] <= 1e-12


def test_img_size_where_timm_can():
    assert inspected("swin_tiny_patch4_window7_224", "--no-pretrained", "--img-size", 64)["readout"]["grid"] == [2, 2]
    assert inspected("test_resnet", "--no-pretrained", "--img-size", 96)["input_size"] == [3, 96, 96]
    assert inspected("test_vit", "--no-pretrained", "--model-arg", "img_size=96")["readout"]["grid"] == [6, 6]
    tall = inspected("test_vit", "--no-pretrained", "--model-arg", "img_size=(96, 64)")
    assert (tall["input_size"], tall["readout"]["grid"]) == ([3, 96, 64], [6, 4])


def test_grey_images():
    seen = inspected("test_resnet", "--no-pretrained", "--model-arg", "in_chans=1")
    assert seen["input_size"] == [1, 160, 160]
    assert seen["relative_difference_float32"] <= 1e-5


def test_places_follow_the_image_and_untrained_classifiers_of_zeros_are_drawn():
    seen = inspected("test_convnext", "--no-pretrained")
    assert seen["quadrants_followed"] == 4
    assert inspected("hiera_tiny_224", "--no-pretrained", "--img-size", 64)["readout"]["kind"] == "scaled"


@pytest.mark.parametrize("pair", ["a={[1]:2}", "a=1+", "a=word", "a='"])
def test_values_that_are_no_python_are_words(pair):
    assert model_arguments([pair]) == {"a": pair.removeprefix("a=")}
    assert model_arguments(["a=True", "b=(1, 2)", "c=0.5"]) == {"a": True, "b": (1, 2), "c": 0.5}


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["resnet18", "--no-pretrained", "--model-arg", "num_classes=0"], 4, "resnet18 has no classifier (num_classes is 0), so there are no logits to explain. Give a checkpoint with a head: --weights FILE --num-classes C."),
        (["resnet18", "--no-pretrained", "--model-arg", "num_classes=-3"], 4, "resnet18 has no classifier"),
        (["vit_tiny_patch16_dinov3_qkvb", "--no-pretrained"], 4, "vit_tiny_patch16_dinov3_qkvb has no classifier (num_classes is 0)"),
        (["qwen3_vit_88m_enc", "--no-pretrained", "--num-classes", 5], 4, "qwen3_vit_88m_enc is an encoder and cannot classify. Choose a classification model, e.g. resnet50."),
        (["test_resnet", "--no-pretrained", "--model-arg", "in_chans=4"], 3, "test_resnet reads images of 4 channels; those of 1 (grey) and 3 (colour) can be read."),
        (["resnet5000", "--no-pretrained"], 2, "timm has no model called 'resnet5000'. Did you mean resnet50"),
        (["levit_128s", "--no-pretrained", "--img-size", 100], 3, "levit_128s cannot read images of (3, 100, 100)"),
        (["test_maxvit", "--no-pretrained", "--img-size", 100], 3, "test_maxvit cannot read images of (3, 100, 100)"),
        (["xcit_nano_12_p8_224", "--no-pretrained", "--img-size", 100], 2, "xcit_nano_12_p8_224 cannot be built with {'img_size': 100}"),
        (["test_vit", "--no-pretrained", "--class", "dog"], 2, "--class cannot be given here: test_vit is a network, not a model file."),
        (["test_vit", "--no-pretrained", "--model", "m.safetensors"], 2, "--model cannot be given here: test_vit is a network, not a model file."),
        (["test_vit", "--model-arg", "checkpoint_path=w.pth"], 2, "--model-arg checkpoint_path says how timm loads a network. Weights are given with --weights FILE."),
        (["test_vit", "--weights", "."], 3, "the checkpoint . is a folder, not a file."),
        (["nowhere.safetensors"], 3, "there is no prototype model at nowhere.safetensors"),
        (["nowhere.safetensors", "--rows", "cls"], 2, "--rows cannot be given here: nowhere.safetensors is a model file, which keeps them."),
    ],
)  # fmt: skip
def test_refusals(words, code, sentence):
    found, out, err = run("inspect", *words)
    assert (found, out) == (code, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return toys.randomised(timm.create_model("test_resnet", num_classes=4)).state_dict()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_checkpoints_in_other_number_types_are_read_in_float32(checkpoint, dtype, tmp_path):
    file = tmp_path / "weights.safetensors"
    cast = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in checkpoint.items()}
    safetensors.torch.save_file(cast, file)
    seen = inspected("test_resnet", "--weights", file, "--num-classes", 4)
    assert seen["relative_difference_float64"] <= 1e-12
    assert seen["relative_difference_float32"] <= 1e-5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("std", [0.2, 0.0, 0.2]),
        ("std", [0.2, -1, 0.2]),
        ("mean", [0.5, float("nan"), 0.5]),
        ("mean", ["a", "b", "c"]),
        ("mean", [0.5, 0.5]),
        ("input_size", [3, 0, -4]),
        ("input_size", [3, 64.5, 64]),
        ("input_size", [3, 100_000, 100_000]),
        ("crop_pct", -1),
        ("crop_pct", 1e-9),
        ("crop_pct", "a"),
        ("interpolation", "sinc"),
    ],
)
def test_preprocessing_that_cannot_be_used(toy, name, value, tmp_path):
    shutil.copytree(toy.network, tmp_path / "network")
    config = json.loads((tmp_path / "network" / "config.json").read_text())
    config["pretrained_cfg"][name] = value
    (tmp_path / "network" / "config.json").write_text(json.dumps(config))
    code, out, err = run("inspect", tmp_path / "network")
    assert (code, out) == (3, "")
    assert "the preprocessing of" in err and f"cannot be used: {name} " in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["red things"], "1 labels"),
        ("abcd", "something else than a list of labels"),
        ([None, "a", "b", "c"], "something else than a list of labels"),
    ],
)
def test_labels_that_do_not_fit_the_classifier(toy, labels, found, tmp_path):
    shutil.copytree(toy.network, tmp_path / "network")
    config = json.loads((tmp_path / "network" / "config.json").read_text())
    config["label_names"] = labels
    (tmp_path / "network" / "config.json").write_text(json.dumps(config))
    code, out, err = run("inspect", tmp_path / "network")
    assert (code, out) == (3, "")
    assert f"/network hold {found}, but its classifier has 4 classes." in err


@pytest.mark.parametrize("descriptions", [["a", "b"], "text", {"red things": None, "blue things": 5}])
def test_descriptions_that_are_none_are_left_out(toy, descriptions, tmp_path):
    shutil.copytree(toy.network, tmp_path / "network")
    config = json.loads((tmp_path / "network" / "config.json").read_text())
    config["label_descriptions"] = descriptions
    (tmp_path / "network" / "config.json").write_text(json.dumps(config))
    classes = load_backbone(BackboneRequest(name=str(tmp_path / "network")))[0].classes
    assert [each.label for each in classes] == list(toys.LABELS)
    assert [each.description for each in classes] == ["", "", "5" if isinstance(descriptions, dict) else "", ""]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "config.json cannot be read as JSON"),
        ("[1]", 'config.json does not name a timm architecture: it wants an object with "architecture": "..."'),
        ('{"num_classes": 4}', "config.json does not name a timm architecture"),
        ('{"architecture": "nope"}', "config.json names the architecture 'nope', which this timm does not have"),
        ('{"architecture": "test_vit", "pretrained_cfg": 3}', "'pretrained_cfg' must be an object, not 3"),
        (
            '{"architecture": "test_vit", "num_classes": 4, "pretrained_cfg": {"global_pool": "max"}}',
            "cannot be built from its config.json: PretrainedCfg",
        ),
        ('{"architecture": "test_vit", "model_args": "x"}', "'model_args' must be an object, not 'x'"),
    ],
)
def test_configurations_that_are_none(text, sentence, tmp_path):
    (tmp_path / "config.json").write_text(text)
    safetensors.torch.save_file({"head.bias": torch.zeros(4)}, tmp_path / "model.safetensors")
    code, out, err = run("inspect", tmp_path)
    assert (code, out) == (3, "")
    assert sentence in err
    assert len(err.strip().splitlines()) == 1


def test_a_folder_that_says_another_size_than_timm_builds_is_read_with_img_size(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=96, depth=2)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": "vit_tiny_patch16_224", "num_classes": 2, "model_args": {"depth": 2}}
    config["pretrained_cfg"] = {"input_size": [3, 96, 96], "num_classes": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code, _, err = run("inspect", tmp_path)
    assert code == 3
    assert "(96) doesn't match model (224). If it was trained for another size, give that with --img-size." in err
    assert inspected(tmp_path, "--img-size", 96)["readout"]["grid"] == [6, 6]


def test_one_class_is_one():
    assert ", 1 class\n" in run("inspect", "test_vit", "--no-pretrained", "--num-classes", 1)[1]


def test_a_number_that_is_none_in_the_head(checkpoint, tmp_path):
    file = tmp_path / "weights.safetensors"
    broken = {name: tensor.clone() for name, tensor in checkpoint.items()}
    broken["fc.weight"][1, 2] = torch.nan
    safetensors.torch.save_file(broken, file)
    code, _, err = run("inspect", "test_resnet", "--weights", file, "--num-classes", 4)
    assert code == 3
    assert "the weights of test_resnet hold NaN or infinite numbers (first in fc.weight); nothing was converted." in err


def test_a_random_classifier_on_pretrained_weights_is_refused(monkeypatch):
    """timm drops the trained classifier when another number of classes is asked for, and says so in its log only."""
    network = timm.create_model("test_resnet", num_classes=5)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: network)
    code, _, err = run("inspect", "test_resnet", "--num-classes", 5)
    assert code == 3
    assert "the pretrained weights of test_resnet have 1000 classes, so a classifier of 5 would be random. " in err
    network.pretrained_cfg = {**network.pretrained_cfg, "num_classes": 0}
    assert "have no classes, so a classifier of 5 would be random" in run("inspect", "test_resnet")[2]
