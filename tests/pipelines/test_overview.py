"""The gallery's facts: counted by hand, and signs that were planted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from protonmf_cli.files.images.reader import crop_of_jpeg, encode_jpeg
from protonmf_cli.files.store import load_model
from protonmf_cli.models.evidence import NearestPatch
from protonmf_cli.models.image_batches import ImageSource
from protonmf_cli.models.prototype import Examples
from protonmf_cli.pipelines.auditing.signs import border_share, plain_share
from protonmf_cli.pipelines.page.gallery import gallery_of


def decode(jpeg):
    return crop_of_jpeg(jpeg, 3)


@pytest.fixture(scope="module")
def model(converted):
    return load_model(converted)[0]


def examples_of(maps, pictures, *, of, scores):
    """Training patches of one prototype."""
    jpegs = [encode_jpeg(picture) for picture in pictures]
    ends = torch.tensor([0, *(len(jpeg) for jpeg in jpegs)]).cumsum(dim=0)
    return Examples(
        prototype=torch.full((len(maps),), of),
        score=torch.tensor(scores),
        box=torch.tensor([[0, 0, 8, 8]] * len(maps)),
        map=torch.tensor(np.stack(maps)).float(),
        crop=torch.stack([ends[:-1], ends[1:]], dim=1),
        jpeg=torch.frombuffer(bytearray(b"".join(jpegs)), dtype=torch.uint8),
        sources=tuple(ImageSource(path=f"{n}.jpg", sha256=f"{n:064x}") for n in range(len(maps))),
    )


def kinds(model, prototype):
    return [sign.kind for sign in gallery_of(model, None, decode).prototypes[prototype].signs]


def textured(seed):
    return torch.randint(0, 255, (3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_counts_are_those_of_the_file(model):
    gallery = gallery_of(model, None, decode)
    w = model.weights
    pairs = list(zip(w.class_index.tolist(), w.prototype.tolist(), w.value.tolist(), strict=True))
    for fact in gallery.classes:
        c = fact.class_index
        assert fact.images == 6 + c
        assert fact.stability == min(model.stability(j) for j in model.own(c))
    assert any(prototype.users for prototype in gallery.prototypes[: len(model.parts)])
    assert gallery.measured_on == "the training images"
    for j, prototype in enumerate(gallery.prototypes):
        assert (prototype.prototype_id, prototype.number) == (j, model.number(j))
        weight = {c: v for c, jj, v in pairs if jj == j}
        if not model.wholes[j]:  # of a class that is weighed as a whole, what the head gives for its parts
            whole = model.whole(prototype.owner_index)
            weight |= {
                c: float(model.head_vectors()[c] @ model.prototypes[j].double()) for c, jj, _ in pairs if jj == whole
            }
        # from half of the owner's weight on a class counts; its own explanations do not weigh it as a whole
        half = 0.0 if model.wholes[j] else 0.5 * abs(weight.pop(prototype.owner_index))
        assert dict(prototype.users) == pytest.approx({c: v for c, v in weight.items() if abs(v) >= half})
        assert [abs(v) for _, v in prototype.users] == sorted((abs(v) for _, v in prototype.users), reverse=True)
        cosines = torch.cosine_similarity(model.prototypes[j : j + 1], model.prototypes, dim=1)
        cosines[(model.owner == model.owner[j]) | model.wholes] = -2
        assert [near.prototype_id for near in prototype.near] == cosines.topk(3).indices.tolist()
        assert prototype.near[0].cosine == pytest.approx(float(cosines.max()), abs=1e-6)


def test_users_of_projections_are_all_that_have_a_weight(paper):
    model = load_model(paper)[0]
    weights = model.weights
    planted = replace(
        model,
        weights=replace(
            weights,
            class_index=torch.cat([weights.class_index, torch.tensor([2, 3])]),
            prototype=torch.cat([weights.prototype, torch.tensor([0, 0])]),
            value=torch.cat([weights.value, torch.tensor([-1e-6, 0.0])]),
            residual_share=torch.cat([weights.residual_share, torch.zeros(2)]),
        ),
    )
    assert [len(p.users) for p in gallery_of(model, None, decode).prototypes] == [0] * 8
    found = gallery_of(planted, None, decode).prototypes
    assert found[0].users == ((2, pytest.approx(-1e-6)),)
    assert not any(p.users for p in found[1:])


def test_class_figures_are_measured_on_the_training_images(converted, toy):
    from protonmf_cli.jobs.loaded import load
    from protonmf_cli.models.response import parts_of_rows

    loaded = load(converted)
    for c, label in enumerate(name.label for name in loaded.model.card.classes):
        files = sorted((toy.data / "train" / label).iterdir())
        rows = torch.cat([loaded.backbone.read(loaded.crop(file)[None]).rows for file in files])
        parts = parts_of_rows(loaded.model, rows)
        measured = loaded.model.card.measured.per_class[str(c)]
        assert measured.accuracy == pytest.approx(float((parts.logits.argmax(dim=1) == c).float().mean()))
        carried = (parts.prototypes + parts.bias).double()
        logits = parts.logits.double()
        shares = (carried[:, c] - carried.mean(dim=1)) / (logits[:, c] - logits.mean(dim=1))
        assert measured.residual_share == pytest.approx(1 - float(shares.median()), abs=0.05)


def test_an_evaluation_goes_before_the_training_images(model):
    evaluation = {"per_class": [{"class_index": 2, "prototype_model": 0.25}]}
    gallery = gallery_of(model, evaluation, decode)
    assert [fact.accuracy for fact in gallery.classes] == [None, None, 0.25, None]


def test_mass_on_the_border_is_flagged(model):
    edge, middle = np.zeros((7, 7)), np.zeros((7, 7))
    edge[0], middle[3, 3] = 1.0, 1.0
    pictures = [textured(0), textured(1)]
    for grid, wanted in ((edge, ["border"]), (middle, []), (np.ones((7, 7)), [])):
        examples = examples_of([grid, grid], pictures, of=3, scores=[2.0, 1.9])
        found = [kind for kind in kinds(replace(model, examples=examples), 3) if kind in {"border", "background"}]
        assert found == wanted
    assert border_share(edge) == 1 and border_share(middle) == 0


def test_plain_background_is_flagged(model):
    pictures = [textured(n) for n in range(2)]
    for picture in pictures:
        picture[:, 16:40, 16:40] = 200
    on, off = np.zeros((7, 7)), np.zeros((7, 7))
    on[2:5, 2:5], off[1:6, 5] = 1.0, 1.0
    for grid, wanted in ((on, ["background"]), (off, [])):
        examples = examples_of([grid, grid], pictures, of=2, scores=[2.0, 1.9])
        found = [kind for kind in kinds(replace(model, examples=examples), 2) if kind in {"border", "background"}]
        assert found == wanted
    assert plain_share(on, pictures[0]) > 0.8 > 0.2 > plain_share(off, pictures[0])


def test_one_image_is_flagged(model):
    grid = np.zeros((7, 7))
    grid[3, 3] = 1.0
    pictures = [textured(n) for n in range(3)]
    for scores, wanted in (([2.0, 0.9, 0.1], True), ([2.0, 1.1, 0.1], False)):
        examples = examples_of([grid] * 3, pictures, of=1, scores=scores)
        assert ("one image" in kinds(replace(model, examples=examples), 1)) == wanted
        shuffled = replace(examples, sources=(examples.sources[0],) * 3)  # three patches of one picture
        assert "one image" in kinds(replace(model, examples=shuffled), 1)


def peaked(cells, pictures=None):
    """Training patches whose maps (7, 7) have one place each: prototype -> places, numbered row by row."""
    flat = [(j, cell) for j, places in sorted(cells.items()) for cell in places]
    found = examples_of(
        np.eye(49)[[cell for _, cell in flat]].reshape(-1, 7, 7), [textured(0)] * len(flat), of=0,
        scores=[1.0] * len(flat),
    )  # fmt: skip
    numbers = range(len(flat)) if pictures is None else pictures
    return replace(
        found,
        prototype=torch.tensor([j for j, _ in flat]),
        sources=tuple(ImageSource(path=f"{n}.jpg", sha256=f"{n:064x}") for n in numbers),
    )


SPREAD = {4: [0, 8, 16, 24, 32], 5: [40, 48, 6, 12, 18], 6: [30, 36, 42, 3, 45], 7: [21, 27, 14, 44, 10]}
"""Of the prototypes of other classes: all over the picture."""


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        ({3: [22, 23, 29, 30, 22]}, "at the same spot in 5 of 5 training pictures, and other classes in 5% of theirs"),
        ({3: [22, 23, 29, 30, 48]}, None),  # four of five, and other classes are there now and then
        ({3: [22, 22, 22, 22, 22], 2: [22, 22, 22]}, "at the same spot in 5 of 5"),  # its class may be there too
        ({3: [22, 22, 22, 48, 0]}, None),  # most are elsewhere
        ({3: [0, 20, 41, 5, 31]}, None),
        ({3: [24, 24, 24, 24, 24], 4: [24] * 5, 5: [24, 6, 12, 18, 0]}, None),  # where other objects are too
        ({3: [22, 22]}, None),  # too few to tell
    ],
)
def test_the_same_spot_is_flagged_where_other_classes_are_elsewhere(model, cells, wanted):
    planted = replace(model, examples=peaked(SPREAD | cells))
    words = [s.words for s in gallery_of(planted, None, decode).prototypes[3].signs if s.kind == "same spot"]
    assert len(words) == (wanted is not None) and all(each.startswith(wanted) for each in words)


def test_patches_of_one_picture_are_no_spot(model):
    cells = SPREAD | {3: [22] * 5}
    count = sum(map(len, cells.values()))
    assert "same spot" in kinds(replace(model, examples=peaked(cells)), 3)
    assert "same spot" not in kinds(replace(model, examples=peaked(cells, [0] * 5 + [*range(1, count - 4)])), 3)
    twice = SPREAD | {3: [22] * 5 + [0, 6, 42, 48, 20]}  # of each picture the stronger patch counts
    pictures = [*range(5), *range(5), *range(5, count)]
    assert "same spot" in kinds(replace(model, examples=peaked(twice, pictures)), 3)


def test_a_spot_holds_most_of_the_peaks(model):
    """However rarely other classes are there."""
    elsewhere = [cell for cell in range(49) if cell % 7 > 3 or cell > 41]
    for places, wanted in (([22, 22, 22, 22, 48], True), ([22, 22, 22, 6, 48], False)):
        cells = {3: places, **dict.fromkeys((4, 5, 6, 7), elsewhere * 3)}
        assert ("same spot" in kinds(replace(model, examples=peaked(cells)), 3)) == wanted


def test_twins_and_unstable_prototypes_are_flagged(model):
    vectors = model.prototypes.clone()
    twin = int((model.owner != model.owner[0]).nonzero()[0])
    vectors[twin] = torch.nn.functional.normalize(vectors[0] + 0.01 * vectors[-1], dim=0)
    stability = [0.9] * len(vectors)
    stability[5] = 0.4
    planted = replace(
        model, prototypes=vectors, card=replace(model.card, measured=replace(model.card.measured, stability=stability))
    )
    gallery = gallery_of(planted, None, decode)
    assert "twin" in [sign.kind for sign in gallery.prototypes[0].signs]
    assert f"prototype {model.number(twin)} of" in next(
        s.words for s in gallery.prototypes[0].signs if s.kind == "twin"
    )
    assert [j for j, p in enumerate(gallery.prototypes) if "unstable" in [s.kind for s in p.signs]] == [5]


def test_networks_are_compared_apart(model):
    """Two networks, the second one's prototypes far away: each is centred by itself."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.rand(12, model.prototypes.shape[1], generator=generator)
    vectors[6:] += 50
    member = torch.tensor([0] * 6 + [1] * 6)
    planted = replace(
        model, prototypes=vectors, evidence=NearestPatch(member=member),
        card=replace(model.card, pooling="max", members=(model.card, model.card)),
    )  # fmt: skip
    near = [prototype.near for prototype in gallery_of(planted, None, decode).prototypes]
    assert all(member[each.prototype_id] == member[j] for j, found in enumerate(near) for each in found)
    assert max(found[0].cosine for found in near if found) < 0.7


def test_prototypes_that_are_not_shown_are_named_only(model):
    gallery = gallery_of(model, None, decode, {1})
    assert [bool(p.examples) for p in gallery.prototypes] == [j == 1 for j in range(12)]
    assert [p.number for p in gallery.prototypes] == [model.number(j) for j in range(12)]


def test_prototypes_that_are_not_kept_are_left_out_unless_a_shown_one_is_like_them(model):
    whole = gallery_of(model, None, decode)
    gallery = gallery_of(model, None, decode, {1}, kept=[1, 5])
    like = {near.prototype_id for near in whole.prototypes[1].near}
    assert [p.prototype_id for p in gallery.prototypes] == sorted({1, 5} | like)
    (looked_at,) = (p for p in gallery.prototypes if p.examples)
    assert looked_at.prototype_id == 1
    assert [near.prototype_id for near in looked_at.near] == [near.prototype_id for near in whole.prototypes[1].near]
    owners = {int(model.owner[j]) for j in {1, 5} | like}
    assert [fact.class_index for fact in gallery.classes] == sorted(owners)


def test_prototypes_shared_by_unrelated_classes_are_flagged(model):
    w = model.weights
    lender = 0
    used = model.own(lender)[0]
    own = float(w.value[(w.class_index == lender) & (w.prototype == used)])
    users = [c for c in (1, 2, 3) if used not in w.prototype[w.class_index == c]]
    others = w.prototype != used  # those that use it already are given a weight that is too small to count
    planted = replace(
        model,
        weights=replace(
            w,
            class_index=torch.cat([w.class_index, torch.tensor(users)]),
            prototype=torch.cat([w.prototype, torch.full((len(users),), used)]),
            value=torch.cat(
                [
                    torch.where(others | (w.class_index == lender), w.value, 0.4 * abs(own)),
                    torch.full((len(users),), 0.6 * abs(own)),
                ]
            ),
            residual_share=torch.cat([w.residual_share, torch.zeros(len(users))]),
        ),
    )
    planted = replace(planted, residual=planted.residual + (model.head_vectors() - planted.head_vectors()).float())
    rows = planted.head_vectors() - planted.head_vectors().mean(dim=0)
    unlike = {c for c in (1, 2, 3) if torch.cosine_similarity(rows[lender], rows[c], dim=0) < 0}
    positive = {c for c, v in gallery_of(planted, None, decode).prototypes[used].users if v > 0}
    assert positive == set(users)
    found = "shared" in kinds(planted, used)
    assert found == (len(positive & unlike) > 1) and found
