"""An audit finds a mark that was planted, and says of every prototype what really happens."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

import protonmf_cli
import toys
from protonmf_cli.errors import InputError
from protonmf_cli.jobs.page import decoded
from protonmf_cli.models.audit import Need, Share, Transplant
from protonmf_cli.models.image_batches import ImageBatch, ImageSource
from protonmf_cli.models.response import parts_of_rows, read_of
from protonmf_cli.models.results import Edit
from protonmf_cli.options import AuditOptions
from protonmf_cli.pipelines.auditing import need as needing
from protonmf_cli.pipelines.auditing.audit import AuditImages, audit_model
from protonmf_cli.pipelines.auditing.need import Needs
from protonmf_cli.pipelines.auditing.objects import Outside, place_maps
from protonmf_cli.pipelines.auditing.ranking import LOOKS_LIKE_ONE, looks_like_shortcut, reason_of, score_of
from protonmf_cli.pipelines.auditing.removal import Removal, removal_of
from protonmf_cli.pipelines.auditing.transplant import Hosts, Trial, Tries, moved, recoloured, share_of, shift_elsewhere
from protonmf_cli.pipelines.explaining.intervention import apply_edits
from protonmf_cli.pipelines.explaining.pasting import PartPatch


@pytest.fixture(scope="module")
def loaded(converted):
    return protonmf_cli.load(converted)


@pytest.fixture(scope="module")
def batches(loaded, toy):
    """The toy's validation images, a batch for each class."""
    found = []
    for c, label in enumerate(toys.LABELS):
        paths = sorted((toy.data / "val" / label).iterdir())
        crops = torch.stack([loaded.crop(path) for path in paths])
        sources = tuple(ImageSource(path=f"{label}/{path.name}", sha256=f"{c} {path.name}") for path in paths)
        found.append(ImageBatch(class_index=c, crops=crops, sources=sources))
    return found


def logits_of(loaded, model, crops):
    return parts_of_rows(model.exact, loaded.backbone.read(crops).rows.double()).logits


@pytest.mark.parametrize("kind", ["converted", "paper", "vit"])
def test_a_removal_is_the_edit_that_the_command_makes(kind, batches, request):
    loaded = protonmf_cli.load(request.getfixturevalue(kind))
    model, crops = loaded.model, torch.cat([batch.crops for batch in batches])
    rows = loaded.backbone.read(crops).rows.double()
    removal = removal_of(model.exact)
    before, scores = parts_of_rows(model.exact, rows).logits, removal.scores(read_of(model.exact, rows))
    everywhere = model.amounts is not None
    for k in range(len(model.prototypes)):
        edit = Edit(class_index=-1 if everywhere else int(model.owner[k]), prototype_id=k, factor=0.0)
        edited = logits_of(loaded, apply_edits(model, [edit], form="plain"), crops)
        assert (before - edited).abs().max() > 1e-3  # it changes something
        torch.testing.assert_close(removal.without(before, scores, slice(k, k + 1))[:, 0], edited, rtol=1e-5, atol=1e-5)
        number = torch.full((len(crops),), k)
        torch.testing.assert_close(removal.each_without(before, scores, number), edited, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("at_once", [2**24, 3 * 4 * 4, 1])  # all prototypes, a few, and one at a time
def test_needs_are_the_accuracy_of_the_edited_model(loaded, batches, at_once, monkeypatch):
    model, held, without = loaded.model, [], Removal.without
    monkeypatch.setattr(needing, "AT_ONCE", at_once)

    def noted(self, logits, scores, prototypes):
        held.append(without(self, logits, scores, prototypes))
        return held[-1]

    monkeypatch.setattr(Removal, "without", noted)
    names = ["a", "b"]
    needs = Needs(removal_of(model), names)
    group = {c: torch.tensor([n % 2 for n in range(len(batch.sources))]) for c, batch in enumerate(batches)}
    for batch in batches:
        top = needs.add(
            read_of(model, loaded.backbone.read(batch.crops).rows), batch.class_index, group[batch.class_index]
        )
        assert top.tolist() == logits_of(loaded, model, batch.crops).argmax(dim=1).tolist()
    crops, target = (
        torch.cat([b.crops for b in batches]),
        torch.cat([torch.full((len(b.crops),), b.class_index) for b in batches]),
    )
    groups = torch.cat([group[b.class_index] for b in batches])
    plain = logits_of(loaded, model, crops)
    assert needs.images == len(target)
    for each in held:
        assert each.numel() <= at_once or each.shape[1] == 1
    assert sum(each.shape[1] for each in held) == len(batches) * len(model.prototypes)
    for k in range(len(model.prototypes)):
        edited = logits_of(loaded, apply_edits(model, [Edit(class_index=-1, prototype_id=k, factor=0.0)]), crops)
        own, found = target == model.owner[k], needs.of(k)
        for logits, place in ((plain, 0), (edited, 1)):
            right = (logits.argmax(dim=1) == target).double()
            assert found.own[place] == pytest.approx(right[own].mean().item())
            assert found.everything[place] == pytest.approx(right.mean().item())
            assert found.worst_group[place] == pytest.approx(min(right[groups == g].mean().item() for g in (0, 1)))
            probability = logits.softmax(dim=1)[own][:, int(model.owner[k])].mean().item()
            assert found.probability[place] == pytest.approx(probability, abs=1e-5)


def test_without_images_of_its_class_nobody_knows_what_it_needs(loaded, batches):
    needs = Needs(removal_of(loaded.model))
    needs.add(read_of(loaded.model, loaded.backbone.read(batches[0].crops).rows), 0)
    assert needs.of(0) is not None and needs.by_group() == {}
    assert needs.of(loaded.model.own(1)[0]) is None


def hosts_of(loaded, batches):
    crops = torch.cat([batch.crops for batch in batches])
    target = torch.cat([torch.full((len(batch.crops),), batch.class_index) for batch in batches])
    paths = tuple(source.path for batch in batches for source in batch.sources)
    return Hosts(crops=crops, target=target, top=logits_of(loaded, loaded.model, crops).argmax(dim=1), paths=paths)


def test_a_trial_says_what_the_network_answers_to_the_changed_image(loaded, batches):
    model, hosts = loaded.model, hosts_of(loaded, batches)
    region = torch.zeros(64, 64, dtype=torch.bool)
    region[:, 20:60] = True
    donor = batches[0].crops[0]
    tries = Tries(
        loaded.backbone, removal_of(model), hosts, [PartPatch(pixels=donor, region=region)].__getitem__, batch_size=4
    )
    numbers = hosts.for_class(0, 99, torch.Generator().manual_seed(0))
    assert numbers and all(hosts.target[n] != 0 != hosts.top[n] for n in numbers)
    trials = [Trial(prototype=0, kind=kind, host=n, example=0) for n in numbers for kind in ("pasted", "recoloured")]
    assert sum(tries.run(trials)) == len(trials)
    edited = apply_edits(model, [Edit(class_index=-1, prototype_id=0, factor=0.0)])
    for each in tries.of(0, "pasted"):
        host = hosts.crops[each.trial.host].clone()
        host[:, region] = donor[:, region]
        assert torch.equal(tries.picture(each.trial), host)
        assert each.after == int(logits_of(loaded, model, host[None]).argmax())
        assert each.flipped == (each.after == 0)
        assert each.left == (each.flipped and int(logits_of(loaded, edited, host[None]).argmax()) == 0)
    assert any(each.flipped for each in tries.of(0, "pasted"))
    assert len(tries.of(0, "recoloured")) == len(numbers)


def test_a_recoloured_image_has_the_other_pictures_channels():
    generator = torch.Generator().manual_seed(0)
    host = torch.randint(60, 120, (3, 16, 16), generator=generator, dtype=torch.uint8)
    donor = torch.randint(100, 160, (3, 16, 16), generator=generator, dtype=torch.uint8)
    found = recoloured(host, donor)
    for n in range(3):
        assert found[n].double().mean().item() == pytest.approx(donor[n].double().mean().item(), abs=0.5)
        assert found[n].double().std().item() == pytest.approx(donor[n].double().std().item(), rel=0.05)
        order = np.corrcoef(found[n].flatten().double(), host[n].flatten().double())[0, 1]
        assert order > 0.99  # what it shows stays


def test_a_moved_patch_is_another_piece_of_the_same_picture():
    pixels = torch.arange(3 * 16 * 16).reshape(3, 16, 16).to(torch.uint8)
    region = torch.zeros(16, 16, dtype=torch.bool)
    region[:4, :4] = True
    other = moved(PartPatch(pixels=pixels, region=region), shift_elsewhere((16, 16), torch.Generator().manual_seed(1)))
    assert other.pixels is pixels and other.region.sum() == region.sum()
    assert not (other.region & region).any()


def transplant(flips, left=0.0, elsewhere=0.0, colours=0.0, carries=False, trials=100):
    def share(value):
        return share_of([n < round(value * trials) for n in range(trials)])

    return Transplant(
        flips=share(flips), elsewhere=share(elsewhere), siblings=share(0.0), left=share(left),
        recoloured=share(colours), recoloured_left=share(colours), carries_colours=carries,
    )  # fmt: skip


def need(before, after):
    return Need(own=(before, after), probability=(before, after), everything=(0.9, 0.9), images=10)


@pytest.mark.parametrize(
    ("tried", "needed", "score", "verdict"),
    [
        (transplant(0.9), need(1.0, 1.0), 0.9, True),
        (transplant(0.9), need(1.0, 0.2), 0.18, False),  # its class is lost without it
        (transplant(0.9, left=0.8), need(1.0, 1.0), 0.1, False),  # others do it as well
        (transplant(0.5, elsewhere=0.5), need(1.0, 1.0), 0.5, False),  # any piece of the picture does it
        (transplant(0.5), need(0.5, 0.9), 0.5, True),  # its class gains
        (transplant(0.9), need(1.0, 0.6), 0.54, False),  # a part that its class needs
        (transplant(0.5), None, 0.5, False),  # nobody knows what its class needs
        (transplant(0.1, colours=0.7, carries=True), need(1.0, 1.0), 0.7, True),
        (transplant(0.1, colours=0.7), need(1.0, 1.0), 0.1, False),  # another prototype of the class answers for them
        (None, need(1.0, 1.0), 0.0, False),
    ],
)
def test_score_and_verdict(tried, needed, score, verdict):
    assert score_of(tried, needed) == pytest.approx(score)
    assert looks_like_shortcut(score_of(tried, needed), tried, needed) is verdict
    assert LOOKS_LIKE_ONE == 0.3


@pytest.mark.parametrize("tried", [transplant(0.9), transplant(0.1, colours=0.7, carries=True)])
def test_what_was_not_looked_at_closer_gets_no_verdict(tried):
    first = replace(tried, elsewhere=share_of([]))  # other pieces of its pictures are tried at a closer look alone
    assert score_of(first, need(1.0, 1.0)) == score_of(tried, need(1.0, 1.0)) > LOOKS_LIKE_ONE
    assert looks_like_shortcut(score_of(tried, need(1.0, 1.0)), tried, need(1.0, 1.0))
    assert not looks_like_shortcut(score_of(first, need(1.0, 1.0)), first, need(1.0, 1.0))


def test_reasons_are_in_words():
    words = reason_of("tick", transplant(0.61, left=0.02, elsewhere=0.05), need(0.8, 0.8), (0.7, 0.4))
    assert words == (
        "pasted into other images it turns 61% of them into its class (2% also when it is taken out, other pieces of its "
        "pictures 5%); without it tick keeps 100% of what is right; 70% of it lies outside the object (of an even map 40%)"
    )
    assert "the colours of its pictures alone flip 70%" in reason_of(
        "tick", transplant(0.1, colours=0.7, carries=True), need(0.5, 0.75), (None, None)
    )
    assert (
        reason_of("tick", None, need(0.0, 0.0), (None, None))
        == "nothing could be pasted; without it tick keeps none of what is right"
    )


@pytest.mark.parametrize("kind", ["converted", "paper", "vit"])
def test_what_lies_outside_is_counted_on_the_maps_that_are_drawn(kind, batches, request):
    loaded = protonmf_cli.load(request.getfixturevalue(kind))
    model, batch = loaded.model, batches[1]
    rows = loaded.backbone.read(batch.crops).rows
    left = torch.zeros(64, 64, dtype=torch.bool)
    left[:, :32] = True
    outside = Outside(model, lambda path: left)
    outside.add(rows, tuple(source.path for source in batch.sources), 1)
    for place, k in enumerate(model.own(1)):
        maps = place_maps(model, rows, model.own(1))[:, :, place].reshape(len(rows), *model.spaces[0].grid)
        half = maps.shape[2] // 2
        assert outside.of(k) == pytest.approx(float(maps[:, :, half:].sum() / maps.sum()), rel=1e-5)
    assert outside.of_even_map(1) == pytest.approx(0.5)
    assert outside.of(model.own(0)[0]) is None and outside.of_even_map(0) is None


def audited(loaded, batches, **more):
    names = frozenset(source.path for batch in batches for source in batch.sources)
    images = AuditImages(batches=batches, hosts=names, **more)
    return audit_model(loaded.backbone, loaded.model, images, decode=decoded, options=AuditOptions(hosts=3))


def test_an_audit_ranks_every_prototype_and_is_the_same_again(loaded, batches):
    found = audited(loaded, batches)
    assert sorted(one.prototype_id for one in found.candidates) == loaded.model.parts
    keys = [(not one.is_shortcut, -one.score) for one in found.candidates]
    assert keys == sorted(keys)
    assert [one.reason for one in audited(loaded, batches).candidates] == [one.reason for one in found.candidates]
    for one in found.candidates:
        assert (one.class_index, one.number) == (
            int(loaded.model.owner[one.prototype_id]),
            loaded.model.number(one.prototype_id),
        )
        assert one.score == score_of(one.transplant, one.need)
        assert one in found.pictured or not one.pasted
        for pasted in one.pasted:
            assert one.class_index not in (pasted.target, pasted.before) and pasted.after == one.class_index
            assert (pasted.host != pasted.changed).any()


def test_an_audit_holds_the_picture_of_one_patch_at_a_time(loaded, batches, monkeypatch):
    held, most, on = weakref.WeakSet(), [], PartPatch.on

    def noted(self, crop):
        held.add(self)
        most.append(len(held))
        return on(self, crop)

    monkeypatch.setattr(PartPatch, "on", noted)
    found = audited(loaded, batches)
    assert len(most) == sum(c.transplant.flips.trials + c.transplant.elsewhere.trials for c in found.candidates) + sum(
        len(c.pasted) for c in found.candidates if not c.transplant.by_colours
    )
    assert max(most) == 1


def test_an_audit_needs_images_of_two_classes(loaded, batches):
    with pytest.raises(
        InputError, match="all images are of red things: patches are pasted into images of other classes"
    ):
        audited(loaded, batches[:1])
    empty = replace(batches[0], crops=torch.empty(0, 0, 0, 0, dtype=torch.uint8), sources=())
    with pytest.raises(InputError, match="no image of the data could be read"):
        audited(loaded, [empty])
    lost = AuditImages(batches=batches, hosts=frozenset({"red/unreadable.png"}))
    with pytest.raises(InputError, match="none of the images that patches would be pasted into could be read"):
        audit_model(loaded.backbone, loaded.model, lost, decode=decoded, options=AuditOptions())


def test_notes_say_what_is_not_known(loaded, batches):
    trained = {source.sha256 for source in loaded.model.examples.sources}
    same = replace(batches[0], sources=tuple(replace(s, sha256=sorted(trained)[0]) for s in batches[0].sources))
    notes = " ".join(audited(loaded, [same, batches[1]]).notes)
    assert "2 classes with prototypes have no images here" in notes and "blue things, grey things" in notes
    assert f"{len(same.sources)} of these images are training patches of the model" in notes
    assert audited(loaded, batches).notes == ()


def test_intervals_are_wilsons():
    share = share_of([True] * 8 + [False] * 2)
    assert (share.hits, share.trials, share.value) == (8, 10, 0.8)
    assert (round(share.low, 4), round(share.high, 4)) == (0.4902, 0.9433)  # Wilson 1927, by hand
    assert share_of([]) == Share(hits=0, trials=0, low=0.0, high=1.0)
