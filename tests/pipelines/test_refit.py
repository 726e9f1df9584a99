"""A refitted last layer is again a prototype model that gives nothing for what was removed; or there is no refit."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_amount_edits import contributions, logits, model_of

import protonmf_cli
from protonmf_cli.errors import InputError
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.jobs.images import labelled_images
from protonmf_cli.maths.amounts import dual
from protonmf_cli.maths.head_refit import Candidate
from protonmf_cli.models.card import RefitFacts
from protonmf_cli.models.evidence_kind import EvidenceKind
from protonmf_cli.models.image_batches import ImageSource, digest_of_images
from protonmf_cli.options import ImageWords
from protonmf_cli.pipelines.explaining import refit as refitting
from protonmf_cli.pipelines.explaining.intervention import apply_edits, find_edit, find_edit_everywhere
from protonmf_cli.pipelines.explaining.pasting import PartPatch, pasted_places, patches_of, strongest_region
from protonmf_cli.pipelines.explaining.refit import RefitImages, read_refit_images, refit_head, removed_everywhere

CLASSES, EACH = 5, 8


def images_of(rows, labels):
    sources = tuple(ImageSource(path=f"{n}.png", sha256=f"{n:064}") for n in range(len(labels)))
    bare = torch.full_like(labels, -1)
    return RefitImages(rows=rows, labels=labels, origin=torch.arange(len(labels)), pasted=bare, sources=sources)


def images(width=16, seed=3):
    """Of every class around a centre of its own, which the head knows nothing of."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(EACH)
    centres = torch.randn(CLASSES, width, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(labels), width, generator=generator, dtype=torch.float64)
    return images_of(3 * centres[labels] + 0.3 * noise, labels)


def edited_of(model, *prototypes):
    return apply_edits(model, [find_edit_everywhere(model, owner, number, 0.0) for owner, number in prototypes])


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_a_refitted_model_is_an_exact_prototype_model_off_what_was_removed(ridge):
    model, _, _ = model_of(ridge=ridge)
    edited = edited_of(model, (0, 1), (2, 2))
    removed = [model.own(0)[0], model.own(2)[1]]
    found, result = refit_head(model, edited, images())
    assert result.ridge is not None and list(result.removed) == removed
    head = found.head_vectors()
    assert float((head @ model.prototypes[removed].T).abs().max()) < 1e-12
    assert float((head - edited.head_vectors()).abs().max()) > 0.01
    rows = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(logits(found, rows), rows.sum(dim=1) @ head.T + found.bias, atol=1e-9)
    gone = torch.isin(found.weights.prototype, torch.tensor(removed))
    assert gone.any() and not found.weights.value[gone].any()
    for c in range(CLASSES):
        entries = found.entries(c)
        parts = found.weights.prototype[entries]
        expected = found.prototypes[parts] @ head[c] * dual(found.prototypes[parts], ridge).carried
        expected[torch.isin(parts, torch.tensor(removed))] = 0
        assert torch.allclose(found.weights.value[entries], expected, atol=1e-9)
        made = contributions(found, c, rows[:1]).sum() + rows[0, :2].sum(dim=0) @ found.residual[c]
        assert torch.allclose(made, rows[0, :2].sum(dim=0) @ head[c], atol=1e-9)


def test_its_figures_are_those_of_the_models_and_the_card_keeps_what_was_done():
    model, _, _ = model_of()
    edited, given = edited_of(model, (0, 1)), images()
    found, result = refit_head(model, edited, given)

    def right(each, classes=range(CLASSES)):
        tops = (given.rows @ each.head_vectors().T + each.bias).argmax(dim=1)
        return int(((tops == given.labels) & torch.isin(given.labels, torch.tensor(list(classes)))).sum())

    whole, own = result.whole, result.per_class[0]
    assert (whole.images, whole.before, whole.edited) == (CLASSES * EACH, right(model), right(edited))
    assert (own.images, own.before, own.edited) == (EACH, right(model, [0]), right(edited, [0]))
    assert set(result.per_class) == {0}
    assert right(found) >= whole.refitted > whole.edited
    none, *steps = result.candidates
    assert (none.ridge, none.right) == (None, whole.edited)
    best = min(steps, key=lambda step: step.loss)
    assert (result.ridge, whole.refitted) == (best.ridge, best.right)
    (facts,) = found.card.refits
    assert facts == RefitFacts(
        images=40, digest=facts.digest, classes=5, ridge=result.ridge, removed=(model.own(0)[0],)
    )
    assert facts.digest == digest_of_images(given.sources)
    assert model.card.refits == ()


def test_what_was_removed_by_an_earlier_edit_stays_removed():
    model, _, _ = model_of()
    once = apply_edits(edited_of(model, (1, 1)), [find_edit(model, 3, 3, 1, 0.0)])
    edited = edited_of(once, (4, 2))
    assert removed_everywhere(edited) == (model.own(1)[0], model.own(4)[1])
    found, _ = refit_head(once, edited, images())
    assert float((found.head_vectors() @ model.prototypes[[model.own(1)[0], model.own(4)[1]]].T).abs().max()) < 1e-12
    of_class = (found.weights.class_index == 3) & (found.weights.prototype == model.own(3)[0])
    assert found.weights.value[of_class].tolist() == [0.0]


def test_scaled_prototypes_are_not_removed():
    model, _, _ = model_of()
    edited = apply_edits(model, [find_edit_everywhere(model, 0, 1, 0.5)])
    with pytest.raises(InputError, match="refit is for prototypes that were removed from every class"):
        refit_head(model, edited, images())


def test_images_that_say_nothing_of_the_rest_are_refused():
    model, _, _ = model_of()
    amounts = torch.linspace(0.5, 1.5, 10, dtype=torch.float64)
    given = images_of(amounts[:, None] * model.prototypes[model.own(0)[0]], torch.arange(10) % 2)
    with pytest.raises(InputError, match="differ in nothing but what was removed"):
        refit_head(model, edited_of(model, (0, 1)), given)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1] * 6, "the images are of one class"),
        ([0, 0, 0, 1, 2, 2], "a class has only 1 image, and 2 of each are needed"),
    ],
)
def test_too_few_images_leave_the_edit_as_it_is(labels, words):
    model, _, _ = model_of()
    edited, given = edited_of(model, (0, 1)), images()
    found, result = refit_head(model, edited, images_of(given.rows[: len(labels)], torch.tensor(labels)))
    assert found is edited
    assert (result.ridge, result.reason) == (None, words)
    assert (result.candidates, result.whole.refitted) == ((), None)


def test_no_step_is_taken_where_none_is_better():
    """Labels that are what the edited model says with certainty leave nothing to learn."""
    model, _, _ = model_of()
    edited, given = edited_of(model, (0, 1)), images()
    rows = 1e4 * given.rows
    tops = (rows @ edited.head_vectors().T + edited.bias).argmax(dim=1)
    keep = torch.isin(tops, (tops.bincount() > 1).nonzero()[:, 0])
    found, result = refit_head(model, edited, images_of(rows[keep], tops[keep]))
    assert found is edited
    assert result.reason == "none lowers the loss on images that were held out"
    assert result.whole.edited == result.whole.images


def test_a_class_that_was_edited_may_not_lose(monkeypatch):
    """The best step that costs such a class nothing is taken; where all cost it something, none."""
    model, _, _ = model_of()
    edited, given = edited_of(model, (0, 1)), images()
    one_less, other = given.labels.clone(), given.labels.clone()
    one_less[3] = 4
    other[EACH + 1] = 4  # of a class that was not edited
    tried = [
        Candidate(ridge=None, loss=1.0, top=given.labels),
        Candidate(ridge=1e-1, loss=0.5, top=other),
        Candidate(ridge=1e-2, loss=0.2, top=one_less),
    ]
    monkeypatch.setattr(refitting, "cross_validated", lambda *_: tried)
    assert refit_head(model, edited, given)[1].ridge == 1e-1
    tried[1] = replace(tried[1], loss=1.5)
    found, result = refit_head(model, edited, given)
    assert found is edited
    assert result.reason == "with it fewer held-out images of class 0 are right than with the edit alone"
    assert (result.per_class[0].refitted, result.per_class[0].images) == (EACH - 1, EACH)


# patches of the part in other images


def test_the_strongest_places_of_a_map_are_pasted_and_nothing_else():
    grid = torch.zeros(4, 6)
    grid[1, 2], grid[3, 5], grid[0, 0] = 3.0, 2.0, -1.0
    region = strongest_region(grid, (8, 12))
    assert region[2:4, 4:6].all() and region[6:8, 10:12].all()
    assert int(region.sum()) == 8
    assert int(strongest_region(grid + 5, (8, 12)).sum()) == 4 * 4  # a sixth of 24 places
    assert not strongest_region(torch.zeros(0, 0), (8, 12)).any()
    crop, pixels = torch.zeros(3, 8, 12, dtype=torch.uint8), torch.full((3, 8, 12), 7, dtype=torch.uint8)
    pasted = PartPatch(pixels=pixels, region=region).on(crop)
    assert torch.equal(pasted[0] == 7, region) and not crop.any()


@pytest.fixture(scope="module")
def loaded(converted):
    return protonmf_cli.load(converted)


def test_similarities_are_pasted_from_their_least_value():
    grid = -np.arange(1.0, 13.0).reshape(3, 4)  # as some networks compare: all below zero, the nearest ones least so
    assert pasted_places(EvidenceKind.SIMILARITIES, grid).flatten().nonzero()[:, 0].tolist() == [0, 1]
    assert not pasted_places(EvidenceKind.AMOUNTS, grid).any()
    assert pasted_places(EvidenceKind.SIMILARITIES, np.zeros((0, 0))).shape == (0, 0)


def test_images_are_read_as_they_are_and_with_patches_of_other_classes(toy, loaded):
    model = loaded.model
    prototypes = [model.own(0)[0], model.own(2)[1]]

    def picture(example):
        return crop_of_jpeg(model.examples.picture(example), 3)

    patches = patches_of(model, prototypes, picture)
    assert set(patches) == set(prototypes)
    for prototype in prototypes:
        for patch, example in zip(patches[prototype], model.examples.of(prototype), strict=True):
            assert torch.equal(patch.pixels, picture(example)) and patch.region.any() and not patch.region.all()
    files = labelled_images(ImageWords.of(toy.data, "val"), model.card.classes)
    found = read_refit_images(loaded.backbone, loaded.reader.batches(files.of(files.files)), patches, model.owner)
    counts = [len(files.files[c]) for c in range(4)]
    assert len(found.sources) == sum(counts)
    assert found.labels[found.pasted < 0].tolist() == [c for c in range(4) for _ in range(counts[c])]
    for prototype in prototypes:
        own = int(model.owner[prototype])
        hosts = found.labels[found.pasted == prototype]
        assert hosts.tolist() == [c for c in range(4) if c != own for _ in range(counts[c])]
    assert torch.equal(found.labels, found.labels[found.pasted < 0][found.origin])
    number = counts[0]  # the first image of class 1
    crop = loaded.crop(toy.image(1))
    for prototype in (-1, *prototypes):
        patch = patches.get(prototype, [None])[number % len(patches.get(prototype, [None]))]
        crops = crop if patch is None else patch.on(crop)
        expected = loaded.backbone.read(crops[None]).rows[0].double().sum(dim=0)
        (row,) = found.rows[(found.origin == number) & (found.pasted == prototype)]
        assert torch.allclose(row, expected, rtol=1e-4, atol=1e-4)


def test_rows_without_a_place_have_no_patches(loaded):
    examples = replace(loaded.model.examples, map=torch.zeros(len(loaded.model.examples.map), 0, 0))
    model = replace(loaded.model, examples=examples)
    assert patches_of(model, [0, 1], lambda example: crop_of_jpeg(model.examples.picture(example), 3)) == {}


def test_what_one_direction_leaves_of_a_part_is_learned_from_patches():
    """The part also writes along a direction that no image without it holds; with patches the class is not taken for it."""
    model, _, _ = model_of()
    edited, given = edited_of(model, (0, 1)), images()
    part = torch.nn.functional.normalize(model.prototypes[model.own(0)[0]], dim=0)
    leak = torch.randn(16, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    leak = torch.nn.functional.normalize(leak - leak @ part * part, dim=0)
    given.rows[:] -= torch.outer(given.rows @ leak, leak)
    head = edited.head_vectors()
    leaking = replace(edited, residual=edited.residual + torch.outer(50 * torch.eye(5).double()[0] - head @ leak, leak))
    prototype, others = model.own(0)[0], given.labels != 0
    with_patches = replace(
        given,
        rows=torch.cat([given.rows, given.rows[others] + leak]),
        labels=torch.cat([given.labels, given.labels[others]]),
        origin=torch.cat([given.origin, given.origin[others]]),
        pasted=torch.cat([given.pasted, torch.full((int(others.sum()),), prototype)]),
    )
    alone, _ = refit_head(model, leaking, given)
    found, result = refit_head(model, leaking, with_patches)

    def taken(each):
        tops = ((given.rows[others] + leak) @ each.head_vectors().T + each.bias).argmax(dim=1)
        return int((tops == 0).sum())

    along = result.taken_along[prototype]
    assert (along.images, along.edited) == (int(others.sum()), taken(leaking))
    assert taken(leaking) == taken(alone) == int(others.sum())
    assert taken(found) == along.refitted == 0
    assert result.whole.images == len(given.labels)
    assert result.images == len(given.sources)
