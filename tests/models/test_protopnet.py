"""Feature maps of every layout, add-on layers, the network against a loop in float64, and networks added up."""

import itertools
import math
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

import toys
from protonmf_cli.errors import InputError
from protonmf_cli.maths.similarity import distances
from protonmf_cli.models.backbone import ClassName, Source
from protonmf_cli.models.card import Card, DataFacts
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.protopnet.combination import (
    combined_backbone,
    combined_model,
    combined_weights,
    weights_of_member,
)
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet, add_on_layers, drop_unused, feature_map
from protonmf_cli.models.prototype import Examples, PrototypeModel
from protonmf_cli.models.response import parts_of_rows, respond
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.protopnet.model import as_prototype_model, protopnet_card
from protonmf_cli.pipelines.protopnet.setup import new_protopnet

LAYOUTS = {
    "convolutions": ("test_resnet", {}, (128, 192)),
    "tokens on a square": ("test_vit", {"img_size": 64}, (64, 64)),
    "tokens on a rectangle": ("test_vit", {"img_size": (32, 64)}, (32, 64)),
    "tokens without prefix": ("test_vit", {"img_size": (64, 32), "class_token": False, "global_pool": "avg"}, (64, 32)),
    "channels last": (
        "swin_tiny_patch4_window7_224",
        {"img_size": (32, 64), "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)},
        (32, 64),
    ),
}
GRIDS = {
    "convolutions": (96, 4, 6),
    "tokens on a square": (64, 4, 4),
    "tokens on a rectangle": (64, 2, 4),
    "tokens without prefix": (64, 4, 2),
    "channels last": (24, 4, 8),
}


def network(layout: str) -> tuple[nn.Module, tuple[int, int, int]]:
    name, arguments, size = LAYOUTS[layout]
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **arguments).eval(), (3, *size)


# -- features ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_changed_patch_is_in_its_place_of_the_feature_map(layout):
    net, size = network(layout)
    pixels = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    channels, height, width = GRIDS[layout]
    step = (size[1] // height, size[2] // width)
    places = list(itertools.product(range(height), range(width)))
    changed = pixels.repeat(len(places), 1, 1, 1)
    for image, (y, x) in zip(changed, places, strict=True):
        image[:, y * step[0] : (y + 1) * step[0], x * step[1] : (x + 1) * step[1]] += 3.0
    with torch.inference_mode():
        before, after = feature_map(net, pixels), feature_map(net, changed)
    assert before.shape == (1, channels, height, width)
    found = (after - before).norm(dim=1).flatten(1).argmax(dim=1).tolist()
    assert [divmod(place, width) for place in found] == places


@pytest.mark.parametrize("layout", LAYOUTS)
def test_dropping_the_classifier_leaves_the_features_as_they_were(layout):
    net, size = network(layout)
    pixels = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    names = set(net.state_dict())
    classifier = {name for name in names if name.startswith(("fc", "head"))}
    with torch.inference_mode():
        before = feature_map(net, pixels)
        drop_unused(net, size)
        after = feature_map(net, pixels)
    assert torch.equal(before, after)
    assert classifier
    assert names - set(net.state_dict()) == classifier


class Functional(nn.Module):
    """Its features need weights of a child that never runs."""

    num_features = 3

    def __init__(self, *, needed: bool) -> None:
        super().__init__()
        self.scale, self.fc, self.needed = nn.Linear(3, 3), nn.Linear(3, 2), needed

    def forward_features(self, pixels: torch.Tensor) -> torch.Tensor:
        means = nn.functional.avg_pool2d(pixels, 8)
        return means + self.scale.bias[:, None, None] if self.needed else means


@pytest.mark.parametrize(("needed", "left"), [(True, {"scale", "fc"}), (False, set())])
def test_what_the_features_need_is_not_dropped(needed, left):
    net = Functional(needed=needed)
    before = feature_map(net, torch.ones(1, 3, 16, 16))
    drop_unused(net, (3, 16, 16))
    assert torch.equal(feature_map(net, torch.ones(1, 3, 16, 16)), before)
    assert {name.split(".")[0] for name in net.state_dict()} == left


@pytest.mark.parametrize("shape", [(1, 24), (1, 7, 24), (1, 24, 2, 2, 2)])
def test_features_without_a_grid_are_refused(shape):
    class Pooled(nn.Module):
        num_features = 24

        def forward_features(self, pixels):
            return torch.zeros(shape)

    with pytest.raises(InputError, match="no grid of places for prototypes"):
        feature_map(Pooled(), torch.zeros(1, 3, 8, 8))


# -- add-on layers -------------------------------------------------------------------------------------------------


def convolutions(layers: nn.Sequential) -> list[tuple[int, int]]:
    return [(m.in_channels, m.out_channels) for m in layers if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("bounded", [True, False])
@pytest.mark.parametrize(
    ("kind", "features", "width", "expected"),
    [
        ("regular", 100, 16, [(100, 16), (16, 16)]),
        ("regular", 8, 16, [(8, 16), (16, 16)]),
        ("bottleneck", 100, 16, [(100, 50), (50, 50), (50, 25), (25, 25), (25, 16), (16, 16)]),
        ("bottleneck", 64, 16, [(64, 32), (32, 32), (32, 16), (16, 16)]),
        ("bottleneck", 16, 16, [(16, 16), (16, 16)]),
        ("bottleneck", 8, 16, [(8, 16), (16, 16)]),
    ],
)
def test_add_on_layers_are_those_of_the_paper(kind, features, width, expected, bounded):
    layers = add_on_layers(kind, features, width, bounded=bounded)
    assert convolutions(layers) == expected
    assert all(m.kernel_size == (1, 1) and not m.bias.any() for m in layers if isinstance(m, nn.Conv2d))
    kinds = [type(m) for m in layers]
    between = [nn.Conv2d, nn.ReLU] * len(expected)
    assert kinds == between[:-1] + ([nn.Sigmoid] if bounded else [])
    latent = layers(100 * torch.randn(2, features, 3, 3, generator=torch.Generator().manual_seed(0)))
    assert latent.shape == (2, width, 3, 3)
    assert bool(((latent >= 0) & (latent <= 1)).all()) == bounded


def test_add_on_layers_start_with_the_spread_of_their_outputs():
    torch.manual_seed(0)
    plain = add_on_layers("regular", 1024, 128, bounded=True)
    torch.manual_seed(0)
    small = add_on_layers("regular", 1024, 128, bounded=True, gain=0.3)
    assert plain[0].weight.std().item() == pytest.approx(math.sqrt(2 / 128), rel=0.02)
    for one, other in ((plain[0], small[0]), (plain[2], small[2])):
        assert torch.equal(other.weight, one.weight * 0.3)


# -- the whole network ---------------------------------------------------------------------------------------------


def trained_like(layout: str, classes=3, per_class=(2, 1, 3), seed: int = 0, **options):
    """A network with every weight drawn, the head too, and how it reads images."""
    net, size = network(layout)
    toys.randomised(net, seed=seed + 1)
    drop_unused(net, size)
    preprocessing = replace(toys.PREPROCESSING, input_size=size, mean=(0.4 + seed / 50, 0.5, 0.6))
    options = ProtoPNetOptions(seed=seed, addon_gain=1.0, **options)
    names = tuple(ClassName(label=label) for label in toys.LABELS[:classes])
    found, backbone = new_protopnet(
        net, preprocessing, Source(name=f"net {seed}", architecture=layout, digest=str(seed) * 20), names, options,
        per_class, torch.device("cpu"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for layer in found.addon:
        if isinstance(layer, nn.Conv2d):
            layer.bias.data = 0.3 * torch.randn(layer.bias.shape, generator=generator)
    found.head.data += 0.2 * torch.randn(found.head.shape, generator=generator)
    found.head.data[0, -1] = 0.0
    return found.requires_grad_(False), backbone, options


def by_loop(net: ProtoPNet, pixels: torch.Tensor, patch: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and smallest distances, number after number in float64."""
    net.network.double()
    features = feature_map(net.network, pixels.double())
    net.network.float()
    z = features.permute(0, 2, 3, 1)
    for layer in net.addon:
        if isinstance(layer, nn.Conv2d):
            z = z @ layer.weight.double()[:, :, 0, 0].T + layer.bias.double()
        else:
            z = 1 / (1 + torch.exp(-z)) if isinstance(layer, nn.Sigmoid) else z * (z > 0)
    nearest = torch.zeros(len(pixels), len(net.prototypes), dtype=torch.float64)
    best = torch.zeros_like(nearest)
    for i, j in itertools.product(range(len(pixels)), range(len(net.prototypes))):
        prototype = net.prototypes[j].double().reshape(-1, *patch).permute(1, 2, 0)
        found = []
        for y, x in itertools.product(range(z.shape[1] - patch[0] + 1), range(z.shape[2] - patch[1] + 1)):
            part = z[i, y : y + patch[0], x : x + patch[1]]
            if net.similarity == "cosine":
                found.append(1 - float((part * prototype).sum() / part.norm() / prototype.norm()))
            else:
                found.append(sum(float(v) ** 2 for v in (part - prototype).flatten()))
        d = min(found)
        nearest[i, j] = d
        best[i, j] = {"log": math.log((d + 1) / (d + 1e-4)), "linear": -d, "cosine": 1 - d}[net.similarity]
    logits = torch.zeros(len(pixels), len(net.head), dtype=torch.float64)
    for i, c, j in itertools.product(*(range(n) for n in (len(pixels), *net.head.shape))):
        logits[i, c] += float(net.head[c, j]) * best[i, j]
    return logits, nearest


@pytest.mark.parametrize("addon", ["regular", "bottleneck"])
@pytest.mark.parametrize(("similarity", "patch"), [("log", (1, 1)), ("linear", (1, 1)), ("cosine", (1, 1)), ("log", (2, 2)), ("cosine", (1, 2))])  # fmt: skip
def test_the_network_equals_a_loop_in_float64(similarity, patch, addon):
    net, backbone, _ = trained_like("convolutions", similarity=similarity, patch=patch, addon=addon, width=7)
    pixels = torch.randn(3, 3, 128, 192, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        found = net(pixels)
        logits, nearest = by_loop(net, pixels, patch)
    assert float((found.distances - nearest).abs().max()) < 1e-5
    assert float((found.logits - logits).abs().max()) < 1e-5 * float(logits.abs().max().clamp_min(1))
    assert float(logits.std()) > 0.1
    assert backbone.readout.grid == (4 - patch[0] + 1, 6 - patch[1] + 1)
    assert net.rows(pixels).shape == (3, backbone.readout.places, 7 * patch[0] * patch[1])


def test_the_model_of_a_trained_network_answers_as_the_network():
    net, backbone, options = trained_like("tokens on a rectangle", width=6, patch=(2, 1))
    model = as_prototype_model(net, protopnet_card(net, backbone, options, data=DataFacts()), drawn(net))
    crops = torch.randint(256, (4, 3, 32, 64), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    with torch.inference_mode():
        logits = net(backbone.normalise(crops)).logits
    assert torch.allclose(respond(model, backbone.read(crops).rows).logits, logits, atol=1e-5)
    connections = set(zip(model.weights.class_index.tolist(), model.weights.prototype.tolist(), strict=True))
    assert (0, len(net.prototypes) - 1) not in connections


def test_half_precision_ends_before_the_distances():
    net, _, _ = trained_like("convolutions", width=16)
    pixels = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        plain = net.rows(pixels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rows, found = net.rows(pixels), net(pixels)
        nearest = distances(rows, net.prototypes, "log").amin(dim=1)
        logits = net.similarities(nearest) @ net.head.mT
    assert not torch.equal(rows, plain), "the network itself computes in bfloat16"
    assert {rows.dtype, found.distances.dtype, found.logits.dtype} == {torch.float32}
    assert torch.equal(found.distances, nearest)
    assert torch.equal(found.logits, logits)


def test_a_prototype_larger_than_the_latent_map_is_refused():
    with pytest.raises(InputError, match="a prototype of 5 x 1 places does not fit the latent map of 4 x 6"):
        trained_like("convolutions", patch=(5, 1))


# -- networks added up ---------------------------------------------------------------------------------------------


def drawn(net: ProtoPNet) -> Examples:
    """Two examples per prototype, whose picture says which prototype of which network they belong to."""
    count, (height, width) = 2 * len(net.prototypes), net.readout.grid
    words = [f"{net.readout.width}: {net.prototypes[n // 2, 0]:.6f} {n % 2}".encode() for n in range(count)]
    ends = torch.tensor([0, *map(len, words)]).cumsum(dim=0)
    return Examples(
        prototype=torch.arange(count) // 2,
        score=torch.arange(count).float(),
        box=torch.arange(4 * count).reshape(-1, 4),
        map=torch.rand(count, height, width),
        crop=torch.stack([ends[:-1], ends[1:]], dim=1),
        jpeg=torch.frombuffer(bytearray(b"".join(words)), dtype=torch.uint8),
        sources=tuple(ImageSource(path=word.decode(), sha256="") for word in words),
    )


@pytest.fixture(scope="module")
def members():
    """Three networks of different width, grid and input size, each with its model."""
    found = [
        trained_like("convolutions", seed=0, width=7, per_class=(2, 1, 3)),
        trained_like("tokens on a rectangle", seed=1, width=12, per_class=(1, 2, 1), similarity="cosine"),
        trained_like("channels last", seed=2, width=5, per_class=(1, 1, 2), patch=(2, 1)),
    ]
    return [(n, b, as_prototype_model(n, protopnet_card(n, b, o, data=DataFacts()), drawn(n))) for n, b, o in found]


def crops_for(card: Card, parts: list[torch.Tensor], fill: int) -> torch.Tensor:
    """Pictures of several networks as one crop, each at the left and top of its channels."""
    whole = torch.full((len(parts[0]), *card.preprocessing.input_size), fill, dtype=torch.uint8)
    for n, part in enumerate(parts):
        whole[:, 3 * n : 3 * n + 3, : part.shape[2], : part.shape[3]] = part
    return whole


def pictures(backbone, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (4, *backbone.preprocessing.input_size), generator=generator, dtype=torch.uint8)


def check_sum(model: PrototypeModel, members) -> None:
    parts = [pictures(backbone, seed) for seed, (_, backbone, _) in enumerate(members)]
    with torch.inference_mode():
        expected = sum(net(b.normalise(part)).logits for (net, b, _), part in zip(members, parts, strict=True))
    joined = combined_backbone([backbone for _, backbone, _ in members], model.card)
    for fill in (0, 255):
        rows = joined.read(crops_for(model.card, parts, fill)).rows
        found = respond(model, rows)
        assert torch.allclose(found.logits, expected, atol=2e-5)
        assert torch.allclose(parts_of_rows(model, rows).logits, expected, atol=2e-5)
    for picture, part in zip(joined.pictures(crops_for(model.card, parts, 0)[1]), parts, strict=True):
        assert torch.equal(picture, part[1])


def check_parts(model: PrototypeModel, members) -> None:
    """Every prototype of every member is there, with its class, its weights and its pictures."""
    assert (model.owner.diff() >= 0).all()
    assert model.examples.prototype.tolist() == sorted(model.examples.prototype.tolist())
    for number, (net, _, one) in enumerate(members):
        places = model.of_member(number)
        assert torch.equal(model.prototypes[places, : one.prototypes.shape[1]], one.prototypes)
        assert not model.prototypes[places, one.prototypes.shape[1] :].any()
        assert torch.equal(model.owner[places], net.owner)
        assert torch.equal(model.dense_weights[places].mT, net.head)
        for j, place in enumerate(places.tolist()):
            for mine, theirs in zip(model.examples.of(place), one.examples.of(j), strict=True):
                assert model.examples.picture(mine) == one.examples.picture(theirs)
                assert model.examples.sources[mine] == one.examples.sources[theirs]
                height, width = net.readout.grid
                assert torch.equal(model.examples.map[mine, :height, :width], one.examples.map[theirs])


def test_logits_of_combined_networks_are_the_sum_of_theirs(members):
    model = combined_model([m for _, _, m in members[:2]], ["one", "two"])
    assert model.card.preprocessing.input_size == (6, 128, 192)
    assert model.card.similarity == "mixed"
    check_sum(model, members[:2])
    check_parts(model, members[:2])


def test_maps_of_combined_networks_stay_apart(members):
    model = combined_model([m for _, _, m in members[:2]], ["one", "two"])
    parts = [pictures(b, seed) for seed, (_, b, _) in enumerate(members[:2])]
    joined = combined_backbone([b for _, b, _ in members[:2]], model.card)
    maps = respond(model, joined.read(crops_for(model.card, parts, 0)).rows).maps
    for number, (net, backbone, _) in enumerate(members[:2]):
        start, stop = model.spaces[number].start, model.spaces[number].stop
        assert (stop - start, model.spaces[number].grid) == (backbone.readout.places, backbone.readout.grid)
        own = net.similarities(net.distances(backbone.read(parts[number]).rows))
        assert torch.allclose(maps[:, start:stop, model.of_member(number)], own, atol=1e-5)
        assert not maps[:, :start, model.of_member(number)].any()
        assert not maps[:, stop:, model.of_member(number)].any()


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_combined_model_can_be_combined_again(members, order):
    chosen = [members[n] for n in order]
    first = combined_model([m for _, _, m in chosen[:2]], ["one", "two"])
    right = combined_model([first, chosen[2][2]], ["both", "three"])
    check_sum(right, chosen)
    check_parts(right, chosen)
    left = combined_model([chosen[2][2], first], ["three", "both"])
    check_sum(left, [chosen[2], *chosen[:2]])
    check_parts(left, [chosen[2], *chosen[:2]])


def test_a_network_twice_counts_twice(members):
    net, backbone, model = members[0]
    twice = combined_model([model, model], ["one", "the same"])
    part = pictures(backbone, 0)
    joined = combined_backbone([backbone, backbone], twice.card)
    found = respond(twice, joined.read(crops_for(twice.card, [part, part], 0)).rows).logits
    with torch.inference_mode():
        assert torch.allclose(found, 2 * net(backbone.normalise(part)).logits, atol=2e-5)


def test_weights_of_combined_networks_are_found_again(members):
    singles = [(model, backbone.weights()) for _, backbone, model in members]
    first = combined_model([m for m, _ in singles[:2]], ["one", "two"])
    both = combined_weights(singles[:2])
    everything = combined_weights([(first, both), singles[2]])
    for number, (_, expected) in enumerate(singles):
        found = weights_of_member(everything, number)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_the_card_of_a_combined_model_survives_json(members):
    card = combined_model([m for _, _, m in members], ["one", "two", "three"]).card
    found = Card.from_json(card.as_json())
    assert found.as_json() == card.as_json()
    assert [member.source.name for member in found.members] == ["net 0", "net 1", "net 2"]
    assert found.members[1].preprocessing == members[1][1].preprocessing


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (
            ("red things", "green things", "grey things"),
            r"\(3 and 3; e.g. blue things, grey things in one of them only\)",
        ),
        (("red things", "green things"), r"\(2 and 3; e.g. blue things in one of them only\)"),
        (("green things", "red things", "blue things"), r"\(3 and 3; the same ones in another order\)"),
    ],
)
def test_networks_of_different_classes_are_not_added(members, labels, words):
    model = members[1][2]
    other = replace(model, card=replace(model.card, classes=tuple(ClassName(label=label) for label in labels)))
    with pytest.raises(InputError, match=f"two.file and one.file have different classes {words}, so their logits"):
        combined_model([members[0][2], other], ["one.file", "two.file"])


def test_combined_networks_move_with_their_add_on_layers(members):
    model = combined_model([m for _, _, m in members[:2]], ["one", "two"])
    joined = combined_backbone([b for _, b, _ in members[:2]], model.card)
    parts = [pictures(b, s) for s, (_, b, _) in enumerate(members[:2])]
    try:
        moved = joined.to(torch.device("cpu"), torch.float64)
        assert moved.read(crops_for(model.card, parts, 0)).rows.dtype == torch.float64
    finally:
        joined.to(torch.device("cpu"), torch.float32)


def test_combining_again_keeps_each_picture_once(members):
    first = combined_model([m for _, _, m in members[:2]], ["one", "two"])
    again = combined_model([first, members[2][2]], ["both", "three"])
    assert len(again.examples.jpeg) == sum(len(m.examples.jpeg) for _, _, m in members)
    for (_, _, single), start in zip(members, (0, 1, 2), strict=True):
        j = int(again.of_member(start)[0])
        assert again.examples.picture(again.examples.of(j)[0]) == single.examples.picture(single.examples.of(0)[0])
