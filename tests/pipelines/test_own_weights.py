"""A class whose own prototypes speak against it is flagged wherever the class is shown."""

import json
from dataclasses import replace

import pytest

from protonmf_cli import load
from protonmf_cli.files.store import save_model
from protonmf_cli.output.records.explanation import explanation_json
from protonmf_cli.output.text.explanation import explanation_blocks, own_against_words
from protonmf_cli.pipelines.explaining.explanation import explain_image
from toys import run


def turned(model, class_index, numbers):
    """The model with weights of own prototypes of a class turned below zero, and those of another prototype too."""
    value = model.weights.value.clone()
    own = model.own(class_index)
    for entry in model.entries(class_index):
        prototype = int(model.weights.prototype[entry])
        value[entry] = value[entry].abs() + 0.1
        if prototype not in own or own.index(prototype) + 1 in numbers:
            value[entry] *= -1
    return replace(
        model, weights=replace(model.weights, value=value), card=replace(model.card, edits=({"class_index": -1},))
    )


@pytest.fixture(scope="module")
def loaded(converted):
    return load(converted)


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((), None),
        ((2,), "own prototype 2 of green things has a negative weight for it"),
        ((1, 2), "none of green things's own prototypes (1, 2) speaks for it"),
    ],
)
def test_an_explanation_flags_own_prototypes_against_their_class(toy, loaded, numbers, sentence):
    model = turned(loaded.model, 1, numbers)
    found = explain_image(loaded.backbone, model, loaded.crop(toy.image(1)), image="i", model_name="m", class_index=1)
    assert found.own_against == numbers == model.own_against(1)
    assert explanation_json(found)["own_against"] == list(numbers)
    said = " ".join(str(block) for block in explanation_blocks(found, 5, wide=True))
    assert (sentence in said) if sentence else ("speak" not in said)


def test_several_of_many_are_said():
    assert own_against_words("tench", (1, 3), 4).startswith("own prototypes 1, 3 of tench have negative weights for it")


def test_inspect_flags_them(loaded, tmp_path):
    file = tmp_path / "turned.safetensors"
    save_model(file, turned(loaded.model, 1, (2,)), loaded.backbone.weights())
    found = json.loads(run("inspect", file, "--json")[1])
    against = {row["class_index"]: row["own_against"] for row in found["per_class"]}
    assert against[1] == [2] and found["classes_with_own_against"] == sum(map(bool, against.values()))
    borrowed = [
        row["label"] for row in found["per_class"]
        if any(each["weight"] < 0 and each["owner_label"] != row["label"] for each in row["prototypes"])
    ]  # fmt: skip
    assert len(borrowed) != found["classes_with_own_against"]  # which nobody could tell apart from it
    assert "with a negative weight for it" in " ".join(run("inspect", file)[1].split())
    lines = run("inspect", file, "--class", 1)[1].splitlines()
    assert [line for line in lines if "prototype 2 (against its own class): weight -" in line]
