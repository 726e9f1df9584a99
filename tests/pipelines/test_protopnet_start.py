"""Where a ProtoPNet's new layers start."""

import pytest
import torch
from torch import nn

from protonmf_cli.models.backbone import ClassName, Preprocessing, Source
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.protopnet.latent_patches import feature_map
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.protopnet.setup import new_protopnet
from protonmf_cli.pipelines.protopnet.start import DIRECTION, OTHER, start_add_on, start_from_data

PREPROCESSING = Preprocessing(
    input_size=(3, 4, 4), interpolation="bicubic", crop_pct=1.0, crop_mode="center", mean=(0.0,) * 3, std=(1 / 255,) * 3
)


class Pixels(nn.Module):
    """Features are linear in the pixels: 3 channels mixed into 12, of which the last is constant."""

    num_features = 12

    def __init__(self):
        super().__init__()
        mixing = torch.randn(12, 3, generator=torch.Generator().manual_seed(1))
        mixing[-1] = 0
        self.mixing = nn.Conv2d(3, 12, 1)
        nn.init.zeros_(self.mixing.bias)
        self.mixing.weight.data = mixing[:, :, None, None]
        self.pretrained_cfg = {}

    def forward_features(self, pixels):
        return self.mixing(pixels)


def images(classes):
    """Each class has its own colour, under noise."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for c in range(classes):
        colour = torch.rand(3, generator=generator) * 60 + 100
        crops = colour[:, None, None] + 30 * torch.randn(8, 3, 4, 4, generator=generator)
        sources = tuple(ImageSource(path=f"{c}/{n}", sha256=str(n)) for n in range(8))
        found.append(ImageBatch(class_index=c, crops=crops.clamp(0, 255).to(torch.uint8), sources=sources))
    return found


def new(classes=3, **options):
    chosen = ProtoPNetOptions(prototypes=2, width=16, **options)
    names = tuple(ClassName(label=str(c)) for c in range(classes))
    net, backbone = new_protopnet(
        Pixels().eval(), PREPROCESSING, Source(name="toy", architecture="toy"), names, chosen, [2] * classes,
        torch.device("cpu"),
    )  # fmt: skip
    return net, backbone, chosen


def behind_first(net, backbone, batches):
    """Channels (N, width) of all patches behind the first convolution, and the mean patch's (width,)."""
    features = torch.cat([feature_map(net.network, backbone.normalise(b.crops)) for b in batches])
    with torch.no_grad():
        return net.addon[0](features).permute(0, 2, 3, 1).flatten(0, 2)


@pytest.mark.parametrize("addon", ["regular", "bottleneck"])
def test_first_channels_are_the_directions_of_the_classes_with_both_signs(addon):
    batches = images(3)
    net, backbone, options = new(addon=addon)
    start_add_on(net, backbone, batches, options.seed)
    channels = behind_first(net, backbone, batches)
    assert torch.allclose(channels[:, :3], -channels[:, 3:6], atol=1e-4)
    deviation = channels.std(dim=0)
    assert deviation[:3].tolist() == pytest.approx([DIRECTION] * 3, rel=0.4)  # one patch of each image was looked at
    assert float(channels[:, 6:].std()) == pytest.approx(OTHER, rel=0.5)
    of_class = channels[:, :3].reshape(3, 8 * 16, 3).mean(dim=1)
    assert of_class.argmax(dim=0).tolist() == [0, 1, 2]  # a direction is largest for its own class
    assert float(channels.mean(dim=0).abs().max()) < 1  # counted from the mean patch


def test_many_classes_give_their_principal_directions():
    batches = images(10)
    net, backbone, options = new(classes=10)
    start_add_on(net, backbone, batches, options.seed)
    channels = behind_first(net, backbone, batches)
    assert torch.allclose(channels[:, :8], -channels[:, 8:], atol=1e-4)
    assert channels.isfinite().all()


def test_two_classes_have_one_direction():
    batches = images(2)
    net, backbone, options = new(classes=2)
    start_add_on(net, backbone, batches, options.seed)
    channels = behind_first(net, backbone, batches)
    assert torch.allclose(channels[:, 0], -channels[:, 1], atol=1e-4)
    assert not torch.allclose(channels[:, 2], -channels[:, 3], atol=1e-1)


def test_a_random_start_looks_at_no_image():
    net, backbone, options = new(start="random")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    start_from_data(net, backbone, lambda: pytest.fail("images were read"), 24, options)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_start_is_decided_by_the_seed():
    batches = images(3)
    found = []
    for _ in range(2):
        net, backbone, options = new()
        torch.rand(3)  # the global state does not matter
        start_from_data(net, backbone, lambda: iter(batches), 24, options)
        found.append(net.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert not torch.equal(found[0]["prototypes"], new()[0].prototypes)
