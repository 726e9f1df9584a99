"""Checkpoints whose names are not the network's: prefixes of training frameworks, names of other libraries."""

import pytest
import timm
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest

CLASSES = 16


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    network = timm.create_model("test_vit", num_classes=CLASSES)
    torch.nn.init.normal_(network.head.weight)
    return network.state_dict()


def loaded(file, weights):
    torch.save(weights, file)
    return load_backbone(BackboneRequest(name="test_vit", weights=file, model_args={"num_classes": CLASSES}))


def prefixed(weights, prefix):
    return {prefix + name: each for name, each in weights.items()}


@pytest.mark.parametrize(
    ("around", "prefix", "others"),
    [
        (lambda w: w, "", ""),
        (lambda w: {"state_dict": prefixed(w, "model."), "epoch": 3}, "model.", ""),
        (lambda w: {"state_dict": prefixed(w, "net.backbone.")}, "net.backbone.", ""),
        (
            lambda w: {"state_dict": prefixed(w, "model.") | prefixed(w, "teacher.model.")},
            "model.",
            f", and {len(timm.create_model('test_vit').state_dict())} other tensors (first teacher.model.cls_token)",
        ),
        (lambda w: prefixed(w, "module."), "", ""),  # which timm takes off by itself
    ],
    ids=["none", "Lightning", "two deep", "student and teacher", "DataParallel"],
)
def test_a_prefix_is_taken_off_and_said(trained, tmp_path, around, prefix, others):
    backbone, notes = loaded(tmp_path / "last.ckpt", around(trained))
    for name, each in backbone.network.state_dict().items():
        assert torch.equal(each, trained[name])
    said = f"of {tmp_path}/last.ckpt the prefix {prefix!r} is left out of the names{others}"
    assert notes == ([said] if prefix else [])


def test_weights_that_are_not_all_there_are_refused(trained, tmp_path):
    some = {f"model.{name}": each for name, each in trained.items() if name != "norm.weight"}
    with pytest.raises(
        InputError, match=r"\(without the prefix 'model.' of its names\) does not fit test_vit: Missing"
    ):
        loaded(tmp_path / "last.ckpt", {"state_dict": some})
    with pytest.raises(InputError, match=r"does not fit test_vit: Unexpected key\(s\) in state_dict: \"temperature\""):
        loaded(tmp_path / "last.ckpt", trained | {"temperature": torch.ones(1)})
    with pytest.raises(
        InputError, match=r"holds no state dict: names with tensors, alone or under state_dict or model"
    ):
        loaded(tmp_path / "last.ckpt", {"state_dict": {"epoch": 3}})


def test_the_image_tower_of_open_clip_in_a_network_of_timm(trained, tmp_path):
    tower = {f"visual.trunk.{name}": each for name, each in trained.items() if not name.startswith("head.")}
    whole = tower | {"visual.head.proj.weight": trained["head.weight"], "logit_scale": torch.ones(())}
    backbone, _ = loaded(tmp_path / "clip.pt", whole)
    assert torch.equal(backbone.network.head.weight, trained["head.weight"])
    assert torch.equal(backbone.network.blocks[0].mlp.fc1.weight, trained["blocks.0.mlp.fc1.weight"])
    assert not backbone.network.head.bias.any()
