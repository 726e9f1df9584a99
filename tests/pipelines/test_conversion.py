"""Conversion in this process: resumable, grouped or not, whatever the order of what happens."""

import os
from dataclasses import replace
from itertools import islice

import pytest
import torch

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.images.reader import encode_jpeg
from protonmf_cli.files.networks.backbones import load_backbone
from protonmf_cli.files.networks.request import BackboneRequest
from protonmf_cli.files.work.cached_features import CachedFeatures
from protonmf_cli.files.work.finished_classes import PartFiles
from protonmf_cli.files.work.spool import Spool
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.models.card import DataFacts
from protonmf_cli.models.image_batches import digest_of_images
from protonmf_cli.models.readouts.readout import spread
from protonmf_cli.models.response import logit_parts, parts_of_rows
from protonmf_cli.options import ConversionOptions, Share
from protonmf_cli.pipelines.conversion import classes
from protonmf_cli.pipelines.conversion.assembly import _cancellation_figures, assemble_model
from protonmf_cli.pipelines.conversion.classes import Alone, ConversionImages, convert_classes, read_classes
from protonmf_cli.pipelines.progress import Silent

OPTIONS = ConversionOptions(prototypes=2, batch_size=4)


@pytest.fixture(scope="module")
def setting(toy):
    backbone, _ = load_backbone(BackboneRequest(name=toy.name))
    found = find_images(toy.data, "train", backbone.classes, ClassMapping())
    reader = image_reader(backbone.preprocessing, batch_size=4, workers=2)
    images = ConversionImages(
        counts=found.counts, open=lambda some: reader.batches_of(found.files[c] for c in some), encode=encode_jpeg
    )
    return backbone, images


def convert(setting, options=OPTIONS, finished=None):
    backbone, images = setting
    parts = {} if finished is None else finished
    convert_classes(backbone, images, options, parts)
    return assemble_model(backbone, parts, options, data=DataFacts())


def same(first, second) -> bool:
    return all(
        torch.equal(a, b)
        for a, b in (
            (first.prototypes, second.prototypes),
            (first.residual, second.residual),
            (first.amounts.usual, second.amounts.usual),
            (first.amounts.unplaced_mean, second.amounts.unplaced_mean),
            (first.weights.value, second.weights.value),
            (first.examples.jpeg, second.examples.jpeg),
            (first.examples.map, second.examples.map),
        )
    )


def test_logits_are_the_networks_own(setting):
    backbone, images = setting
    model = convert(setting)
    for batch in images.open(list(images.counts)):
        reading = backbone.read(batch.crops)
        found = parts_of_rows(model, reading.rows).logits
        assert (found - reading.logits).abs().max() < 1e-4
    assert model.card.measured.agreement == 1
    assert model.card.readout.max_abs_logit_difference < 1e-4
    assert model.card.similarity == "dual"
    assert model.card.measured.ridge == model.amounts.ridge


def test_figures_of_the_amounts_are_those_of_the_training_images(setting):
    backbone, images = setting
    model = convert(setting)
    cancelled = []
    for c in images.counts:
        rows = torch.cat([backbone.read(b.crops).rows for b in images.open([c])]).double()
        readers = model.exact.readers(c)
        own = model.own(c)
        amounts = rows.sum(dim=1) @ readers.mT
        for k, j in enumerate(own):
            assert float(amounts[:, k].median()) == pytest.approx(1, abs=0.2)  # the lower of two middle ones
            assert float(amounts[:, k].quantile(0.5)) == pytest.approx(1, abs=1e-4)
            assert model.amounts.range_of(j) == pytest.approx(
                (float(amounts[:, k].quantile(0.05)), float(amounts[:, k].quantile(0.95))), abs=1e-4
            )
            peaks = (rows @ readers[k]).amax(dim=1)
            assert float(peaks.min()) <= model.amounts.peak_of(j) <= float(peaks.max())
        parts = amounts * model.exact.weights.value[model.entries(c)]
        cancelled.append(parts.abs().sum(dim=1) / parts.sum(dim=1).abs())
    sizes = torch.cat(cancelled)
    figures = model.card.measured.cancellation
    assert figures["median"] == pytest.approx(float(sizes.median()), rel=1e-3)
    assert figures["high"] == pytest.approx(float(sizes.quantile(0.9)), rel=1e-3)
    assert not model.amounts.unplaced_mean.any()  # every row has a place


def test_the_certificate_is_relative_to_the_class_whose_logits_vary_least(setting):
    parts: dict = {}
    model = convert(setting, finished=parts)
    readout = setting[0].readout
    off = (model.head_vectors() - readout.vectors.double()).norm(dim=1).max()
    spreads, bounds, differences = [], [], []
    for part in parts.values():
        rows = part.pooled.sum(dim=1).double()
        expected = rows @ readout.vectors.double().mT + readout.bias
        spreads.append(spread(expected))
        bounds.append(float(off * rows.norm(dim=1).max()))
        differences.append(float((logit_parts(model.exact, part.pooled.double()).logits - expected).abs().max()))
        assert 0 < differences[-1] <= bounds[-1] <= 1000 * differences[-1]
    assert max(spreads) > 1.1 * min(spreads)
    rows, relative = (
        max(part.figures[name] for part in parts.values()) for name in ("max_abs_difference", "max_rel_difference")
    )
    found = model.card.readout
    assert found.max_abs_logit_difference == pytest.approx(rows + max(bounds), rel=1e-6)
    assert found.relative_difference == pytest.approx(relative + max(bounds) / min(spreads), rel=1e-6)


def test_examples_are_in_the_unit_of_their_prototypes(setting):
    """Codes of unit prototypes, divided by the length that makes a usual amount one."""
    parts: dict = {}
    model = convert(setting, finished=parts)
    assert (model.prototypes.norm(dim=1) - 1).abs().max() > 0.1
    for c, part in parts.items():
        for j in model.own(c):
            k = int((part.prototypes @ model.prototypes[j]).argmax())
            length, own = float(model.prototypes[j].norm()), model.examples.of(j)
            assert torch.allclose(length * model.examples.score[own], part.examples.score[k], rtol=1e-4)
            assert torch.allclose(length * model.examples.map[own], part.examples.map[k], rtol=1e-4)
            assert torch.equal(model.examples.box[own], part.examples.box[k])


@pytest.mark.parametrize("signed", [False, True])
def test_explanations_of_other_classes_weigh_a_class_as_a_whole(setting, signed):
    model = convert(setting, replace(OPTIONS, near_as="wholes", near=2)).exact
    assert model.wholes.tolist() == [False] * 8 + [True] * 4
    for c in range(4):
        whole = model.whole(c)
        assert (len(model.own(c)), model.number(whole), int(model.owner[whole])) == (2, 0, c)
        used = model.weights.prototype[model.entries(c)].tolist()
        assert used[:2] == model.own(c)
        assert len(used) == 4
        assert all(model.wholes[j] and int(model.owner[j]) != c for j in used[2:])
        assert model.stability(whole) is None
        shown = model.examples.of(whole)
        assert len(shown)
        assert model.examples.box[shown].tolist() == [[0, 0, 64, 64]] * len(shown)
        assert torch.equal(model.examples.crop[shown], model.examples.crop[model.examples.of(model.own(c)[0])])
    images = torch.rand(3, 2, model.prototypes.shape[1], dtype=torch.float64) - (0.5 if signed else 0)
    backbone, _ = setting
    head = backbone.readout.vectors.double()
    assert torch.allclose(
        logit_parts(model, images[:, :1]).logits, images[:, 0] @ head.T + backbone.readout.bias.double(), atol=1e-5
    )
    alone = convert(setting, replace(OPTIONS, near_as="wholes", near=0))
    assert not alone.wholes.any()


@pytest.mark.parametrize("lost", [(0,), (1, 3), (0, 1, 2, 3)])
def test_lost_classes_are_computed_again_and_nothing_else(setting, lost):
    backbone, images = setting
    whole: dict = {}
    model = convert(setting, finished=whole)
    rest = {c: part for c, part in whole.items() if c not in lost}
    asked: list[int] = []

    def watched(classes):
        def seen():
            for c in classes:
                asked.append(c)
                yield c

        return images.open(seen())

    again = convert((backbone, replace(images, open=watched)), finished=rest)
    assert asked == list(lost)
    assert same(model, again)
    assert model.card == again.card


def test_a_group_of_classes_gives_the_same_prototypes(setting):
    alone, together = convert(setting), convert(setting, replace(OPTIONS, group=3))
    assert torch.equal(alone.owner, together.owner)
    assert torch.cosine_similarity(alone.prototypes, together.prototypes).min() > 0.999
    assert torch.allclose(alone.prototypes.norm(dim=1), together.prototypes.norm(dim=1), rtol=0.05)
    assert together.card.measured.agreement == 1


def test_order_is_by_mean_contribution_to_the_own_class(setting):
    """With the coefficients of eq. 4, whatever the reconstruction."""
    backbone, images = setting
    model = convert(setting, replace(OPTIONS, prototypes=4))
    for c in images.counts:
        pooled = torch.cat([backbone.read(b.crops).rows.sum(dim=1) for b in images.open([c])])
        own = model.own(c)
        basis = model.prototypes[own].double()
        paper = torch.linalg.lstsq(basis.T, backbone.readout.vectors[c].double()).solution
        values = (paper * (basis @ pooled.double().mean(dim=0))).tolist()
        assert values == sorted(values, reverse=True)


def test_other_batch_sizes_move_little(setting, toy):
    backbone, images = setting
    found = find_images(toy.data, "train", backbone.classes, ClassMapping())
    other = replace(
        images, open=lambda c: image_reader(backbone.preprocessing, batch_size=3, workers=1).batches(found.of(c))
    )
    first, second = convert(setting), convert((backbone, other))
    unit = [torch.nn.functional.normalize(model.prototypes, dim=1) for model in (first, second)]
    assert torch.allclose(*unit, atol=2e-3)
    assert torch.allclose(first.prototypes.norm(dim=1), second.prototypes.norm(dim=1), rtol=2e-2)


@pytest.mark.parametrize("reconstruction", ["amounts", "paper"])
def test_class_without_readable_images_stays_whole(setting, reconstruction):
    backbone, images = setting

    def broken(classes):
        for batch in images.open(classes):
            yield replace(batch, crops=batch.crops[:0], sources=()) if batch.class_index == 2 else batch

    options = replace(OPTIONS, reconstruction=reconstruction, near=1 if reconstruction == "amounts" else 0)
    model = convert((backbone, replace(images, open=broken)), options)
    vectors = backbone.readout.vectors
    assert model.own(2) == []
    assert torch.allclose(model.head_vectors()[2].float(), vectors[2], atol=1e-6)
    assert model.active_classes.tolist() == [0, 1, 3]
    used = model.weights.prototype[model.entries(2)].tolist()
    if reconstruction == "paper":
        assert used == []
        assert torch.equal(model.residual[2], vectors[2])
        return
    # one class more than the others, the nearest of the head
    cosine = torch.cosine_similarity(vectors[2], vectors, dim=1)
    nearest = sorted((0, 1, 3), key=lambda c: -float(cosine[c]))[:2]
    assert used == [model.whole(c) for c in sorted(nearest)]
    assert [len(model.entries(c)) for c in range(4)] == [3, 3, 2, 3]
    # what is left of it is orthogonal to them, and none of it is lost
    left = model.prototypes[used] @ model.residual[2]
    assert torch.allclose(
        left, torch.zeros(2), atol=1e-3 * float(model.prototypes.norm(dim=1).max() * vectors[2].norm())
    )


def test_nothing_readable_at_all(setting):
    backbone, images = setting

    def broken(classes):
        return (replace(batch, crops=batch.crops[:0], sources=()) for batch in images.open(classes))

    with pytest.raises(InputError, match="no image of any class could be read"):
        convert((backbone, replace(images, open=broken)))


def test_too_many_prototypes_are_refused_before_anything_is_read(setting):
    backbone, images = setting

    def untouched(_):
        raise AssertionError("images were opened")

    with pytest.raises(
        InputError, match="97 prototypes are asked for, but class 0 .red things. has only 96 rows of width 96"
    ):
        convert((backbone, replace(images, open=untouched)), replace(OPTIONS, prototypes=97))


def test_rounding_beyond_the_limit_stops_the_conversion(setting):
    backbone, images = setting
    off = replace(backbone, readout=replace(backbone.readout, bias=backbone.readout.bias + 1.0))
    with pytest.raises(NotExactError, match="dtype float64"):
        convert((off, images))


def test_images_of_the_next_class_wait_while_this_one_is_factorised(setting):
    backbone, images = setting
    handed: list[int] = []

    def watched(classes):
        for batch in images.open(classes):
            handed.append(batch.class_index)
            yield batch

    stream = watched(list(images.counts))
    assert [b.class_index for b in islice(stream, 3)] == [0, 0, 1]
    stream.close()  # a conversion that stops early must not hang on its decoding threads


def read_as(setting, order, known=None, options=OPTIONS, images=None):
    backbone, own = setting
    found = list(read_classes(backbone, images or own, order, options=options, known=known))
    assert [reading.class_index for reading in found] == list(order)
    return found


@pytest.mark.parametrize("kept", [(), (0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_classes_come_in_their_order_whichever_are_known(setting, kept):
    whole = read_as(setting, [3, 0, 1, 2])
    known = {reading.class_index: reading for reading in whole if reading.class_index in kept}
    again = read_as(setting, [3, 0, 1, 2], known)
    assert set(known) == {0, 1, 2, 3}
    for one, other in zip(whole, again, strict=True):
        assert torch.equal(one.rows, other.rows[:]) and one.images == other.images


def test_a_class_that_another_conversion_caches_meanwhile_is_read_all_the_same(setting):
    backbone, images = setting
    whole, known = read_as(setting, [0, 1, 2, 3]), {}

    def opened(some):
        ahead = list(some)
        known[2] = whole[2]
        yield from images.open(ahead)

    found = read_as(setting, [0, 1, 2, 3], known, images=replace(images, open=opened))
    assert all(torch.equal(one.rows, other.rows) for one, other in zip(whole, found, strict=True))


def test_what_a_killed_conversion_left_in_the_cache_goes_with_the_class_and_nothing_is_written_twice(setting, tmp_path):
    reading = read_as(setting, [1])[0]
    known = CachedFeatures(tmp_path, "0" * 16)
    names = ("000001.rows.abcdefgh", "000001.safetensors.12345678", "000001.rows.hgfedcba", "000002.rows.abcdefgh")
    left, too, written, other = (known.folder / f".class-{name}.part" for name in names)
    for path in (left, too, written, other):
        path.touch()
    for path in (left, too, other):
        os.utime(path, (0, 0))
    known[1] = reading
    assert not left.exists() and not too.exists() and written.exists() and other.exists()
    assert torch.equal(known[1].rows[:], reading.rows)
    known[1] = replace(reading, rows=None)  # another conversion was quicker


def test_a_class_is_asked_for_only_when_its_images_are_near(setting, toy):
    """So that other processes find classes that are free."""
    backbone, images = setting
    reader = image_reader(backbone.preprocessing, batch_size=1, workers=2)
    found = find_images(toy.data, "train", backbone.classes, ClassMapping())
    images = replace(images, open=lambda some: reader.batches_of(found.files[c] for c in some))
    asked = []

    def order():
        for c in (0, 1, 2, 3):
            asked.append(c)
            yield c

    next(read_classes(backbone, images, order(), options=OPTIONS))
    assert asked == [0, 1]  # three images are decoded ahead
    everything = {reading.class_index: reading for reading in read_as(setting, [0, 1, 2, 3])}
    asked.clear()
    next(read_classes(backbone, images, order(), options=OPTIONS, known=everything))
    assert asked == [0]


def test_rows_that_lie_on_the_disk_give_the_same_bytes(setting, tmp_path, monkeypatch):
    backbone, images = setting
    stored = []

    def store(shape, dtype, device):
        stored.append(Spool.unnamed(tmp_path, shape, dtype, device))
        return stored[-1]

    whole, found = {}, {}
    convert_classes(backbone, replace(images, store=store), OPTIONS, whole)
    assert not stored, "classes that fit stay in memory"
    monkeypatch.setattr(classes, "images_that_fit", lambda *_: 3)
    convert_classes(backbone, replace(images, store=store), OPTIONS, found)
    assert len(stored) == 2 * len(found)  # rows and crops of each class
    content = PartFiles().content
    assert [content(found[c]) for c in found] == [content(whole[c]) for c in whole]


class OneAtATime:
    """Gives out a class, and no other before it is done."""

    def __init__(self):
        self.said, self.at = [], None

    def free(self, groups):
        for group in groups[:1]:
            assert self.at is None
            self.at = group
            self.said.append(("free", *group))
            yield group

    def done(self, group):
        assert group == self.at
        self.at = None
        self.said.append(("done", *group))

    def wait(self):
        self.said.append(("wait",))
        return len(self.said) < 3


def test_what_others_are_at_is_looked_for_again_until_it_is_there(setting):
    backbone, images = setting
    turns, found = OneAtATime(), {}
    convert_classes(backbone, images, OPTIONS, found, turns=turns)
    assert turns.said == [(word, c) for c in range(4) for word in ("free", "done")]


def test_what_nobody_gives_out_is_left_when_waiting_ends(setting):
    backbone, images = setting

    class Taken(OneAtATime):
        def free(self, _):
            return iter(())

    turns, found = Taken(), {}
    convert_classes(backbone, images, OPTIONS, found, turns=turns)
    assert turns.said == [("wait",)] * 3 and not found


class Counted(Silent):
    def __init__(self):
        self.steps, self.said = 0, []

    def advance(self, steps=1, note=""):
        self.steps += steps

    def note(self, text):
        self.said.append(text)


def test_classes_of_others_count_as_soon_as_they_are_there(setting):
    backbone, images = setting
    whole, found, bar, seen = {}, {}, Counted(), []
    convert_classes(backbone, images, OPTIONS, whole)

    class Shared(Alone):
        def free(self, groups):
            return (group for group in groups if group[0] % 2 == 0)

        def done(self, group):
            seen.append(bar.steps)
            found[1] = whole[1]  # by another process

        def wait(self):
            seen.append(bar.steps)
            found[3] = whole[3]
            return True

    convert_classes(backbone, images, OPTIONS, found, bar, turns=Shared())
    sizes = list(images.counts.values())
    assert seen == [sizes[0], sum(sizes[:3]), sum(sizes[:3])] and bar.steps == sum(sizes)


def test_what_is_waited_for_long_is_named_once(setting, monkeypatch):
    backbone, images = setting
    bar, turns = Counted(), OneAtATime()
    monkeypatch.setattr(turns, "free", lambda _: iter(()))
    convert_classes(backbone, images, OPTIONS, {}, bar, turns=turns)
    assert not bar.said
    monkeypatch.setattr(classes, "LONG", 0)
    turns.said.clear()
    convert_classes(backbone, images, OPTIONS, {}, bar, turns=turns)
    assert len(turns.said) == 3
    assert bar.said == [
        "waiting for other processes, which are at 4 classes: red things, green things, blue things, grey things"
    ]


def test_cancellation_is_told_by_its_median_and_nine_tenths():
    assert _cancellation_figures(torch.arange(5.0)) == {"median": 2.0, "high": pytest.approx(3.6)}


def test_the_card_s_digest_is_of_all_images(setting):
    parts = {}
    data = convert(setting, finished=parts).card.data
    images = [image for c in sorted(parts) for image in parts[c].images]
    assert (data.images, data.digest) == (len(images), digest_of_images(images))


def test_a_share_is_its_own_classes(setting):
    backbone, images = setting
    found = {}
    convert_classes(backbone, images, OPTIONS, found, share=Share(number=2, shares=3))
    assert list(found) == [2]
