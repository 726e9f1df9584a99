"""The model file: equal after a round trip, equal bytes for equal models, and no damage goes unnoticed."""

import json
import random
import struct
from dataclasses import fields, replace

import pytest
import safetensors.torch
import torch

from protonmf_cli.errors import ModelFileError
from protonmf_cli.files.store import KEY, LAYOUT, OPTIONAL, load_model, save_model


def test_round_trip(converted, tmp_path):
    model, network = load_model(converted)
    again = tmp_path / "again.safetensors"
    save_model(again, model, network)
    assert again.read_bytes() == converted.read_bytes()
    assert again.stat().st_mode & 0o777 == 0o644
    other, weights = load_model(again)
    for part in (model, model.weights, model.examples):
        twin = {id(model): other, id(model.weights): other.weights, id(model.examples): other.examples}[id(part)]
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, getattr(twin, field.name))
    assert model.card == other.card
    assert network is not None
    assert set(weights) == set(network)


def test_the_format_is_the_documented_one(converted):
    with safetensors.safe_open(converted, framework="pt") as file:
        assert list(file.metadata()) == [KEY]
        header = json.loads(file.metadata()[KEY])
        assert header["format"] == 1
        names = {name for name in file.keys() if not name.startswith("backbone.")}  # noqa: SIM118
        assert names == set(LAYOUT) - OPTIONAL
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
        assert float(examples.map[n].max()) == pytest.approx(float(examples.score[n]))
    for prototype in range(len(model.prototypes)):
        own = examples.of(prototype)
        assert len({examples.sources[n].path for n in own}) == 5
        assert examples.score[own].tolist() == sorted(examples.score[own].tolist(), reverse=True)


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
        ("owner", torch.full((8,), 9), "owner is outside"),
        ("prototypes", torch.zeros(8, 96, dtype=torch.float64), "float64"),
    ],
)
def test_wrong_content_with_a_right_checksum_is_refused(converted, tmp_path, field, value, words):
    model, network = load_model(converted)
    target = tmp_path / "wrong.safetensors"
    save_model(target, replace(model, **{field: value}), network)
    with pytest.raises(ModelFileError, match=words):
        load_model(target)
