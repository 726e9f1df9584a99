"""Distances, similarities and the costs made of them, against the worked example of the original code and by hand."""

import pytest
import torch
from torch.nn import functional

from protonmf_cli.maths.losses import cluster_cost, other_class_mask, separation_cost
from protonmf_cli.maths.scoring import percentile_box, upsample
from protonmf_cli.maths.similarity import EPSILON, SIMILARITIES, distances, patches, squared_distances
from protonmf_cli.models.protopnet.latent_patches import start_of_head
from protonmf_cli.options import PROTOPNET_RECIPES, ProtoPNetOptions

PEAKS = ((1, 4), (3, 2), (5, 5))
PROTOTYPES = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
OWNER = torch.tensor([0, 0, 1, 1])
MOST = 3.0
# place, distance, similarity, maximum and threshold of the 224 x 224 map, its box, the box on 7 x 9 (y0, y1, x0, x1)
EXPECTED = [
    ((1, 4), 0.015432, 4.180160, 4.179123, 1.909775, (20, 75, 116, 172), (16, 79, 113, 176)),
    ((3, 2), 0.017448, 4.060129, 4.059276, 1.907415, (85, 140, 52, 107), (81, 143, 48, 110)),
    ((5, 5), 0.008188, 4.801043, 4.798366, 2.012806, (148, 204, 148, 204), (145, 207, 145, 207)),
    ((2, 3), 0.239229, 1.644405, 1.680659, 1.533482, (58, 133, 89, 150), (55, 139, 86, 154)),
]


def example(height: int, width: int) -> torch.Tensor:
    y, x = torch.arange(height)[:, None], torch.arange(width)
    return torch.stack([1 / (1 + (y - a) ** 2 + (x - b) ** 2) for a, b in PEAKS])[None]


def example_distances(height: int, width: int) -> torch.Tensor:
    return squared_distances(patches(example(height, width), (1, 1)), PROTOTYPES)[0]


@pytest.mark.parametrize("grid", [(7, 7), (7, 9)])
@pytest.mark.parametrize("j", range(4))
def test_worked_example_of_one_prototype(grid, j):
    place, distance, similarity, *_ = EXPECTED[j]
    found = example_distances(*grid)[:, j]
    assert divmod(int(found.argmin()), grid[1]) == place
    assert float(found.min()) == pytest.approx(distance, abs=1e-6)
    assert float(SIMILARITIES["log"](found).max()) == pytest.approx(similarity, abs=1e-5)


@pytest.mark.parametrize("j", range(4))
def test_worked_example_of_a_map(j):
    _, _, _, maximum, threshold, square, wide = EXPECTED[j]
    grid = SIMILARITIES["log"](example_distances(7, 7)[:, j]).reshape(7, 7)
    pixels = upsample(grid, (224, 224))
    assert float(pixels.max()) == pytest.approx(maximum, abs=5e-6)
    ranked = pixels.flatten().sort().values
    cut = float(ranked[47666] + 0.25 * (ranked[47667] - ranked[47666]))
    assert cut == pytest.approx(threshold, abs=5e-6)
    assert int((pixels >= cut).sum()) == 2509
    left, top, right, bottom = percentile_box(grid, (224, 224))
    assert (top, bottom, left, right) == square
    larger = SIMILARITIES["log"](example_distances(7, 9)[:, j]).reshape(7, 9)
    left, top, right, bottom = percentile_box(larger, (224, 288))
    assert (top, bottom, left, right) == wide


def test_worked_example_of_the_logits():
    similarity = SIMILARITIES["log"](example_distances(7, 7).amin(dim=0))
    logits = similarity @ start_of_head(OWNER, 2).mT
    assert logits.tolist() == pytest.approx([5.017565, 2.325304], abs=2e-5)


@pytest.mark.parametrize("options", [ProtoPNetOptions(), PROTOPNET_RECIPES["paper"]], ids=["default", "paper"])
@pytest.mark.parametrize(
    ("label", "entropy", "near", "far", "total"),
    [(0, 0.065533, 0.015432, 0.008188, 0.077423), (1, 2.757794, 0.008188, 0.015432, 2.763310)],
)
def test_worked_example_of_the_loss(options, label, entropy, near, far, total):
    nearest = example_distances(7, 7).amin(dim=0)[None]
    y, head = torch.tensor([label]), start_of_head(OWNER, 2)
    most = MOST if options.cap_costs else None
    ce = float(functional.cross_entropy(SIMILARITIES["log"](nearest) @ head.mT, y))
    cluster = float(cluster_cost(nearest, y, OWNER, most))
    separation = float(separation_cost(nearest, y, OWNER, most))
    l1 = float((head * other_class_mask(OWNER, 2)).abs().sum())
    assert (ce, cluster, separation, l1) == pytest.approx((entropy, near, far, 2.0), abs=2e-6)
    loss = ce + options.cluster * cluster + options.separation * separation + options.l1 * l1
    assert loss == pytest.approx(total, abs=2e-6)


def by_loop(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """(B, T, P) squared distances of (B, D, h, w) to (P, D, h1, w1), patch after patch in float64."""
    height, width = prototypes.shape[2:]
    found = [
        [
            [float((image[:, y : y + height, x : x + width].double() - p.double()).square().sum()) for p in prototypes]
            for y in range(image.shape[1] - height + 1)
            for x in range(image.shape[2] - width + 1)
        ]
        for image in features
    ]
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (1, 3), (2, 1)])
def test_distances_of_patches_equal_a_loop_and_convolutions(shape):
    generator = torch.Generator().manual_seed(3)
    features = torch.rand(2, 5, 4, 6, generator=generator)
    prototypes = torch.rand(3, 5, *shape, generator=generator)
    found = squared_distances(patches(features, shape), prototypes.flatten(1))
    assert torch.allclose(found.double(), by_loop(features, prototypes), atol=1e-5)
    squares = functional.conv2d(features.square(), torch.ones(1, 5, *shape))
    convolved = (
        squares - 2 * functional.conv2d(features, prototypes) + prototypes.square().sum((1, 2, 3))[:, None, None]
    )
    assert torch.allclose(found, convolved.flatten(2).mT, atol=1e-5)


@pytest.mark.parametrize("width", [128, 256])
def test_a_prototype_is_at_its_own_patch(width):
    rows = torch.rand(1, 300, width, generator=torch.Generator().manual_seed(0))
    prototypes = rows[0]
    own = squared_distances(rows, prototypes)[0].diagonal()
    size = prototypes.square().sum(dim=1)
    unclamped = size - 2 * (rows @ prototypes.mT)[0].diagonal() + size
    assert (unclamped < 0).any(), "rounding makes some of them negative"
    assert (own >= 0).all()
    assert (own < 1e-5 * size).all()  # some float32 roundings, which differ between processors


def test_log_similarity_ends_at_its_limit_with_the_slope_of_the_formula():
    d = torch.zeros(1, requires_grad=True)
    similarity = SIMILARITIES["log"](d)
    similarity.backward()
    assert similarity.item() == pytest.approx(9.210340, abs=1e-5)
    assert d.grad.item() == pytest.approx(1 - 1 / EPSILON, rel=1e-4)


@pytest.mark.parametrize("name", sorted(SIMILARITIES))
def test_the_nearest_patch_is_the_most_similar_one(name):
    d = torch.linspace(0, 2, 50)
    assert (SIMILARITIES[name](d).diff() < 0).all()


def test_cosine_and_linear_similarity():
    generator = torch.Generator().manual_seed(1)
    rows, prototypes = torch.randn(2, 7, 5, generator=generator), torch.randn(3, 5, generator=generator)
    cosine = SIMILARITIES["cosine"](distances(rows, prototypes, "cosine"))
    linear = SIMILARITIES["linear"](distances(rows, prototypes, "linear"))
    for b in range(2):
        for t in range(7):
            for j in range(3):
                z, p = rows[b, t].double(), prototypes[j].double()
                assert float(cosine[b, t, j]) == pytest.approx(float(z @ p / z.norm() / p.norm()), abs=1e-6)
                assert float(linear[b, t, j]) == pytest.approx(-float((z - p).square().sum()), abs=1e-5)
    assert torch.allclose(
        distances(5 * rows, prototypes / 3, "cosine"), distances(rows, prototypes, "cosine"), atol=1e-6
    )
    assert torch.equal(distances(rows, prototypes, "log"), squared_distances(rows, prototypes))


def test_a_dark_patch_has_no_direction_and_no_nan():
    assert distances(torch.zeros(1, 1, 3), torch.ones(1, 3), "cosine").tolist() == [[[1.0]]]


def masked_costs(distance: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """M - max_j mask_ij (M - d_ij), as the original code writes it."""
    return MOST - (mask * (MOST - distance)).amax(dim=1)


def test_capped_costs_are_those_of_the_original_code():
    generator = torch.Generator().manual_seed(2)
    distance = 6 * torch.rand(40, 4, generator=generator)
    labels = torch.randint(2, (40,), generator=generator)
    own = labels[:, None] == OWNER
    assert ((distance > MOST) | ~own).all(dim=1).any(), "some images are far from all of their prototypes"
    assert torch.allclose(cluster_cost(distance, labels, OWNER, MOST), masked_costs(distance, own.float()))
    assert torch.allclose(separation_cost(distance, labels, OWNER, MOST), masked_costs(distance, (~own).float()))


@pytest.mark.parametrize("cost", [cluster_cost, separation_cost])
def test_costs_beyond_the_cap_are_constant_without_gradient(cost):
    distance = torch.tensor([[3.5, 4.0, 3.2, 5.0], [0.5, 4.0, 3.2, 0.7]], requires_grad=True)
    labels = torch.tensor([0, 0])
    capped = cost(distance, labels, OWNER, MOST)
    (gradient,) = torch.autograd.grad(capped.sum(), distance)
    nearest = [[0, 0, 0, 0], [1, 0, 0, 0]] if cost is cluster_cost else [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert capped[0] == MOST
    assert gradient.tolist() == nearest
    plain = cost(distance, labels, OWNER)
    (gradient,) = torch.autograd.grad(plain.sum(), distance)
    first = [1, 0, 0, 0] if cost is cluster_cost else [0, 0, 1, 0]
    assert plain[0] == (3.5 if cost is cluster_cost else 3.2)
    assert gradient.tolist() == [first, nearest[1]]


def test_one_class_has_nothing_to_be_separated_from():
    distance = torch.tensor([[0.2, 4.0], [7.0, 9.0]], requires_grad=True)
    labels, owner = torch.tensor([0, 0]), torch.tensor([0, 0])
    assert cluster_cost(distance, labels, owner).tolist() == pytest.approx([0.2, 7.0])
    found = separation_cost(distance, labels, owner)
    assert found.tolist() == [0.0, 0.0]
    (gradient,) = torch.autograd.grad(found.sum(), distance)
    assert not gradient.any()


def test_weights_between_classes_are_those_of_other_owners():
    assert other_class_mask(torch.tensor([0, 1, -1]), 2).tolist() == [[False, True, True], [True, False, True]]


def test_the_box_is_around_the_most_similar_place_alone():
    grid = torch.zeros(7, 7)
    grid[1, 1], grid[5, 5] = 2.0, 1.9
    left, top, right, bottom = percentile_box(grid, (224, 224))
    assert (left, top) < (48, 48) < (right, bottom) < (112, 112)
    assert percentile_box(grid.flip(0, 1), (224, 224)) == (224 - right, 224 - bottom, 224 - left, 224 - top)


@pytest.mark.parametrize("value", [0.7, 4.18, 9.2103])
def test_the_box_of_a_constant_map_is_the_whole_image(value):
    assert percentile_box(torch.full((4, 4), value), (64, 96)) == (0, 0, 96, 64)
    assert percentile_box(torch.full((7, 7), value), (224, 224)) == (0, 0, 224, 224)
