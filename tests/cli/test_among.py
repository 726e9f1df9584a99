"""Which class is explained where most classes of the network have no prototypes, and what it is compared with."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch

import toys
from pages import data_of
from protonmf_cli import ExplainOptions, explain
from protonmf_cli.pipelines.explaining.choice import best_class, chosen_among, next_class
from toys import LABELS, run


@pytest.fixture(scope="module")
def few(toy, tmp_path_factory):
    """The toy with prototypes of one class of four."""
    folder = tmp_path_factory.mktemp("few")
    shutil.copytree(toy.data / "train" / LABELS[0], folder / "data" / LABELS[0])
    return toys.convert(toys.Toy(folder=folder, network=toy.network, data=folder / "data"), folder / "few.safetensors")


def test_the_best_class_with_prototypes_is_explained_and_the_first_answer_said_once(toy, few):
    code, out, err = run("explain", toy.image(1), toy.image(2), "--model", few, "--json")
    assert code == 0, err
    for found, first in zip(json.loads(out)["explanations"], LABELS[1:], strict=False):
        assert (found["among"], found["label"], found["predictions"][0]["label"]) == ("prototypes", LABELS[0], first)
        assert found["probability"] == pytest.approx(
            next(p["probability"] for p in found["predictions"] if p["label"] == LABELS[0])
        )
        whole = sum(c["contribution"] for c in found["contributions"]) + found["residual"]["contribution"]
        assert found["contributions"] and whole + found["bias"] == pytest.approx(found["logit"], abs=1e-4)
    assert err.count("note:") == 1 and "1 of 4 classes have prototypes" in err
    assert f"The network's first answer is {LABELS[1]} (" in err and "--among all explains it" in err
    text = run("explain", toy.image(1), "--model", few)[1]
    assert (
        text.startswith(LABELS[1]) and f"why {LABELS[0]} " in text and "the best of the classes with prototypes" in text
    )


def test_among_all_explains_the_first_answer_as_it_is(toy, few):
    code, out, err = run("explain", toy.image(1), "--model", few, "--among", "all", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["among"], found["label"], found["without_prototypes"]) == ("all", LABELS[1], True)


@pytest.mark.parametrize(("among", "first"), [((), LABELS[0]), (("--among", "all"), LABELS[1])])
def test_pages_are_about_the_class_that_is_explained(toy, few, tmp_path, among, first):
    code, _, err = run("report", "--images", toy.image(1), "--model", few, "-o", tmp_path / "r.html", *among)
    assert code == 0, err
    code, _, err = run("explain", toy.image(1), "--model", few, "--html", tmp_path / "e.html", *among)
    assert code == 0, err
    for page in ("r.html", "e.html"):
        (case,) = data_of(tmp_path / page)["cases"]
        assert (case["top"] if case["first"] is None else case["first"]) == LABELS.index(first)


def test_a_class_that_is_named_is_explained_whatever_has_prototypes(toy, few):
    code, out, err = run("explain", toy.image(1), "--model", few, "--class", LABELS[2], "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["among"], found["label"]) == (None, LABELS[2])


def test_where_most_classes_have_prototypes_the_first_answer_is_explained(toy, converted):
    code, out, err = run("explain", toy.image(1), "--model", converted, "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert (found["among"], found["label"]) == ("all", found["predictions"][0]["label"])


def test_an_intervention_is_about_the_class_that_is_explained(toy, few):
    code, out, err = run("intervene", toy.image(1), "--zero", 1, "--model", few, "--json")
    assert code == 0, err
    assert json.loads(out)["before"]["label"] == LABELS[0]


@pytest.mark.parametrize(("some", "among"), [(0, "all"), (1, "prototypes"), (4, "prototypes"), (5, "all"), (10, "all")])
def test_most_classes_are_more_than_half(some, among):
    model = SimpleNamespace(active_classes=torch.arange(some), bias=torch.zeros(10))
    assert chosen_among(model, None) == among
    assert {chosen_among(model, named) for named in ("all",)} == {"all"}


def test_best_and_next_class_are_among_those_with_prototypes():
    model, logits = SimpleNamespace(active_classes=torch.tensor([1, 3])), torch.tensor([9.0, 1.0, 8.0, 2.0])
    assert (best_class(model, logits, "all"), best_class(model, logits, "prototypes")) == (0, 3)
    assert [next_class(model, logits, c) for c in (0, 3, 1)] == [3, 1, 3]
    alone = SimpleNamespace(active_classes=torch.tensor([2]))
    assert (next_class(alone, logits, 2), next_class(alone, logits, 0)) == (None, 2)


def test_next_compares_with_the_best_other_class_with_prototypes(toy, converted, few):
    (found,) = explain(converted, toy.image(0), ExplainOptions(against="next"))
    best = [p.class_index for p in found.explanation.predictions if p.class_index != found.explanation.class_index]
    assert found.contrast is not None
    assert (found.contrast.first, found.contrast.second) == (found.explanation.class_index, best[0])
    code, out, err = run("explain", toy.image(0), "--model", few, "--against", "next")
    assert (code, out) == (3, "") and "no other class of this model has prototypes" in err
