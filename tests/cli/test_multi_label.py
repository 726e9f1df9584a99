"""Classifiers whose labels do not exclude each other: probabilities, lists, agreement per label, edits and the page."""

import itertools
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import jaccard_score

import protonmf_cli
from pages import data_of, opened
from protonmf_cli.errors import UsageError
from protonmf_cli.models.answers import answers, jaccard, probabilities, said
from toys import run

COLOURS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}
NAMES = list(COLOURS)
CODE = """
import torch
from torch import nn


class Colours(nn.Module):
    def __init__(self, end=nn.Sigmoid):
        super().__init__()
        self.detect = nn.Conv2d(3, 3, 4, stride=4, bias=False)
        self.detect.weight.data = (1.5 * torch.eye(3) - 0.5)[:, :, None, None].expand(3, 3, 4, 4) / 16
        self.fc = nn.Linear(3, 3)
        self.fc.weight.data = 60 * torch.eye(3) - 4
        self.fc.bias.data = torch.full((3,), -2.0)
        if end is not None:
            self.end = end(dim=1) if end is nn.Softmax else end()
        self.pretrained_cfg = {
            "input_size": (3, 32, 32), "mean": (0.4,) * 3, "std": (0.4,) * 3, "crop_pct": 1.0, "crop_mode": "squash",
            "label_names": ["red", "green", "blue"],
        }

    def forward(self, pixels):
        logits = self.fc(self.detect(pixels).relu().mean(dim=(2, 3)))
        return self.end(logits) if hasattr(self, "end") else logits


class Twice(Colours):
    def forward(self, pixels):
        seen = self.detect(pixels).relu().mean(dim=(2, 3))
        return self.end(self.fc(seen * self.end(seen)))


class TwoNames(Twice):
    def __init__(self):
        super().__init__()
        self.gate = self.end

    def forward(self, pixels):
        seen = self.detect(pixels).relu().mean(dim=(2, 3))
        return self.end(self.fc(seen * self.gate(seen)))


class Functional(Colours):
    def forward(self, pixels):
        return torch.sigmoid(super().forward(pixels))


def build(end="sigmoid"):
    if end == "functional":
        return Functional(None)
    if end == "twice":
        return Twice()
    if end == "two names":
        return TwoNames()
    return Colours({"sigmoid": nn.Sigmoid, "softmax": nn.Softmax, "none": None}[end])
"""


def picture(labels, seed):
    """A grey picture with a square of each colour, somewhere."""
    draw = random.Random(seed)
    pixels = np.full((32, 32, 3), draw.randrange(95, 109), dtype=np.uint8)
    places = draw.sample([(2, 2), (2, 18), (18, 2), (18, 18)], len(labels))
    for label, place in zip(labels, places, strict=True):
        down, right = (each + draw.randrange(3) for each in place)
        pixels[down : down + 10, right : right + 10] = COLOURS[label]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the network's code, lists of images with one to three labels, and the model."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "colours.py").write_text(CODE)
    sets = [s for size in (1, 2, 3) for s in itertools.combinations(NAMES, size)]
    for split, copies in (("train", 4), ("val", 2)):
        lines = []
        for n, labels in enumerate(sets * copies):
            picture(labels, f"{split}{n}").save(folder / f"{split}{n}.png")
            lines.append(f"{split}{n}.png,{';'.join(labels)}")
        (folder / f"{split}.csv").write_text("\n".join(["path,labels", *lines]))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    return place


@pytest.fixture(scope="module")
def model(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        code, out, err = run(
            "convert", "--network", "colours:build", "--data", "train.csv", "-o", "model.safetensors", "-p", 1,
            "--device", "cpu",
        )  # fmt: skip
    assert code == 0, err
    assert "ends with end (Sigmoid), which is left out" in err
    assert "from 48 labelled images" in out and "99.9" not in out
    return place / "model.safetensors"


OWN = ("--network", "colours:build")


def wanted(place, name):
    """What the network itself gives, with its sigmoid."""
    space = {}
    exec(CODE, space)
    pixels = torch.from_numpy(np.asarray(Image.open(place / name)).copy()).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        return space["build"]().eval()((pixels / 255 - 0.4) / 0.4)[0]


def labels_of(place, split):
    lines = (place / f"{split}.csv").read_text().splitlines()[1:]
    return {name: labels.split(";") for name, labels in (line.split(",") for line in lines)}


def test_probabilities_are_the_networks_own_and_need_not_add_up(here, model):
    for name, labels in labels_of(here, "val").items():
        code, out, err = run("explain", name, "--model", model, *OWN, "--json")
        assert code == 0, err
        found = json.loads(out)
        expected = wanted(here, name)
        assert found["multi_label"] is True
        told = {p["label"]: p["probability"] for p in found["predictions"]}
        assert list(told.values()) == sorted(told.values(), reverse=True)
        assert [told[label] for label in NAMES] == pytest.approx(expected.tolist(), abs=1e-5)
        assert {label for label, p in told.items() if p > 0.5} == set(labels)
        assert found["ledger_error"] < 1e-4


def test_a_conversion_counts_labels(here, model):
    """Each image once for each of its labels, all of which the network finds."""
    card = protonmf_cli.load(model, network=network("none")).model.card
    assert (card.data.images, card.measured.agreement) == (48, 1)
    assert card.measured.accuracy_black_box == card.measured.accuracy_prototype_model == 1


def test_all_labels_are_said(here, model):
    name = next(name for name, labels in labels_of(here, "val").items() if labels == ["red", "blue"])
    code, out, err = run("explain", name, "--model", model, *OWN)
    assert code == 0, err
    answer, _, others = out.splitlines()[0].partition("   then ")
    assert sorted(part.split()[0] for part in answer.split(", ")) == ["blue", "red"]
    assert others.startswith("green")
    found = protonmf_cli.load(model, network=network("none")).explain(here / name, "red")
    assert [p.label for p in found.beside] == ["blue"] and found.is_said
    assert "; also blue" in repr(found)
    assert "also blue" in found._repr_html_()
    assert not protonmf_cli.load(model, network=network("none")).explain(here / name, "green").is_said


def network(end="sigmoid"):
    space = {}
    exec(CODE, space)
    return space["build"](end)


def test_sets_of_labels_are_compared(here, model):
    code, out, err = run("evaluate", "--data", "val.csv", "--model", model, *OWN, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] == 14, "each once, whatever the number of its labels"
    assert found["accuracy"]["black_box"] == found["agreement"]["prototype_model"] == 1
    assert found["multi_label"] is True
    assert [row["images"] for row in found["per_class"]] == [8, 8, 8]
    assert all(row["agreement"] == 1 for row in found["per_class"])


def test_accuracy_is_the_mean_jaccard_index(here, model, tmp_path):
    """Against scikit-learn, with labels of which many are wrong."""
    told = labels_of(here, "val")
    wrong = {name: NAMES[: 1 + n % 3] for n, name in enumerate(told)}
    listed = here / "wrong.csv"
    listed.write_text("".join(f"{name},{'|'.join(labels)}\n" for name, labels in wrong.items()))
    code, out, err = run("evaluate", "--data", listed, "--model", model, *OWN, "--json")
    assert code == 0, err
    as_rows = [[[label in labels for label in NAMES] for labels in sets.values()] for sets in (wrong, told)]
    found = json.loads(out)
    assert found["accuracy"]["prototype_model"] == pytest.approx(jaccard_score(*as_rows, average="samples"))
    recall = np.array(as_rows[1])[np.array(as_rows[0])[:, 1], 1].mean()
    assert found["per_class"][1]["prototype_model"] == pytest.approx(recall)


def test_agreement_is_of_every_label(here, model, tmp_path):
    """An edited model that never says red differs from the network in red alone."""
    edited = tmp_path / "edited.safetensors"
    code, _, err = run("intervene", "val0.png", "--class", "red", "--zero", 1, "--model", model, *OWN, "-o", edited)
    assert code == 0, err
    code, out, err = run("evaluate", "--data", "val.csv", "--model", edited, *OWN, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [row["agreement"] for row in found["per_class"]] == pytest.approx([6 / 14, 1, 1])
    shares = [len(set(labels) - {"red"}) / len(labels) for labels in labels_of(here, "val").values()]
    assert found["agreement"]["prototype_model"] == pytest.approx(np.mean(shares))


def test_edits_are_counted_by_label(here, model, tmp_path):
    words = (
        "--class",
        "red",
        "--zero",
        1,
        "--model",
        model,
        *OWN,
        "-o",
        tmp_path / "e.safetensors",
        "--data",
        "val.csv",
    )
    code, out, err = run("intervene", *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] == 24 and found["before"]["accuracy"] == 1
    assert found["after"]["accuracy"] == pytest.approx(16 / 24)
    assert {(flip["label"], flip["before"], flip["after"]) for flip in found["flips"]} == {("red", "red", None)}
    code, out, err = run("intervene", *words, "--force")
    assert "of 24 labels found, 8 flipped" in out and ": red -> not red" in out


def test_an_image_may_have_a_line_for_each_label(here, model):
    listed = here / "long.csv"
    pairs = [(name, label) for name, labels in labels_of(here, "val").items() for label in labels]
    listed.write_text("".join(f"{name},{label}\n" for name, label in pairs))
    code, out, err = run("evaluate", "--data", listed, "--model", model, *OWN, "--json")
    assert code == 0, err
    assert (json.loads(out)["images"], json.loads(out)["accuracy"]["black_box"]) == (14, 1)


def test_several_labels_want_a_network_for_them(here, tmp_path):
    code, _, err = run(
        "convert", "--network", "colours:build", "--one-label", "--data", "train.csv", "-o", tmp_path / "m"
    )
    assert code == 3
    assert "If these are several labels of one image" in err and "--multi-label" in err


def test_a_label_among_several_that_is_none(here, model):
    (here / "odd.csv").write_text("val0.png,red;purple\n")
    code, _, err = run("evaluate", "--data", "odd.csv", "--model", model, *OWN)
    assert code == 3
    assert "red;purple" in err and "Rename them" in err


def test_softmax_is_left_out_too_and_excludes(here, tmp_path):
    file = tmp_path / "soft.safetensors"
    words = ("--network", "colours:build", "--model-arg", "end=softmax", "-o", file)
    code, _, err = run("convert", *words, "--data", "train.csv")
    assert code == 3, "lists with several labels are for sigmoids"
    single = here / "single.csv"
    alone = {name: labels[0] for name, labels in labels_of(here, "train").items() if len(labels) == 1}
    single.write_text("".join(f"{name},{label}\n" for name, label in alone.items()))
    code, _, err = run("convert", *words, "--data", single)
    assert code == 0, err
    assert "(Softmax), which is left out" in err
    assert not protonmf_cli.load(file, network=network("softmax")).model.multi_label


@pytest.mark.parametrize("end", ["functional", "twice", "two names"])
def test_a_sigmoid_that_cannot_be_left_out_is_refused(here, tmp_path, end):
    """Because it is no module, or one that does something else in the network, too."""
    words = ("--model-arg", f"end={end}", "--data", "train.csv", "-o", tmp_path / "m.safetensors")
    code, _, err = run("convert", "--network", "colours:build", *words)
    assert code == 4
    assert "gives numbers between 0 and 1" in err and "returns what goes into that" in err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("audit", "--data", "val.csv"), "an audit pastes parts of a class into images of others"),
        (("evaluate", "--data", "val.csv", "--table", "parts"), "--table parts counts images of one class each"),
        (
            ("intervene", "--class", "red", "--zero", "1", "--everywhere", "--refit", "val.csv", "-o", "r.safetensors"),
            "--refit takes a step of a softmax",
        ),
    ],
)
def test_what_needs_one_class_is_refused(here, model, words, sentence):
    code, _, err = run(*words, "--model", model, *OWN)
    assert code in (2, 3)
    assert sentence in err
    assert not (here / "r.safetensors").exists()


def test_tables_of_labels(here, model):
    code, out, err = run("evaluate", "--data", "val.csv", "--model", model, *OWN, "--table", "cancellation", "--json")
    assert code == 0, err
    rows = json.loads(out)["tables"]["cancellation"]["rows"]
    assert [row["images_are"] for row in rows] == ["all images"]  # none is right or wrong as a whole


def test_a_data_set_of_vectors(here, tmp_path):
    """Python: multi-hot targets beside pictures."""
    data = []
    for name, labels in labels_of(here, "train").items():
        data.append((Image.open(here / name), torch.tensor([label in labels for label in NAMES]).float()))
    found = protonmf_cli.convert(network("none"), data, multi_label=True, output=tmp_path / "m.safetensors")
    model = found.loaded.model
    assert model.multi_label
    assert model.card.data.images_per_class == {"0": 16, "1": 16, "2": 16}


def test_the_page_shows_labels(browser, here, model, tmp_path):
    page = tmp_path / "page.html"
    code, _, err = run("report", "--data", "val.csv", "--model", model, *OWN, "-o", page)
    assert code == 0, err
    two = {name for name, labels in labels_of(here, "val").items() if labels == ["red", "blue"]}
    with opened(browser, page) as tab:
        tab.get_by_role("button", name="red, blue", exact=False).first.click()
        assert set(tab.locator("#bars b").all_inner_texts()) == {"red", "blue"}
        assert tab.locator("#live .chips").inner_text() == "right"
        assert any(name in tab.locator(".seen").inner_text() for name in two)
        tab.select_option("#choose-class", str(NAMES.index("red")))
        assert "red is said: its logit" in tab.locator("#headline").inner_text().replace("?", "")
        assert "Switching off prototype 1 alone takes red away" in tab.locator("#hint").inner_text()
        tab.locator("#try").click()
        assert tab.locator("#bars b").all_inner_texts() == ["blue"]
        assert "no longer: red" in tab.locator("#live .chips").inner_text()
        assert "not found: red" in tab.locator("#live .chips").inner_text()


def test_answers():
    logits = torch.tensor([[2.0, -1.0, 0.5], [-3.0, -1.0, -2.0]])
    assert torch.equal(said(logits, multi_label=True), torch.tensor([[True, False, True], [False] * 3]))
    assert torch.equal(said(logits, multi_label=False).nonzero(), torch.tensor([[0, 0], [1, 1]]))
    assert torch.equal(answers(logits, 2, multi_label=True), torch.tensor([2, -1]))
    assert torch.equal(answers(logits, torch.tensor([1, 1]), multi_label=True), torch.tensor([-1, -1]))
    assert torch.equal(answers(logits, 2, multi_label=False), torch.tensor([0, 1]))
    assert torch.allclose(probabilities(logits, multi_label=False).sum(dim=1), torch.ones(2))
    assert float(probabilities(logits, multi_label=True)[0, 0]) == pytest.approx(1 / (1 + np.exp(-2)))
    sets = torch.tensor([[True, True, False], [False] * 3, [True, False, False]])
    others = torch.tensor([[True, False, True], [False] * 3, [True, False, False]])
    assert jaccard(sets, others).tolist() == pytest.approx([1 / 3, 1, 1])


def test_a_page_of_few_images_leaves_no_label_out(here, model, tmp_path):
    """Each label has as many images as were asked for, though most images have another one before it."""
    listed = here / "both.csv"
    pairs = [(name, labels) for name, labels in labels_of(here, "val").items() if labels[:2] == ["red", "green"]]
    listed.write_text("".join(f"{name},{';'.join(labels)}\n" for name, labels in pairs))
    page = tmp_path / "page.html"
    words = ("--data", listed, "--per-class", 1, "--model", model, *OWN, "-o", page, "--json")
    code, out, err = run("report", *words)
    assert code == 0, err
    told = {label for case in data_of(page)["cases"] for label in case["targets"]}
    assert told >= {0, 1}


def test_a_model_without_its_weights_knows_that_labels_are_several(toy, tmp_path):
    file = tmp_path / "several.safetensors"
    words = ("--data", toy.data, "-p", 1, "--no-stability", "--multi-label", "--no-embed-backbone", "-q")
    code, _, err = run("convert", toy.name, *words, "-o", file)
    assert code == 0, err
    assert protonmf_cli.load(file).backbone.source.multi_label


@pytest.mark.parametrize("fit", [protonmf_cli.fit_fewshot, protonmf_cli.train_protopnet])
def test_models_of_one_class_are_not_trained_for_labels(toy, tmp_path, fit):
    words = protonmf_cli.NetworkWords(name=toy.name, multi_label=True)
    with pytest.raises(UsageError, match="classes that exclude each other"):
        fit(words, toy.data, output=tmp_path / "m.safetensors")


def test_more_labels_than_are_listed_can_be_said(here, model):
    found = protonmf_cli.load(model, network=network("none")).explain(here / "val13.png", "blue")
    few = replace(found, predictions=found.predictions[:1], class_index=2)
    assert few.is_said and not replace(few, logit=-0.1).is_said


def test_patches_of_images_with_several_labels_are_of_the_class_where_it_is_among_them(here, model, tmp_path):
    words = ("inspect", "--model", model, *OWN, "--json")
    code, out, err = run(*words, "--data", "train.csv")
    assert code == 0, err
    found = json.loads(out)
    classes = [patch["classes"] for each in found["prototypes"] for patch in each["patches"]]
    assert found["failed"] == 0 and found["as_said"]["classes"]["count"] == len(classes)
    assert max(map(len, classes)) == 3
    source = found["prototypes"][0]["patches"][0]["source"]
    lines = (here / "train.csv").read_text().replace(f"{source},red;", f"{source},").splitlines()
    lines = [line.replace(f"{source},red", f"{source},blue") for line in lines]
    listed = here / "less.csv"
    listed.write_text("\n".join(lines))
    code, out, err = run(*words, "--data", listed)
    assert code == 5 and "images of another class" in err
    assert {each["class"] for each in json.loads(out)["prototypes"] if "class" in each["faults"]} == {"red"}
