"""The model file: equal after a round trip, equal bytes for equal models, and no damage goes unnoticed."""

import json
import random
import struct
from dataclasses import fields, replace

import pytest
import safetensors.torch
import torch

from protonmf_cli.errors import ModelFileError
from protonmf_cli.files.atomic import digest_of_tensors
from protonmf_cli.files.store import KEY, LAYOUT, OF_AMOUNTS, OF_IMAGES, OPTIONAL, load_model, save_model
from protonmf_cli.jobs.loaded import load
from protonmf_cli.models.card import Card
from protonmf_cli.models.evidence import Projections
from toys import run


@pytest.mark.parametrize("kind", ["converted", "paper"])
def test_round_trip(request, tmp_path, kind):
    file = request.getfixturevalue(kind)
    model, network = load_model(file)
    again = tmp_path / "again.safetensors"
    save_model(again, model, network)
    assert again.read_bytes() == file.read_bytes()
    assert again.stat().st_mode & 0o777 == 0o644
    other, weights = load_model(again)
    assert (model.amounts is None) == (other.amounts is None) == (kind == "paper")
    pairs = [(model, other), (model.weights, other.weights), (model.examples, other.examples)]
    if model.amounts is not None:
        pairs += [(model.amounts, other.amounts), (model.amounts.images, other.amounts.images)]
        assert model.amounts.ridge == other.amounts.ridge
    for part, twin in pairs:
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(twin, field.name))
    assert model.card == other.card
    assert model.file_format == other.file_format == 3
    assert network is not None
    assert set(weights) == set(network)


@pytest.mark.parametrize("shift", range(0, 64, 8))
def test_results_do_not_depend_on_where_tensors_lie_in_the_file(converted, tmp_path, shift):
    loaded = load(converted)
    stored = loaded.model.card.as_json()
    file = tmp_path / "shifted.safetensors"
    card = Card.from_json(stored | {"mood": "x" * shift})
    replace(loaded, model=replace(loaded.model, card=card)).save(file)
    again = load(file)
    moved = again.model.to(torch.device("cpu"), torch.float32)
    computed = [*again.backbone.network.parameters(), again.backbone.readout.vectors, again.backbone.readout.bias]
    computed += [moved.prototypes, moved.residual, moved.bias, moved.weights.value, moved.amounts.edit_readers]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in computed if tensor.numel())


@pytest.mark.parametrize(("kind", "more"), [("converted", OF_AMOUNTS | OF_IMAGES), ("paper", frozenset())])
def test_the_format_is_the_documented_one(request, kind, more):
    with safetensors.safe_open(request.getfixturevalue(kind), framework="pt") as file:
        assert list(file.metadata()) == [KEY]
        header = json.loads(file.metadata()[KEY])
        assert header["format"] == 3
        assert header["card"]["similarity"] == ("dual" if more else "dot")
        names = {name for name in file.keys() if not name.startswith(("backbone.", "readout."))}  # noqa: SIM118
        assert names == (set(LAYOUT) - OPTIONAL) | more
        assert json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == file.metadata()[KEY]


def test_examples_are_real_crops_with_boxes_inside(converted, toy):
    import io

    from PIL import Image

    model, _ = load_model(converted)
    examples = model.examples
    assert len(examples.prototype) == len(model.prototypes) * 5
    for n, source in enumerate(examples.sources):
        picture = Image.open(io.BytesIO(examples.picture(n)))
        assert picture.size == (64, 64)
        left, top, right, bottom = examples.box[n].tolist()
        assert 0 <= left < right <= 64
        assert 0 <= top < bottom <= 64
        assert (toy.data / "train" / source.path).is_file()
        if model.wholes[examples.prototype[n]]:  # the whole picture, at the usual amount
            assert (examples.map[n].any(), float(examples.score[n])) == (False, 1)
            assert (left, top, right, bottom) == (0, 0, 64, 64)
        else:
            assert float(examples.map[n].max()) == pytest.approx(float(examples.score[n]))
    for prototype in range(len(model.prototypes)):
        own = examples.of(prototype)
        assert len({examples.sources[n].path for n in own}) == 5
        assert float(examples.score[own[0]]) == float(examples.score[own].max())  # those that are alike come last


def test_any_flipped_bit_is_noticed(converted, tmp_path):
    content = converted.read_bytes()
    target = tmp_path / "flipped.safetensors"
    header = 8 + struct.unpack("<Q", content[:8])[0]
    places = [random.Random(n).randrange(len(content)) for n in range(40)] + [9, header // 2, header, len(content) - 1]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        target.write_bytes(damaged)
        with pytest.raises(ModelFileError, match="flipped"):
            load_model(target)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content[: len(content) // 2], "is damaged"),
        (lambda content: content[:100], "is damaged"),
        (lambda content: b"", "is damaged"),
        (lambda content: b"these are no tensors", "is damaged"),
        (lambda content: safetensors.torch.save({"x": torch.zeros(2)}), "not a prototype model of protonmf"),
        (lambda content: safetensors.torch.save({"x": torch.zeros(2)}, {KEY: '{"format": 7}'}), "upgrade protonmf"),
        (lambda content: safetensors.torch.save({"x": torch.zeros(2)}, {KEY: "[]"}), "no format number"),
        (lambda content: safetensors.torch.save({"x": torch.zeros(2)}, {KEY: "{"}), "is damaged"),
    ],
)
def test_refusals(converted, tmp_path, change, words):
    target = tmp_path / "bad.safetensors"
    target.write_bytes(change(converted.read_bytes()))
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(target)
    assert "bad.safetensors" in str(caught.value)


def test_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(ModelFileError, match="protonmf convert"):
        load_model(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("bias", torch.full((4,), torch.nan), "NaN"),
        ("bias", torch.zeros(5), "size 5 along C"),
        ("owner", torch.full((12,), 9), "owner is outside"),
        ("prototypes", torch.zeros(12, 96, dtype=torch.float64), "float64"),
        ("evidence", Projections(), "do not agree on how evidence is read"),
        ("evidence", {"ridge": -0.5}, "the ridge is negative"),
        ("evidence", {"ridge": float("inf")}, "ridge holds NaN or infinite"),
        ("evidence", {"usual": torch.ones(7, 4)}, "usual has size 7 along P"),
        ("evidence", {"usual": torch.full((12, 4), torch.nan)}, "usual holds NaN"),
        ("evidence", {"unplaced_mean": torch.zeros(95)}, "unplaced_mean has size 95 along D"),
        ("images", {"mean": torch.zeros(4, 95)}, "image_mean has size 95 along D"),
        ("images", {"rest": torch.zeros(3)}, "image_rest has size 3 along A"),
        ("images", {"covariance": torch.zeros(63)}, "do not fit the classes and their connections"),
        ("images", {"distances": torch.ones(4, 21).cumsum(dim=1).flip(1)}, "image_distance does not rise"),
        ("images", {"distances": torch.zeros(4, 21)}, "image_distance does not rise"),
    ],
)
def test_wrong_content_with_a_right_checksum_is_refused(converted, tmp_path, field, value, words):
    model, network = load_model(converted)
    target = tmp_path / "wrong.safetensors"
    if field == "images":
        field, value = "evidence", {"images": replace(model.amounts.images, **value)}
    if isinstance(value, dict):
        value = replace(getattr(model, field), **value)
    save_model(target, replace(model, **{field: value}), network)
    with pytest.raises(ModelFileError, match=words):
        load_model(target)


def rewritten(source, target, *, tensors, header):
    """The file with changed tensors (None: without) and a changed header, under a right checksum."""
    with safetensors.safe_open(source, framework="pt") as file:
        kept = {name: file.get_tensor(name) for name in file.keys()} | tensors  # noqa: SIM118
        content = json.loads(file.metadata()[KEY])
    kept = {name: tensor for name, tensor in kept.items() if tensor is not None}
    content = header({key: value for key, value in content.items() if key != "payload_sha256"})
    content["payload_sha256"] = digest_of_tensors(kept, canonical(content))
    safetensors.torch.save_file(kept, target, metadata={KEY: canonical(content)})
    return target


def canonical(header):
    return json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


@pytest.mark.parametrize("name", sorted(OF_AMOUNTS))
def test_a_file_with_only_some_of_what_amounts_need_is_refused(converted, tmp_path, name):
    target = rewritten(converted, tmp_path / "some.safetensors", tensors={name: None}, header=lambda old: old)
    with pytest.raises(ModelFileError, match=f"tensors missing: .'{name}'"):
        load_model(target)


@pytest.fixture(scope="module")
def old(paper, tmp_path_factory):
    """What protonmf wrote by default before there were amounts: borrowed prototypes, an intercept, format 1."""
    model, _ = load_model(paper)
    classes, width = model.residual.shape
    generator = torch.Generator().manual_seed(0)
    borrowed = torch.tensor([model.own((c + 1) % classes)[0] for c in range(classes)])
    value = torch.rand(classes, generator=generator)
    order = torch.cat([model.weights.class_index, torch.arange(classes)]).argsort(stable=True)

    def header(content):
        card = content["card"]
        options = {name: value for name, value in card["options"].items() if name not in ("near", "ridge")}
        options |= {"reconstruction": "functional", "borrow": 1, "own_weight": 0.05}
        measured = {name: value for name, value in card["measured"].items() if name != "cancellation"}
        return content | {"format": 1, "card": card | {"options": options, "measured": measured}}

    tensors = {
        "weight_class": torch.cat([model.weights.class_index, torch.arange(classes)])[order],
        "weight_prototype": torch.cat([model.weights.prototype, borrowed])[order],
        "weight_value": torch.cat([model.weights.value, value])[order],
        "weight_residual_share": torch.zeros(len(order)),
        "residual": model.residual - value[:, None] * model.prototypes[borrowed],
        "intercept": torch.randn(classes, generator=generator),
    }
    return rewritten(paper, tmp_path_factory.mktemp("old") / "old.safetensors", tensors=tensors, header=header)


OLDER = "was converted by an older protonmf: its rows are projections, which may cancel"


def test_a_file_of_format_1_opens_and_is_explained_as_it_was_written(old, toy):
    loaded = load(old)
    model = loaded.model
    assert (model.file_format, model.is_outdated, model.amounts) == (1, True, None)
    for c in range(4):
        found = loaded.explain(toy.image(c), str(c))
        network = float(loaded.backbone.read(loaded.crop(toy.image(c))[None]).logits[0, c])
        parts = sum(x.contribution for x in found.contributions)
        assert parts + found.residual + found.bias == pytest.approx(network, abs=1e-4)
        assert found.ledger_error < 1e-4
        assert (found.unplaced, found.reads_amounts) == (None, False)
        assert found.intercept == pytest.approx(float(model.intercept[c])) != 0
        assert found.bias == pytest.approx(float(model.bias[c] + model.intercept[c]))
        assert found.residual_map.sum() - found.intercept == pytest.approx(found.residual, abs=1e-5)
        assert len(found.contributions) == 3
        for x in found.contributions:
            rows = loaded.backbone.read(loaded.crop(toy.image(c))[None]).rows[0].double()
            evidence = float(rows.sum(dim=0) @ model.prototypes[x.prototype_id].double())
            assert x.evidence == pytest.approx(evidence, abs=1e-6)
            assert (x.usual, x.peak) == (None, None)


def test_commands_take_a_file_of_format_1_and_say_so(old, toy, tmp_path):
    code, out, err = run("explain", toy.image(0), "--model", old, "--json")
    assert (code, OLDER in err) == (0, True), err
    found = json.loads(out)
    assert (found["evidence"], found["no_place"], found["residual"]["intercept"] != 0) == ("projections", None, True)
    total = sum(c["contribution"] for c in found["contributions"]) + found["residual"]["contribution"] + found["bias"]
    assert total == pytest.approx(found["logit"], abs=1e-4)
    assert run("explain", toy.image(0), "--model", old, "--png", tmp_path / "e.png")[0] == 0

    code, out, err = run("inspect", old)
    assert code == 0, err
    assert "format 1" in out and "older than amounts: convert again" in " ".join(out.split())
    assert json.loads(run("inspect", old, "--json")[1])["format"] == 1

    words = ("--data", toy.data, "--model", old)
    code, out, err = run("evaluate", *words, "--table", "parts", "--counts", "2", "--json")
    assert (code, OLDER in err) == (0, True), err
    assert json.loads(out)["agreement"]["prototype_model"] == 1

    edited = tmp_path / "edited.safetensors"
    code, out, err = run("intervene", toy.image(0), "--class", 0, "--zero", 1, "--model", old, "-o", edited, "--json")
    assert (code, OLDER in err) == (0, True), err
    after = json.loads(out)["after"]["logit"]
    lost = next(c for c in found["contributions"] if (c["owner_index"], c["prototype"]) == (0, 1))["contribution"]
    assert found["class_index"] == 0
    assert json.loads(out)["before"]["logit"] - after == pytest.approx(lost, abs=1e-5)
    # what is written again is of the newest format, with the intercept and all
    again = load(edited)
    assert (again.model.file_format, again.model.is_outdated) == (3, True)
    assert torch.equal(again.model.intercept, load_model(old)[0].intercept)
    assert again.predict(toy.image(0), "0").logit == pytest.approx(after, abs=1e-6)

    code, _, err = run("export", edited, "-o", tmp_path / "network")
    assert (code, OLDER in err) == (0, True), err
    code, _, err = run("report", "--model", old, "--images", toy.image(0), "-o", tmp_path / "report.html")
    assert (code, OLDER in err) == (0, True), err
    code, _, err = run("intervene", toy.image(0), "--class", 0, "--zero", 1, "--everywhere", "--model", old)
    assert code == 3 and "--everywhere needs a model that reads amounts" in err
    code, _, err = run("explain", toy.image(0), "--against", 1, "--class", 0, "--model", old)
    assert code == 3 and "does not read amounts" in err


@pytest.mark.parametrize("group", ["readout", "data", "measured", "options", None])
def test_what_this_version_does_not_know_is_kept(converted, tmp_path, group):
    extra = {"zebra": {"b": [1, None], "a": 2}}

    def header(content):
        card = content["card"]
        return content | {"card": card | (extra if group is None else {group: card[group] | extra})}

    file = rewritten(converted, tmp_path / "newer.safetensors", tensors={}, header=header)
    model, network = load_model(file)
    assert model.card == load_model(converted)[0].card
    save_model(tmp_path / "again.safetensors", model, network)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    found = json.loads(run("inspect", file, "--json")[1])["card"]
    assert (found if group is None else found[group])["zebra"] == extra["zebra"]


def test_what_a_card_lacks_is_empty_and_stays_away(converted, tmp_path):
    gone = {
        "readout": ("unplaced", "images_checked"),
        "data": ("skipped",),
        "measured": ("stability", "ridge", "condition"),
    }

    def header(content):
        card = content["card"]
        fewer = {group: {n: v for n, v in card[group].items() if n not in names} for group, names in gone.items()}
        return content | {"card": card | fewer}

    file = rewritten(converted, tmp_path / "less.safetensors", tensors={}, header=header)
    model, network = load_model(file)
    card = model.card
    assert (card.readout.unplaced, card.readout.images_checked, card.data.skipped) == ((), 0, None)
    assert (card.conversion.stability, card.conversion.ridge, model.stability(0)) == ((), None, None)
    save_model(tmp_path / "again.safetensors", model, network)
    assert (tmp_path / "again.safetensors").read_bytes() == file.read_bytes()
    code, out, err = run("inspect", file)
    assert code == 0 and "not measured" in out, err


@pytest.mark.parametrize(
    ("group", "change", "words"),
    [
        ("readout", {"width": "wide"}, "width is 'wide'"),
        ("readout", {"grid": [2]}, "grid is"),
        ("readout", {"kind": ""}, "does not say how rows are read"),
        ("data", {"skipped": [1]}, "skipped is"),
        ("data", {"images_per_class": {"0": "many"}}, "images_per_class.0 is 'many'"),
        ("measured", {"agreement": None}, "agreement is 'None'"),
        ("measured", {"stability": 3}, "stability is '3'"),
        ("measured", None, "ConversionFigures is list"),
        ("options", None, "ConversionOptions is list"),
    ],
)
def test_a_card_of_another_structure_is_refused(converted, tmp_path, group, change, words):
    def header(content):
        card = content["card"]
        return content | {"card": card | {group: [] if change is None else card[group] | change}}

    file = rewritten(converted, tmp_path / "wrong.safetensors", tensors={}, header=header)
    with pytest.raises(ModelFileError, match=words) as caught:
        load_model(file)
    assert "wrong.safetensors" in str(caught.value)
