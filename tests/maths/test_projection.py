"""Patches chosen at least cost, and what a projection is promised and seen to do to decisions."""

import itertools
import math
from dataclasses import replace

import pytest
import torch

from protonmf_cli.maths.patch_assignment import Projected, TheoremCounts, distinct_patches, theorem_counts
from protonmf_cli.maths.similarity import EPSILON, SIMILARITIES, squared_distances
from protonmf_cli.models.protopnet.latent_patches import start_of_head

# -- distinct patches ----------------------------------------------------------------------------------------------


def cheapest(distance: torch.Tensor, per_image: int) -> float | None:
    """Least total distance over every assignment of patches (n, T) to prototypes."""
    images, places, prototypes = distance.shape
    best = None
    for chosen in itertools.permutations(itertools.product(range(images), range(places)), prototypes):
        if max(sum(i == image for i, _ in chosen) for image in range(images)) <= per_image:
            total = sum(float(distance[i, t, j]) for j, (i, t) in enumerate(chosen))
            best = total if best is None else min(best, total)
    return best


@pytest.mark.parametrize("coarse", [False, True], ids=["apart", "ties"])
@pytest.mark.parametrize("per_image", [1, 2, 3])
def test_distinct_patches_equal_brute_force(per_image, coarse):
    solved = 0
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        images, places, prototypes = (int(torch.randint(1, 4, (1,), generator=generator)) for _ in range(3))
        places = max(places, per_image)
        wanted = torch.rand(images, places, 1, generator=generator).expand(-1, -1, prototypes)
        distance = wanted + 0.3 * torch.rand(images, places, prototypes, generator=generator)
        distance = (3 * distance).round() if coarse else distance
        near, place = (found[:, :per_image] for found in distance.sort(dim=1, stable=True))
        expected = cheapest(distance, per_image)
        if expected is None:
            with pytest.raises(ValueError, match="cannot have different patches"):
                distinct_patches(near, place, per_image)
            continue
        chosen = distinct_patches(near, place, per_image)
        patches = [(image, int(place[image, rank, j])) for j, (image, rank) in enumerate(chosen)]
        assert len(set(patches)) == prototypes
        assert max(sum(i == image for i, _ in patches) for image in range(images)) <= per_image
        total = sum(float(distance[image, t, j]) for j, (image, t) in enumerate(patches))
        assert total == pytest.approx(expected, abs=1e-6)
        solved += prototypes > 1
    assert solved >= 3


@pytest.mark.parametrize(("images", "places", "per_image"), [(2, 1, 1), (1, 2, 2), (2, 5, 1)])
def test_too_few_patches_are_refused(images, places, per_image):
    distance = torch.rand(images, places, 3, generator=torch.Generator().manual_seed(0))
    near, place = (found[:, :per_image] for found in distance.sort(dim=1))
    with pytest.raises(ValueError, match=f"3 prototypes cannot have different patches of {images} images"):
        distinct_patches(near, place, per_image)


# -- Theorem 2.1, planted ------------------------------------------------------------------------------------------

OWNERS = torch.tensor([0, 1])


def planted(own: float, other: float, moved: float = 0.001, change: float = 0.0) -> Projected:
    """One image of class 0: Euclidean distances to the prototypes of two classes."""
    before = torch.tensor([[own, other]]).square()
    return Projected(
        before=before,
        after=before + change,
        same_patch=torch.ones(1, 2, dtype=torch.bool),
        moved=torch.full((2,), moved),
    )


def counted(projected: Projected, owner=OWNERS, label: int = 0, classes: int = 2) -> TheoremCounts:
    labels = torch.full((len(projected.before),), label)
    return theorem_counts(projected, start_of_head(owner, classes), owner, labels, epsilon=EPSILON)


def test_the_theorem_certifies_a_clear_image_that_hardly_moved():
    found = counted(planted(own=0.2, other=3.0, moved=0.01))
    assert (found.images, found.correct, found.certified_by_theorem, found.changed) == (1, 1, 1, 0)


@pytest.mark.parametrize(
    ("own", "moved", "certified"),
    [
        # the best theta, 0.1994 at delta = 0.44, allows the other class's prototype 0.1994 x 3 - 0.01
        (0.2, (0.0, 0.58), 1),
        (0.2, (0.0, 0.593), 0),
        # an own prototype at 0.2 allows delta up to 0.96 and so (sqrt(1.96) - 1) x 0.2 = 0.08
        (0.2, (0.075, 0.0), 1),
        (0.2, (0.085, 0.0), 0),
        # one at 0.4 allows delta up to 0.84 and so (sqrt(1.84) - 1) x 0.4 = 0.143
        (0.4, (0.135, 0.0), 1),
        (0.4, (0.155, 0.0), 0),
    ],
)
def test_the_theorem_asks_for_little_movement(own, moved, certified):
    found = counted(replace(planted(own=own, other=3.0), moved=torch.tensor(moved)))
    assert (found.correct, found.certified_by_theorem) == (1, certified)


def test_the_theorem_asks_for_the_same_nearest_patches():
    for patches in ([True, False], [False, True]):
        found = counted(replace(planted(own=0.2, other=3.0), same_patch=torch.tensor([patches])))
        assert (found.correct, found.certified_by_theorem) == (1, 0)


@pytest.mark.parametrize(("own", "certified"), [(0.5, 1), (0.53, 1), (0.54, 0), (0.6, 0)])
def test_the_theorem_asks_for_twice_the_largest_change(own, certified):
    gap = math.log((own**2 + 1) / (own**2 + EPSILON)) - math.log((9 + 1) / (9 + EPSILON))
    smallest = 2 * math.log(1.01 * 1.99)
    assert (gap >= smallest) == bool(certified)
    assert counted(planted(own=own, other=3.0)).certified_by_theorem == certified


def several(owner: list[int], own: float = 0.1, classes: int = 2) -> TheoremCounts:
    before = torch.tensor([[own if c == 0 else 4.0 for c in owner]]).square()
    same = torch.ones_like(before, dtype=torch.bool)
    projected = Projected(before=before, after=before, same_patch=same, moved=torch.full((len(owner),), 0.001))
    return counted(projected, torch.tensor(owner), classes=classes)


def test_the_gap_grows_with_the_prototypes_of_a_class():
    assert several([0, 0, 1, 1], own=0.5).certified_by_theorem == 1
    assert several([0, 0, 1, 1], own=0.7).certified_by_theorem == 0  # a gap of 2.1, enough for one prototype only


def test_the_theorem_asks_for_as_many_prototypes_in_every_class():
    assert several([0, 0, 1, 1]).certified_by_theorem == 1
    for owner in ([0, 0, 1], [0, 0, 0, 1, 1], [0, 0]):
        found = several(owner)
        assert (found.correct, found.certified_by_theorem) == (1, 0)
    assert several([0, 0, 1, 1], classes=3).certified_by_theorem == 0


def test_the_theorem_is_about_images_that_were_right():
    assert counted(planted(own=0.3, other=0.9)).correct == 1
    found = counted(planted(own=0.9, other=0.3))
    assert (found.correct, found.certified_by_theorem, found.certified_by_bound) == (0, 0, 1)
    assert counted(planted(own=0.3, other=3.0), label=1).correct == 0


# -- soundness -----------------------------------------------------------------------------------------------------


def trial(seed: int, per_class: int, scale: float) -> tuple[Projected, torch.Tensor, torch.Tensor]:
    """Sixty images of six patches, one near each prototype of the image's class; prototypes that moved by about `scale`."""
    generator = torch.Generator().manual_seed(seed)
    classes, width = 3, 5
    owner = torch.arange(classes).repeat_interleave(per_class)
    old = 2.0 * torch.randn(len(owner), width, generator=generator)
    new = old + scale * torch.randn(len(owner), width, generator=generator)
    labels = torch.randint(classes, (60,), generator=generator)
    rows = 3.0 * torch.randn(60, 6, width, generator=generator)
    for n, label in enumerate(labels.tolist()):
        own = old[owner == label]
        noise = torch.randn(per_class, width, generator=generator)
        rows[n, :per_class] = own + 0.8 * torch.rand(1, generator=generator) * noise
    before, after = (squared_distances(rows, prototypes) for prototypes in (old, new))
    projected = Projected(
        before=before.amin(dim=1),
        after=after.amin(dim=1),
        same_patch=before.argmin(dim=1) == after.argmin(dim=1),
        moved=(new - old).norm(dim=1),
    )
    return projected, owner, labels


def only(projected: Projected, chosen: torch.Tensor) -> Projected:
    return replace(
        projected,
        before=projected.before[chosen],
        after=projected.after[chosen],
        same_patch=projected.same_patch[chosen],
    )


@pytest.mark.parametrize("per_class", [1, 2])
def test_promises_are_kept(per_class):
    promised = {"theorem": 0, "bound": 0, "changed": 0, "changed simply": 0}
    for seed, scale in itertools.product(range(5), (0.01, 0.1, 0.5, 2.0)):
        projected, owner, labels = trial(seed, per_class, scale)
        before, after = (SIMILARITIES["log"](d).double() for d in (projected.before, projected.after))
        plain = (owner == torch.arange(3)[:, None]).double()
        real = start_of_head(owner, 3) + 0.3 * torch.randn(3, len(owner), generator=torch.Generator().manual_seed(seed))
        counts = theorem_counts(projected, real, owner, labels, epsilon=EPSILON)
        tops = [(s @ plain.mT).argmax(dim=1) for s in (before, after)]
        assert counts.correct == int((tops[0] == labels).sum())
        flipped = tops[0] != tops[1]
        among = theorem_counts(only(projected, flipped), real, owner, labels[flipped], epsilon=EPSILON)
        assert among.certified_by_theorem == 0
        changed = (before @ real.double().mT).argmax(dim=1) != (after @ real.double().mT).argmax(dim=1)
        assert counts.changed == int(changed.sum())
        among = theorem_counts(only(projected, changed), real, owner, labels[changed], epsilon=EPSILON)
        assert among.changed == among.images
        assert among.certified_by_bound == 0
        promised["theorem"] += counts.certified_by_theorem
        promised["bound"] += counts.certified_by_bound
        promised["changed"] += counts.changed
        promised["changed simply"] += int(flipped.sum())
    assert min(promised.values()) >= 10, promised


def test_the_bound_is_exact_where_every_change_is_for_the_worst():
    """Two classes, +1 and -0.5: own similarities fall and the other class's rise, so the bound is what happens."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.tensor([0, 0, 1, 1])
    similarity = 1 + 3 * torch.rand(400, 4, generator=generator, dtype=torch.float64)
    top = (similarity @ start_of_head(owner, 2).double().mT).argmax(dim=1)
    step = 0.8 * torch.rand(400, 4, generator=generator, dtype=torch.float64)
    later = similarity - torch.where(owner == top[:, None], step, -step)
    before, after = ((1 - EPSILON * s.exp()) / (s.exp() - 1) for s in (similarity, later))
    same = torch.zeros(400, 4, dtype=torch.bool)
    projected = Projected(before=before, after=after, same_patch=same, moved=torch.ones(4))
    found = theorem_counts(
        projected, start_of_head(owner, 2), owner, torch.zeros(400, dtype=torch.int64), epsilon=EPSILON
    )
    assert found.certified_by_bound + found.changed == 400
    assert min(found.certified_by_bound, found.changed) > 50
    assert found.certified_by_theorem == 0
