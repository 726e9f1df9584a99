"""Projection against a loop over patches, the push as a whole, and pruning."""

from collections import Counter
from dataclasses import asdict, replace

import pytest
import timm
import torch

import toys
from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.maths.last_layer import last_layer_objective
from protonmf_cli.maths.patch_assignment import theorem_counts
from protonmf_cli.maths.similarity import EPSILON
from protonmf_cli.models.backbone import Backbone, ClassName, Source
from protonmf_cli.models.image_batches import ImageBatch, ImageSource, Skipped
from protonmf_cli.models.protopnet.latent_patches import ProtoPNet, start_of_head
from protonmf_cli.options import ProtoPNetOptions
from protonmf_cli.pipelines.progress import Silent
from protonmf_cli.pipelines.protopnet import push as stage
from protonmf_cli.pipelines.protopnet.activations import Activations, accuracy, read_activations
from protonmf_cli.pipelines.protopnet.nearest_patches import project
from protonmf_cli.pipelines.protopnet.push import check_pruning, prune, push
from protonmf_cli.pipelines.protopnet.setup import check_patches, new_protopnet, owners

CLASSES = tuple(ClassName(label=label) for label in toys.LABELS[:3])
OPTIONS = ProtoPNetOptions(width=8, addon_gain=1.0, l1=1e-2, tolerance=1e-5)


def make(per_class=(3, 2, 2), size: int = 64, **options) -> tuple[ProtoPNet, Backbone]:
    """Grid 2 x 2 at 32 pixels, 4 x 4 at 64."""
    torch.manual_seed(0)
    network = toys.randomised(timm.create_model("test_resnet", num_classes=1, output_stride=16))
    preprocessing = replace(toys.PREPROCESSING, input_size=(3, size, size))
    source = Source(name="tiny", architecture="test_resnet", digest="0" * 64)
    found = new_protopnet(
        network, preprocessing, source, CLASSES, replace(OPTIONS, **options), per_class, torch.device("cpu")
    )
    found[0].requires_grad_(False)
    return found


def batch(class_index: int, crops: torch.Tensor, first: int = 0, skipped: int = 0) -> ImageBatch:
    names = [f"{class_index}/{first + n}.png" for n in range(len(crops) + skipped)]
    return ImageBatch(
        class_index=class_index,
        crops=crops,
        sources=tuple(ImageSource(path=name, sha256=name) for name in names[: len(crops)]),
        skipped=tuple(Skipped(path=name, reason="is damaged") for name in names[len(crops) :]),
    )


def noise(count: int, seed: int, size: int = 64) -> torch.Tensor:
    """Pictures of smooth colours, so that patches differ."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 255 * torch.rand(count, 3, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear").byte()


@pytest.fixture
def batches() -> list[ImageBatch]:
    """Three classes in batches of different sizes, with a damaged file and an empty batch."""
    nothing = torch.empty(0, 0, 0, 0, dtype=torch.uint8)
    return [
        batch(0, noise(4, 0)),
        batch(0, noise(2, 1), first=4, skipped=1),
        batch(1, noise(5, 2)),
        batch(1, nothing, first=5, skipped=2),
        batch(1, noise(1, 3), first=7),
        batch(2, noise(3, 4)),
    ]


class Counted(Silent):
    def __init__(self) -> None:
        self.totals: list[int | None] = []
        self.seen = 0

    def stage(self, name: str, total: int | None = None) -> None:
        self.totals.append(total)

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.seen += steps


# -- project -------------------------------------------------------------------------------------------------------


def by_loop(net: ProtoPNet, backbone: Backbone, batches: list[ImageBatch]):
    """Image, place, patch and distance of each prototype, replaced on strict improvement only."""
    found = [None] * len(net.prototypes)
    ties = 0
    for one in batches:
        if not one.sources:
            continue
        rows = backbone.read(one.crops).rows
        distance = net.distances_to(rows, net.prototypes)
        for n, image in enumerate(one.sources):
            for place in range(rows.shape[1]):
                for j in (net.owner == one.class_index).nonzero()[:, 0].tolist():
                    d = float(distance[n, place, j])
                    ties += found[j] is not None and d == found[j][3]
                    if found[j] is None or d < found[j][3]:
                        found[j] = (image, place, rows[n, place], d)
    return found, ties


@pytest.mark.parametrize(("similarity", "patch"), [("log", (1, 1)), ("cosine", (1, 1)), ("log", (2, 2))])
def test_nearest_patches_equal_a_loop(batches, similarity, patch):
    net, backbone = make(similarity=similarity, patch=patch)
    before = net.prototypes.clone()
    found = project(net, backbone, iter(batches), distinct=False, per_image=1)
    expected, _ = by_loop(net, backbone, batches)
    assert torch.equal(net.prototypes, before), "the network itself stays"
    for j, (image, place, vector, distance) in enumerate(expected):
        assert (found.sources[j].image, found.sources[j].row) == (image, place)
        assert torch.equal(found.prototypes[j], vector)
        assert float(found.distance[j]) == pytest.approx(distance, abs=1e-6)
    assert found.images == len({image for image, *_ in expected})


def test_the_first_image_and_the_first_place_win_ties(batches, monkeypatch):
    """Coarse distances make ties of places and images; two images of a class come twice."""
    net, backbone = make()
    twins = noise(2, 0)
    planted = [batch(0, twins.repeat(2, 1, 1, 1)), batch(0, twins, first=4), *batches[2:]]
    exact = net.distances_to
    monkeypatch.setattr(net, "distances_to", lambda rows, basis: exact(rows, basis).mul(6).round())
    found = project(net, backbone, planted, distinct=False, per_image=1)
    expected, ties = by_loop(net, backbone, planted)
    assert ties > 10
    assert [(s.image, s.row) for s in found.sources] == [(image, place) for image, place, *_ in expected]
    assert {found.sources[j].image.path for j in range(3)} <= {"0/0.png", "0/1.png"}


def test_distinct_patches_differ_and_come_from_several_images(batches):
    net, backbone = make(per_class=(6, 4, 3))
    net.prototypes[:6] = net.prototypes[0] + 1e-3 * net.prototypes[:6]  # all want the same patch
    greedy = project(net, backbone, batches, distinct=False, per_image=2)
    assert greedy.duplicates > 0
    for per_image in (1, 2, 4):
        found = project(net, backbone, batches, distinct=True, per_image=per_image)
        places = [(s.image, s.row) for s in found.sources]
        assert len(set(places)) == len(places)
        assert found.duplicates == 0
        used = Counter(s.image for s in found.sources)
        assert max(used.values()) <= per_image
        assert found.images == len(used)
        for j, source in enumerate(found.sources):
            assert source.image.path.startswith(f"{int(net.owner[j])}/")
            distance = (found.prototypes[j] - net.prototypes[j]).square().sum()
            assert float(distance) == pytest.approx(float(found.distance[j]), abs=1e-5)
            assert found.distance[j] >= greedy.distance[j] - 1e-6


def test_distinct_patches_are_the_nearest_ones_where_nobody_wants_the_same(batches):
    net, backbone = make(per_class=(1, 1, 1))
    found = project(net, backbone, batches, distinct=True, per_image=2)
    assert found.sources == project(net, backbone, batches, distinct=False, per_image=2).sources


def test_an_image_gives_more_patches_where_a_class_has_few_images():
    net, backbone = make(per_class=(5, 1, 1))
    few = [batch(0, noise(2, 0)), batch(1, noise(1, 1)), batch(2, noise(1, 2))]
    found = project(net, backbone, few, distinct=True, per_image=1)
    assert sorted(Counter(s.image.path for s in found.sources[:5]).values()) == [2, 3]
    assert len({(s.image, s.row) for s in found.sources}) == 7


@pytest.mark.parametrize("distinct", [True, False])
def test_a_class_without_images_keeps_its_prototypes(batches, distinct):
    net, backbone = make()
    damaged = batch(1, torch.empty(0, 0, 0, 0, dtype=torch.uint8), skipped=2)
    progress = Counted()
    given = [*batches[:2], damaged]
    found = project(net, backbone, given, distinct=distinct, per_image=2, progress=progress)
    kept = net.owner != 0
    assert torch.equal(found.prototypes[kept], net.prototypes[kept])
    assert not (found.prototypes[~kept] == net.prototypes[~kept]).all(dim=1).any()
    assert [source is None for source in found.sources] == kept.tolist()
    assert not found.distance[kept].any()
    assert progress.seen == 4 + 3 + 2


def test_images_of_a_class_without_prototypes_change_nothing(batches):
    net, backbone = make(per_class=(3, 0, 2))
    found = project(net, backbone, batches, distinct=True, per_image=2)
    assert [s.image.path[0] for s in found.sources] == ["0", "0", "0", "2", "2"]


def test_too_few_patches_are_refused():
    net, backbone = make(per_class=(4, 5, 1), size=32)
    assert backbone.readout.places == 4
    enough = [batch(0, noise(1, 0, 32))]
    rows = [s.row for s in project(net, backbone, enough, distinct=True, per_image=2).sources[:4]]
    assert sorted(rows) == [0, 1, 2, 3]
    few = [*enough, batch(1, noise(1, 1, 32))]
    words = "class green things has 1 images with 4 or more places each: too few different patches for 5 prototypes"
    with pytest.raises(InputError, match=words):
        project(net, backbone, few, distinct=True, per_image=2)
    assert project(net, backbone, few, distinct=False, per_image=2).images == 2


def test_patches_are_checked_before_training():
    _, backbone = make(per_class=(4, 5, 1), size=32)
    (warning,) = check_patches([1, 2, 3], [4, 5, 1], backbone, distinct=True)
    assert "one training image: red things" in warning
    assert check_patches([2, 2, 3], [8, 5, 1], backbone, distinct=True) == ()
    with pytest.raises(InputError, match=r"green things has 4 patches \(1 images\), fewer than its 5 prototypes"):
        check_patches([1, 1, 3], [4, 5, 1], backbone, distinct=True)
    check_patches([1, 1, 3], [4, 5, 1], backbone, distinct=False)
    with pytest.raises(InputError, match="class blue things has no readable image"):
        check_patches([1, 1, 0], [4, 5, 1], backbone, distinct=False)


# -- activations ---------------------------------------------------------------------------------------------------


def test_activations_are_the_networks_own(batches):
    net, backbone = make()
    found = read_activations(net, backbone, batches)
    start = 0
    for one in batches:
        if not one.sources:
            continue
        answer = net(backbone.normalise(one.crops))
        distance = found.distance[start : start + len(one.sources)]
        assert torch.allclose(distance, answer.distances, atol=1e-5)
        rows = backbone.read(one.crops).rows
        place = net.distances(rows).argmin(dim=1)
        assert torch.equal(found.row[start : start + len(one.sources)].long(), place)
        start += len(one.sources)
    assert found.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 3
    assert [s.path for s in found.images] == [s.path for one in batches for s in one.sources]
    assert [s.path for s in found.skipped] == ["0/6.png", "1/5.png", "1/6.png"]
    right = [one.class_index == int(top) for one in batches if one.sources for top in net(backbone.normalise(one.crops)).logits.argmax(dim=1)]  # fmt: skip
    assert accuracy(net, found) == pytest.approx(sum(right) / 15)
    head = torch.zeros(3, 7)
    head[1] = 1.0
    assert accuracy(net, found, head) == pytest.approx(6 / 15)
    with pytest.raises(InputError, match="no image of the data could be read"):
        read_activations(net, backbone, [batches[3]])


# -- push ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("similarity", "distinct"), [("log", True), ("log", False), ("cosine", True)])
def test_after_a_push_every_prototype_is_its_patch(batches, similarity, distinct):
    options = replace(OPTIONS, distinct=distinct, similarity=similarity)
    net, backbone = make(similarity=similarity)
    net.head += torch.linspace(-1, 1, net.head.numel()).reshape(net.head.shape)
    old = net.prototypes.clone()
    progress = Counted()
    facts, sources = push(net, backbone, lambda: iter(batches), 18, options, progress)
    crops = {s: crop for one in batches for s, crop in zip(one.sources, one.crops, strict=True)}
    moved = []
    for j, source in enumerate(sources):
        rows = backbone.read(crops[ImageSource(**source["image"])][None]).rows
        patch = rows[:, source["row"] : source["row"] + 1]
        assert float(net.distances(patch)[0, 0, j]) < 1e-5
        assert float((patch[0, 0] - net.prototypes[j]).abs().max()) < 1e-5
        ends = torch.stack([patch[0, 0], old[j]])
        ends = ends / ends.norm(dim=1, keepdim=True) if similarity == "cosine" else ends
        moved.append(float((ends[0] - ends[1]).norm()))
    assert facts["moved"] == pytest.approx(sum(moved) / len(moved), abs=1e-4)
    assert facts["kept"] == 0
    assert progress.totals == [18, 18]
    assert progress.seen == 2 * 18
    found = read_activations(net, backbone, batches)
    assert facts["accuracy_last_layer"] == accuracy(net, found)
    start = start_of_head(net.owner, 3)
    assert facts["accuracy_after"] == accuracy(net, found, start)
    with torch.no_grad():
        expected = accuracy(net, read_activations(net, backbone, batches, prototypes=old), start)
    assert facts["accuracy_before"] == expected
    assert (facts["theorem"] is not None) == (similarity == "log")


def test_the_last_layer_after_a_push_is_the_minimum(batches):
    net, backbone = make()
    facts, _ = push(net, backbone, lambda: batches, 18, OPTIONS)
    found = read_activations(net, backbone, batches)
    similarity = net.similarities(found.distance)
    value, kkt = last_layer_objective(net.head, similarity, found.labels, net.owner, OPTIONS.l1)
    assert kkt <= OPTIONS.tolerance
    assert facts["last_layer"]["objective"] == pytest.approx(value)
    start, _ = last_layer_objective(start_of_head(net.owner, 3), similarity, found.labels, net.owner, OPTIONS.l1)
    assert value < start
    other = net.owner != torch.arange(3)[:, None]
    assert facts["last_layer"]["other_class_weights"] == int((net.head[other] != 0).sum()) < int(other.sum())


def test_what_a_push_does_to_decisions_is_counted(batches, monkeypatch):
    """Prototypes start at patches of other classes, so that the push changes much."""
    net, backbone = make()
    patches = project(net, backbone, batches, distinct=False, per_image=1).prototypes
    old = patches[[3, 4, 5, 6, 0, 1, 2]]
    net.prototypes.copy_(old)
    before = read_activations(net, backbone, batches)
    share = accuracy(net, before)
    seen = []
    monkeypatch.setattr(
        stage, "theorem_counts", lambda found, *rest, **more: seen.append(found) or theorem_counts(found, *rest, **more)
    )
    facts, _ = push(net, backbone, lambda: batches, 18, replace(OPTIONS, last_layer="passes"))
    after = read_activations(net, backbone, batches)
    assert (facts["accuracy_before"], facts["accuracy_after"]) == (share, accuracy(net, after))
    assert share < accuracy(net, after)
    (given,) = seen
    assert torch.equal(given.before, before.distance)
    assert torch.equal(given.after, after.distance)
    assert torch.equal(given.same_patch, before.row == after.row)
    assert torch.allclose(given.moved, (net.prototypes - old).norm(dim=1))
    expected = theorem_counts(given, net.head, net.owner, after.labels, epsilon=EPSILON)
    assert facts["theorem"] == asdict(expected)
    assert expected.images == 15
    assert 0 < expected.changed < 15


def test_a_second_push_moves_nothing(batches):
    net, backbone = make()
    push(net, backbone, lambda: batches, 18, OPTIONS)
    facts, _ = push(net, backbone, lambda: batches, 18, OPTIONS)
    assert facts["moved"] < 1e-5
    assert facts["theorem"]["changed"] == 0
    assert facts["theorem"]["certified_by_bound"] == 15
    assert facts["accuracy_before"] == facts["accuracy_after"]


def test_a_push_can_leave_the_last_layer_alone(batches):
    head = 0.1 * torch.arange(21.0).reshape(3, 7)
    for reset in (True, False):
        net, backbone = make()
        net.head.copy_(head)
        options = replace(OPTIONS, reset_head=reset, last_layer="passes")
        facts, _ = push(net, backbone, lambda: batches, 18, options)
        assert torch.equal(net.head, start_of_head(net.owner, 3) if reset else head)
        assert "last_layer" not in facts
        assert facts["accuracy_after"] == accuracy(net, read_activations(net, backbone, batches))


def test_a_push_counts_the_prototypes_that_stayed(batches):
    net, backbone = make()
    old = net.prototypes.clone()
    facts, sources = push(net, backbone, lambda: batches[:5], 15, OPTIONS)
    assert facts["kept"] == 2
    assert sources[5:] == [None, None]
    assert torch.equal(net.prototypes[5:], old[5:])
    assert facts["images"] == len({source["image"]["path"] for source in sources[:5]})


def test_a_last_layer_that_cannot_be_solved_is_not_kept(batches):
    net, backbone = make()
    with pytest.raises(NotExactError, match="the last layer was not solved: KKT residual"):
        push(net, backbone, lambda: batches, 18, replace(OPTIONS, tolerance=1e-30))
    assert torch.equal(net.head, start_of_head(net.owner, 3))


# -- pruning -------------------------------------------------------------------------------------------------------


def activations(distance: torch.Tensor, labels: torch.Tensor) -> Activations:
    images = tuple(ImageSource(path=str(n), sha256="") for n in range(len(labels)))
    row = torch.zeros(distance.shape, dtype=torch.int32)
    return Activations(distance=distance, row=row, labels=labels, images=images, skipped=())


@pytest.mark.parametrize(("nearest", "least"), [(6, 3), (4, 1), (1, 1), (5, 5), (100, 3)])
def test_pruning_counts_the_nearest_images(nearest, least):
    net, _ = make(per_class=(4, 3, 5))
    generator = torch.Generator().manual_seed(nearest)
    labels = torch.randint(3, (30,), generator=generator)
    distance = (20 * torch.rand(30, 12, generator=generator)).round()  # ties go to the earlier image
    kept = prune(net, activations(distance, labels), nearest=nearest, least=least)
    for j in range(12):
        ranked = sorted(range(30), key=lambda n: (float(distance[n, j]), n))[:nearest]
        same = sum(int(labels[n]) == int(net.owner[j]) for n in ranked)
        assert bool(kept[j]) == (same >= least)
    if nearest in (6, 1):
        assert 0 < int(kept.sum()) < 12


def test_pruning_does_not_empty_a_class():
    net, _ = make(per_class=(2, 1, 2))
    names = ("red", "green", "blue")
    check_pruning(torch.tensor([True, False, True, False, True]), net, names, 6, 3)
    words = "no prototype for green, blue: none of theirs has 3 of its own class among its 6 nearest training images"
    with pytest.raises(InputError, match=words):
        check_pruning(torch.tensor([True, True, False, False, False]), net, names, 6, 3)


def test_owners_come_class_after_class():
    assert owners([2, 0, 3]).tolist() == [0, 0, 2, 2, 2]
