"""What bounds hostile model files lets every honest one pass."""

from functools import partial

import pytest
import timm
import torch

from protonmf_cli.errors import ModelFileError
from protonmf_cli.files.networks import open_clip_networks
from protonmf_cli.files.networks.building import built, check_source
from protonmf_cli.models.backbone import Source


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B-32", "RN50"])
def test_the_text_tower_that_open_clip_builds_along_is_no_surplus(name):
    pytest.importorskip("open_clip")
    build = partial(open_clip_networks.rebuild, name, {"width": 512, "num_classes": 3})
    weights = build().state_dict()
    assert built(build, weights, library="open_clip").state_dict().keys() == weights.keys()


@pytest.mark.parametrize("name", ["swin_large_patch4_window7_224", "convnext_large", "vit_large_patch16_224"])
def test_a_classifier_of_very_many_classes_may_have_been_left_out(name):
    build = partial(timm.create_model, name, num_classes=21841)
    with torch.device("meta"):
        weights = {key: tensor for key, tensor in build().state_dict().items() if "head" not in key}
    assert built(build, weights, device="meta").num_classes == 21841


@pytest.mark.parametrize(
    ("library", "arguments"),
    [
        ("python", {"pretrained": True, "weights": "a/b.pt", "seed": 1234567, "url": "https://here"}),
        ("transformers", {"config": {"finetuned_from": "google/vit-base", "dataset": "a:b", "hidden_size": 8}}),
        ("timm", {"num_classes": 21841, "img_size": [224, 448], "global_pool": "avg"}),
    ],
)
def test_arguments_of_honest_networks_pass(library, arguments):
    check_source(Source(name="a", architecture="mine:build", library="python", model_args=arguments))
    architecture = "mine:build" if library == "python" else "one"
    check_source(Source(name="a", architecture=architecture, library=library, model_args=arguments))


def test_a_configuration_that_names_another_network_is_refused():
    arguments = {"config": {"backbone": "org/network", "model_type": "upernet"}}
    with pytest.raises(ModelFileError, match="'backbone' of its network names a place"):
        check_source(Source(name="a", architecture="one", library="transformers", model_args=arguments))
