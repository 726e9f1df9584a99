"""`protonmf audit`, from the command line to the page, the JSON, the gate and the edit that it leads to."""

import json
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import protonmf_cli
from pages import data_of
from protonmf_cli.jobs.audit import Audited
from protonmf_cli.jobs.loaded import load
from protonmf_cli.options import ImageWords
from protonmf_cli.output.text.audit import removal_command
from toys import LABELS, run


@pytest.fixture(scope="module")
def audited(converted, toy, tmp_path_factory):
    page = tmp_path_factory.mktemp("audit") / "audit.html"
    code, out, err = run("audit", "-m", converted, "--data", toy.data, "-o", page, "--json")
    assert code == 0, err
    return json.loads(out), page


def test_json_holds_every_prototype_in_order(audited, converted):
    record, page = audited
    model = protonmf_cli.load(converted)
    assert record["schema"] == "protonmf.audit/1" and record["page"] == str(page)
    assert [each["rank"] for each in record["ranking"]] == list(range(1, len(model.model.parts) + 1))
    assert sorted(each["prototype_id"] for each in record["ranking"]) == model.model.parts
    assert record["shortcuts"] == sum(each["shortcut"] for each in record["ranking"])
    for each in record["ranking"]:
        assert each["class"] == LABELS[each["class_index"]]
        flips = each["transplant"]["flips"]
        assert flips["interval"][0] <= flips["share"] <= flips["interval"][1] and flips["trials"] >= 6
        assert each["transplant"]["left_without"]["trials"] == flips["trials"]


def test_without_is_what_the_edit_gives(audited, converted, toy):
    record, _ = audited
    first = record["ranking"][0]
    words = ("--everywhere", "--class", first["label"], "--zero", first["prototype"])
    code, out, err = run("intervene", "-m", converted, *words, "--data", toy.data, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [found["before"]["accuracy"], found["after"]["accuracy"]] == pytest.approx(first["without"]["accuracy"])
    own = next(each for each in found["per_class"] if each["label"] == first["label"])
    assert [own["before"], own["after"]] == pytest.approx(first["without"]["class_accuracy"])


def test_the_first_of_the_ranking_are_removed(audited, converted, toy, tmp_path):
    record, _ = audited
    kept = tmp_path / "audit.json"
    kept.write_text(json.dumps(record))
    target = tmp_path / "clean.safetensors"
    code, out, err = run(
        "intervene",
        "-m",
        converted,
        "--audit",
        kept,
        "--remove-suspicious",
        2,
        "--data",
        toy.data,
        "-o",
        target,
        "--json",
    )
    assert code == 0, err
    assert [each["prototype_id"] for each in json.loads(out)["edits"]] == [
        each["prototype_id"] for each in record["ranking"][:2]
    ]
    assert target.exists()


def test_the_page_shows_the_ranking(audited):
    record, page = audited
    shown = data_of(page)["audit"]
    assert json.dumps(shown).count(record["ranking"][0]["reason"].split(";")[0]) >= 1


def test_text_names_rank_prototype_and_reason(converted, toy, tmp_path):
    code, out, err = run("audit", "-m", converted, "--data", toy.data, "--top", 2)
    assert code == 0, err
    record = json.loads(run("audit", "-m", converted, "--data", toy.data, "--json")[1])
    text = " ".join(out.split())
    assert f"{record['shortcuts']} of {len(record['ranking'])} prototypes look like a shortcut" in text
    first = record["ranking"][0]
    assert f"1 {first['class']} {first['prototype']} {first['reason']}" in text
    assert record["shortcuts"]
    command = shlex.split(text.split("take the first one out: ")[1])
    assert command[:2] == ["protonmf", "intervene"]
    code, out, err = run(*command[1:-1], tmp_path / "clean.safetensors", "--json")
    assert code == 0, err
    assert json.loads(out)["edits"][0]["prototype_id"] == first["prototype_id"]


def test_the_command_takes_out_what_the_audit_took_out(converted, paper):
    """The prototype alone, also of a model that is stored in augmented form."""
    found = {"converted": load(converted), "paper": load(paper)}
    weights = found["paper"].model.weights
    shared = replace(weights, residual_share=torch.full_like(weights.residual_share, 0.5))
    found["augmented"] = replace(found["paper"], model=replace(found["paper"].model, weights=shared))
    data, one = ImageWords.of("pictures", split="val"), SimpleNamespace(class_index=2, number=1)
    words = {
        n: shlex.split(removal_command(Audited(loaded=m, data=data, found=None, gates=(), path=None), one))
        for n, m in found.items()
    }
    assert {n: "--everywhere" in each for n, each in words.items()} == {
        "converted": True, "paper": False, "augmented": False
    }  # fmt: skip
    assert {n: " --form plain " in " ".join(each) for n, each in words.items()} == {
        "converted": False, "paper": False, "augmented": True
    }  # fmt: skip


def test_the_command_names_a_class_by_its_index_where_two_have_its_label(converted):
    model = load(converted)
    twice = replace(model.model.card, classes=tuple(replace(c, label="thing") for c in model.model.card.classes))
    loaded = replace(model, model=replace(model.model, card=twice))
    found = Audited(loaded=loaded, data=ImageWords.of("pictures", split="val"), found=None, gates=(), path=None)
    words = shlex.split(removal_command(found, SimpleNamespace(class_index=2, number=1)))
    assert words[words.index("--class") + 1] == "2"


def test_a_gate_stops_with_5_and_is_in_junit(audited, converted, toy, tmp_path):
    record, _ = audited
    report = tmp_path / "audit.xml"
    words = ("audit", "-m", converted, "--data", toy.data, "--junit-xml", report)
    code, _, err = run(*words, "--max-shortcuts", record["shortcuts"])
    assert code == 0, err
    suite = ET.parse(report).getroot()[0]
    assert (suite.get("name"), suite.get("tests"), suite.get("failures")) == ("protonmf audit", "1", "0")
    if record["shortcuts"]:
        code, _, err = run(*words, "--max-shortcuts", record["shortcuts"] - 1, "--force")
        assert code == 5 and "--max-shortcuts" in err
        assert ET.parse(report).getroot()[0].get("failures") == "1"


def test_masks_and_groups_reach_the_ranking(converted, toy, tmp_path):
    from PIL import Image

    groups = []
    for label in LABELS:
        for n, path in enumerate(sorted((toy.data / "val" / label).iterdir())):
            mask = Image.new("L", Image.open(path).size)
            mask.paste(255, (0, 0, mask.width // 2, mask.height))
            (tmp_path / "masks" / label).mkdir(parents=True, exist_ok=True)
            mask.save(tmp_path / "masks" / label / path.name)
            groups.append(f"{label}/{path.name},{'even' if n % 2 == 0 else 'odd'}")
    (tmp_path / "groups.csv").write_text("path,group\n" + "\n".join(groups))
    words = ("--masks", tmp_path / "masks", "--groups", tmp_path / "groups.csv")
    code, out, err = run("audit", "-m", converted, "--data", toy.data, *words, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert set(record["groups"]) == {"even", "odd"}
    assert sum(each["images"] for each in record["groups"].values()) == record["images"] == len(groups)
    for each in record["ranking"]:
        assert 0 <= each["outside_object"] <= 1
        assert each["without"]["worst_group_accuracy"][0] == min(g["accuracy"] for g in record["groups"].values())


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--masks", "m", "--boxes", "b"), 2, "give --masks or --boxes, not both"),
        (("--masks", "nowhere"), 3, "the folder of masks nowhere does not exist"),
        (("--groups", "nowhere.csv"), 3, "nowhere.csv cannot be read"),
        (("--junit-xml", "j.xml"), 2, "--junit-xml writes the threshold: give --max-shortcuts N too"),
        (("-o", "audit.json"), 2, "-o writes a page, and audit.json is named as JSON"),
        (("--hosts", 0), 2, "--hosts"),
    ],
)
def test_bad_words_are_refused_before_any_work(converted, toy, words, code, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, _, err = run("audit", "-m", converted, "--data", toy.data, *words)
    assert (found, sentence in " ".join(err.split())) == (code, True), err
    assert not list(tmp_path.iterdir())


def test_images_of_one_class_are_refused(converted, toy, tmp_path):
    only = tmp_path / "data" / LABELS[0]
    only.mkdir(parents=True)
    (only / "a.png").write_bytes(toy.image().read_bytes())
    code, _, err = run("audit", "-m", converted, "--data", tmp_path / "data")
    assert code == 3 and "all images are of red things" in err
