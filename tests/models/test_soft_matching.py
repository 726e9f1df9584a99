"""How a few-shot model matches an image: what places add up to, and features of several layers."""

import pytest
import timm
import torch

from protonmf_cli.errors import InputError
from protonmf_cli.maths.normalisation import Normaliser, normaliser_of
from protonmf_cli.models.readouts.pooled_features import joined_maps, pooled_features
from protonmf_cli.models.response import evidence_of, parts_of_rows, respond
from protonmf_cli.models.soft_matching import Samples, SoftMatch
from twisted import model_of, twisted


def random_rows(images=3, places=6, width=5, seed=0):
    return torch.randn(images, places, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("kind", ["none", "unit", "centred"])
@pytest.mark.parametrize("blocks", [(5,), (3, 2)])
def test_places_add_up_to_the_normalised_feature(kind, blocks):
    rows = random_rows()
    normaliser = normaliser_of(random_rows(seed=1).mean(dim=1) + 1, kind, blocks)
    whole = normaliser(rows.mean(dim=1))
    assert torch.allclose(normaliser.parts(rows).sum(dim=1), whole)
    if kind != "none":
        for block in whole.split(blocks, dim=1):
            assert torch.allclose(block.norm(dim=1), torch.full((3,), len(blocks) ** -0.5).double())


def test_a_feature_of_zeros_stays_finite():
    normaliser = Normaliser(kind="unit", mean=torch.zeros(4), blocks=(2, 2))
    rows = torch.zeros(1, 3, 4)
    rows[0, :, 2:] = 1.0
    assert normaliser(rows.mean(dim=1))[0, :2].tolist() == [0, 0]
    assert normaliser.parts(rows).isfinite().all()
    rows.requires_grad_()
    (slope,) = torch.autograd.grad(normaliser(rows.mean(dim=1)).sum(), rows)
    assert slope.isfinite().all()


@pytest.mark.parametrize("kind", ["none", "unit", "centred"])
def test_maps_add_up_to_the_logarithm_of_the_match(kind):
    """log q_j - mean_k log q_k is the sum over places, up to a number that is the same for every image."""
    rows, prototypes = random_rows(images=4), random_rows(1, 3, seed=2)[0]
    samples = Samples(features=torch.zeros(0, 5), labels=torch.zeros(0, dtype=torch.int64), sources=())
    matching = SoftMatch(scale=1.7, normaliser=normaliser_of(rows.mean(dim=1), kind), samples=samples)
    matched, maps = matching.of_rows(rows, prototypes)
    logs = matched.log()
    left = logs - logs.mean(dim=1, keepdim=True) - maps.sum(dim=1)
    assert torch.allclose(left, left[:1].expand_as(left))
    assert torch.allclose(matched, matching.of_features(rows.mean(dim=1), prototypes))


def test_logits_are_weights_times_matches_whatever_the_batch():
    rows, labels = twisted(0)
    model = model_of(rows, labels)
    given = rows[:5, None].float()
    response = respond(model, given)
    assert torch.allclose(response.evidence.sum(dim=1), torch.ones(5))
    assert torch.allclose(response.logits, response.evidence @ model.dense_weights)
    assert torch.equal(evidence_of(model, given), response.evidence)
    one_by_one = torch.cat([parts_of_rows(model, given[n : n + 1]).logits for n in range(5)])
    assert torch.allclose(one_by_one, response.logits)
    assert float(parts_of_rows(model, given).residual.abs().max()) == 0


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext"])
def test_layers_are_joined_on_the_last_grid(name):
    network = timm.create_model(name, pretrained=False, num_classes=0).eval()
    size = (3, 160, 160)
    single, both = (pooled_features(network, layers, size) for layers in ((-1,), (-2, -1)))
    assert both.grid == single.grid and both.blocks[1:] == single.blocks and both.width == sum(both.blocks)
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        rows, last = both.read(network, pixels).rows, single.read(network, pixels).rows
        lower = joined_maps(network, pixels, (-2,))[0]
        known = network.forward_intermediates(pixels, indices=2, output_fmt="NCHW", intermediates_only=True)[0]
    assert torch.allclose(rows[:, :, both.blocks[0] :], last, atol=1e-5)
    assert torch.allclose(rows[:, :, : both.blocks[0]], lower.flatten(2).mT, atol=1e-5)
    # averaging down to a coarser grid keeps the mean over the image
    assert torch.allclose(rows[:, :, : both.blocks[0]].mean(dim=1), known.mean(dim=(2, 3)), atol=1e-4)


def test_layers_that_are_not_there_are_refused():
    network = timm.create_model("test_resnet", pretrained=False, num_classes=0).eval()
    for layers in ((-9,), (0,), (-1, -1), ()):
        with pytest.raises(InputError, match=r"cannot be joined: this network has \d, counted from -1"):
            pooled_features(network, layers, (3, 64, 64))


def test_parts_of_a_file_that_do_not_fit_are_refused():
    samples = Samples(features=torch.zeros(1, 2), labels=torch.zeros(1, dtype=torch.int64), sources=())
    for kind, blocks, scale, what in (
        ("other", (2,), 1.0, "normalisation 'other'"),
        ("unit", (3,), 1.0, "does not fit width 2"),
        ("unit", (2,), 0.0, "scale is 0"),
        ("unit", (2,), 1.0, "numbers of training images"),
    ):
        with pytest.raises(ValueError, match=what):
            SoftMatch.restored(scale=scale, kind=kind, mean=torch.zeros(2), blocks=blocks, samples=samples)
