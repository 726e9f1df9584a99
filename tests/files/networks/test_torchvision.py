"""Classifiers of torchvision that want images of one size."""

import pytest
import torch
from torchvision import models
from torchvision.models._api import WeightsEnum

from protonmf_cli.files.networks import torchvision_networks
from protonmf_cli.files.networks.request import BackboneRequest


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_transformer_is_built_for_the_images_of_its_weights(pretrained, monkeypatch):
    with torch.device("meta"):
        trained = models.get_model("vit_b_16", image_size=384).state_dict()
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda *_, **__: trained)
        name = "torchvision:vit_b_16:IMAGENET1K_SWAG_E2E_V1"
        found = torchvision_networks.load(BackboneRequest(name=name, pretrained=pretrained))
        again = torchvision_networks.rebuild(found.architecture, found.arguments)
    assert found.config["input_size"] == (3, 384, 384)
    assert found.network(torch.empty(1, 3, 384, 384, device="meta")).shape == (1, 1000)
    again.load_state_dict(found.network.state_dict(), assign=True)


def test_a_transformer_is_built_for_the_images_that_are_asked_for():
    request = BackboneRequest(name="torchvision:vit_b_16", pretrained=False, img_size=64)
    with torch.device("meta"):
        found = torchvision_networks.load(request)
    assert found.network(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 1000)
