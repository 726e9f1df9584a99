"""--max-unlike and what explain and evaluate say of how usual images are, end to end on the toy."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from PIL import Image

import protonmf_cli
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.gates import check_unlike
from protonmf_cli.options import GateOptions
from toys import convert, run


@pytest.fixture(scope="module")
def older(converted, tmp_path_factory):
    """The same file as it was before it said which images are usual."""
    model, network = load_model(converted)
    target = tmp_path_factory.mktemp("older") / "older.safetensors"
    save_model(target, replace(model, evidence=replace(model.amounts, images=None)), network)
    return target


@pytest.fixture(scope="module")
def strange(tmp_path_factory):
    """An image that is nothing like the toy's: it has nothing in it."""
    target = tmp_path_factory.mktemp("strange") / "strange.png"
    Image.new("RGB", (80, 80)).save(target)
    return target


def unlike_of(image, model):
    code, out, err = run("explain", image, "--model", model, "--json")
    assert code == 0, err
    return json.loads(out)["unlike"]


def test_a_strange_image_is_less_usual_than_every_image_of_the_classes(converted, toy, strange):
    found = unlike_of(strange, converted)
    assert found["score"] > 1
    for c in range(4):
        assert unlike_of(toy.image(c), converted)["score"] < found["score"]
    code, out, _ = run("explain", strange, "--model", converted)
    assert code == 0
    assert f"unlike: {found['words']}" in " ".join(out.split())


def test_python_says_the_same(converted, strange):
    found = protonmf_cli.load(converted).explain(strange, "red things").unlike
    said = unlike_of(strange, converted)
    assert found.score == pytest.approx(said["score"])
    assert (found.class_index, found.said) == (said["class_index"], said["words"])


def test_an_image_that_is_less_usual_than_allowed_stops_the_command_after_all_are_explained(converted, toy, strange):
    words = ("explain", strange, toy.image(0), "--model", converted, "--jsonl")
    code, out, err = run(*words, "--max-unlike", 1)
    assert code == 5
    assert len(out.splitlines()) == 2
    said = " ".join(err.split())
    assert "1 of 2 images are not within --max-unlike 1:" in said
    assert f"{strange} (unlike: {unlike_of(strange, converted)['words']})" in said
    assert str(toy.image(0)) not in said
    limit = unlike_of(strange, converted)["score"]
    assert run(*words, "--max-unlike", limit)[0] == 0  # equal passes
    code, _, err = run(*words, "--max-unlike", "nan")
    assert code == 2
    assert "--max-unlike must be a number" in err


def test_who_cannot_say_it_refuses_the_gate_and_says_nothing_otherwise(paper, older, toy):
    for file, why in ((paper, "evidence is no amount. Give one of"), (older, "it is older, or no class")):
        assert unlike_of(toy.image(0), file) is None
        code, out, err = run("explain", toy.image(0), "--model", file, "--max-unlike", 3)
        assert (code, out) == (3, "")
        assert why in " ".join(err.split())
        code, out, err = run("evaluate", "--data", toy.data, "--model", file, "--max-unlike", 3)
        assert (code, out) == (3, "")
        assert why in " ".join(err.split())
    code, out, _ = run("explain", toy.image(0), "--model", older)
    assert code == 0
    assert "unlike" not in out


def test_evaluate_counts_and_gates(converted, toy, tmp_path):
    words = ("evaluate", "--data", toy.data, "--model", converted)
    code, out, err = run(*words, "--json")
    assert code == 0, err
    found = json.loads(out)["unlike"]
    images = sorted((toy.data / "val").rglob("*.png"))
    scores = [unlike_of(image, converted)["score"] for image in images]
    assert found["share"] == pytest.approx(sum(score > 1 for score in scores) / len(scores))
    assert found["quantiles"]["0.5"] == pytest.approx(sorted(scores)[8] / 2 + sorted(scores)[9] / 2, abs=1e-4)
    assert found["unknown"] == 0
    limit = found["quantiles"]["0.95"]
    report = tmp_path / "gates.xml"
    code, out, err = run(*words, "--max-unlike", limit - 0.01, "--junit-xml", report)
    assert code == 5
    assert f"unlike {limit:.4f} is above --max-unlike" in err
    assert "of the images are less usual for their predicted class than nineteen in twenty" in " ".join(out.split())
    suite = ET.parse(report).getroot()[0]
    assert suite.get("name") == "protonmf evaluate"
    assert [case.get("name") for case in suite if case.find("failure") is not None] == ["max-unlike"]
    assert run(*words, "--max-unlike", limit + 0.01)[0] == 0


def test_a_predicted_class_without_training_images_is_not_known_and_passes_no_gate(toy, tmp_path):
    data = tmp_path / "data"
    for each in ("red things", "blue things", "grey things"):
        (data / "train").mkdir(parents=True, exist_ok=True)
        (data / "train" / each).symlink_to(toy.data / "train" / each)
    part = replace(toy, data=data)
    file = convert(part, tmp_path / "part.safetensors")
    green = toy.image(1)
    found = unlike_of(green, file)
    assert (found["score"], found["share"], found["amounts"]) == (None, None, [])
    assert found["words"] == "not known, as this model has no training images of green things"
    code, _, err = run("explain", green, "--model", file, "--max-unlike", 1e6)
    assert code == 5
    assert "(unlike: not known, as this model has no training images of green things)" in err
    code, out, _ = run("evaluate", "--data", toy.data, "--model", file)
    assert code == 0
    assert "unlike: not known of 4 images, whose predicted class has no training images" in " ".join(out.split())


def test_rows_without_a_place_do_not_count(vit, toy):
    code, out, err = run("evaluate", "--data", toy.data, "--model", vit, "--json")
    assert code == 0, err
    assert json.loads(out)["unlike"]["share"] is not None


def test_no_gate_passes_everything():
    check_unlike({"image": None}, GateOptions())
