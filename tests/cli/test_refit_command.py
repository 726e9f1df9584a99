"""`intervene --refit` and `--audit --remove-suspicious`, from the command line to the file that is exported."""

import json

import pytest
import timm
import torch

import protonmf_cli
from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.store import decision_digest
from toys import run

ZERO = ("--everywhere", "--class", "red things", "--zero", 1)


def said(text):
    return " ".join(text.split())


def intervened(model, *words):
    return run("intervene", "--model", model, *words)


@pytest.mark.parametrize("kind", ["converted", "vit"])
def test_a_refit_from_the_command_to_the_export(request, toy, kind, tmp_path):
    model, target = request.getfixturevalue(kind), tmp_path / "clean.safetensors"
    words = (*ZERO, "--refit", toy.data, "--split", "train", "-o", target)
    code, out, err = intervened(model, *words, "--json")
    assert code == 0, err
    refit = json.loads(out)["refit"]
    assert refit["taken"] and refit["reason"] is None
    assert (refit["images"], refit["classes"]) == (30, 4)
    assert [row["label"] for row in refit["per_class"]] == ["red things"]
    assert refit["held_out"]["images"] == 30 and refit["held_out"]["refitted"] >= refit["held_out"]["edited"]
    assert {each["ridge"] for each in refit["candidates"]} > {None, refit["ridge"]}
    loaded = protonmf_cli.load(target)
    (removed,) = refit["removed"]
    part = loaded.model.exact.prototypes[removed]
    head = loaded.model.head_vectors()
    assert float((head @ part).abs().max()) < 1e-6 * float(part.norm() * head.norm(dim=1).max())
    why = loaded.explain(toy.image(1))
    assert why.ledger_error < 1e-5
    code, out, _ = run("inspect", target)
    assert f"last layer on 30 images of 4 classes, ridge {refit['ridge']:g}, off 1 removed prototypes" in said(out)
    assert json.loads(run("inspect", target, "--json")[1])["card"]["refits"][0]["removed"] == [removed]
    assert run("export", target, "-o", tmp_path / "net")[0] == 0
    network = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    pixels = (loaded.crop(toy.image(1)).float() / 255 - mean) / std
    with torch.inference_mode():
        expected = network(pixels[None])[0]
    best = why.predictions[0]
    assert best.logit == pytest.approx(float(expected[best.class_index]), abs=1e-3)
    assert best.class_index == int(expected.argmax())


def test_a_refit_in_words_beside_the_edit_alone(toy, converted):
    gone = ("--everywhere", "--class", "red things", "--zero", "1,2")
    words = (*gone, "--data", toy.data, "--refit", toy.data)
    code, out, err = intervened(converted, *words, "--json")
    assert code == 0, err
    found = json.loads(out)
    alone = json.loads(intervened(converted, *gone, "--data", toy.data, "--json")[1])
    assert "edit_alone" not in alone and "refit" not in alone
    assert found["edit_alone"] == alone["after"] != found["after"]
    assert found["before"] == alone["before"]
    assert "18 of the 18 images of --data were also given to --refit" in said(err)
    held_out, after = found["refit"]["held_out"], found["after"]["accuracy"]
    code, out, _ = intervened(converted, *words)
    lines = [said(line) for line in out.splitlines()]
    assert lines[0] == "every class: zero prototype 1 of red things, zero prototype 2 of red things"
    assert lines[1] == f"last layer refitted on 18 images of 4 classes, ridge {found['refit']['ridge']:g}"
    shares = " ".join(f"{held_out[name]:.1%}" for name in ("before", "edited", "refitted"))
    assert f"all classes {shares} 18" in lines
    along = found["refit"]["taken_along"][0]
    assert (along["owner_label"], along["prototype"], along["images"]) == ("red things", 1, 15)  # 18 but for its own 3
    shares = " ".join(f"{along[name]:.1%}" for name in ("before", "edited", "refitted"))
    assert f"prototype 1 of red things {shares} 15" in lines
    before, edited = (found[name]["accuracy"] for name in ("before", "edit_alone"))
    assert any(
        line.startswith(f"all classes: {before:.1%} -> {after:.1%} ({edited:.1%} with the edit alone) of 18 images")
        for line in lines
    )


def test_the_command_line_and_python_do_the_same(toy, converted, tmp_path):
    code, _, err = intervened(converted, *ZERO, "--refit", toy.data, "-o", tmp_path / "a.safetensors")
    assert code == 0, err
    found = protonmf_cli.intervene(
        converted, protonmf_cli.EditWords(number=1, owner="red things"), everywhere=True, refit=toy.data,
        output=tmp_path / "b.safetensors",
    )  # fmt: skip
    assert found.refit is not None and found.outcomes is None and found.on_data is None
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_an_image_is_looked_at_under_the_final_model(toy, converted, tmp_path):
    target = tmp_path / "clean.safetensors"
    words = (*ZERO, "--refit", toy.data, "-o", target, "--json")
    code, out, err = run("intervene", toy.image(0), "--model", converted, *words)
    assert code == 0, err
    found = json.loads(out)
    why = json.loads(run("explain", toy.image(0), "--class", "red things", "--model", target, "--json")[1])
    assert found["after"]["logit"] == pytest.approx(why["logit"], abs=1e-5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--class", "red things", "--zero", 1, "--refit", "{data}"), "give --everywhere too"),
        (("--everywhere", "--class", 0, "--scale", "1=0.5", "--refit", "{data}"), "--scale leaves some of each: give --zero N"),
        (("--everywhere", "--zero", 1, "--refit", "{data}"), "which class is to be edited"),
        (("--class", 0, "--zero", 1, "--class-map", "map.csv"), "images of --data and --refit: give one of them too"),
        ((*ZERO, "--refit", "nowhere"), "nowhere"),
    ],
)  # fmt: skip
def test_refits_that_cannot_be_write_nothing(toy, converted, tmp_path, words, sentence):
    target = tmp_path / "clean.safetensors"
    code, _, err = intervened(converted, *(str(word).format(data=toy.data) for word in words), "-o", target)
    assert code in (2, 3)
    assert sentence in said(err)
    assert not target.exists()


def test_a_model_that_reads_no_amounts_is_refused(toy, paper, tmp_path):
    target = tmp_path / "clean.safetensors"
    code, _, err = intervened(paper, *ZERO, "--refit", toy.data, "-o", target)
    assert code == 3 and "--everywhere needs a model that reads amounts" in said(err)
    assert not target.exists()


def test_too_few_images_are_said_and_the_edit_is_saved_alone(toy, converted, tmp_path):
    only = tmp_path / "data" / "red things"
    only.parent.mkdir()
    only.symlink_to(toy.image(0).parent)
    alone, target = tmp_path / "alone.safetensors", tmp_path / "clean.safetensors"
    code, _, err = intervened(converted, *ZERO, "--refit", only.parent, "-o", target)
    assert code == 0 and "no step of the last layer was taken: the images are of one class." in said(err)
    assert intervened(converted, *ZERO, "--data", toy.data, "-o", alone)[0] == 0
    assert target.read_bytes() == alone.read_bytes()


# what an audit ranks first


def ranked(model, *prototypes):
    """As `protonmf audit --json` writes it: (prototype, whether it looks like a shortcut)."""
    rows = [
        {
            "rank": rank,
            "class_index": int(model.owner[j]),
            "class": model.card.classes[int(model.owner[j])].shown,
            "prototype": model.number(j),
            "prototype_id": j,
            "shortcut": shortcut,
            "reasons": [],
        }
        for rank, (j, shortcut) in enumerate(prototypes, start=1)
    ]
    return {"schema": "protonmf.audit/1", "model_digest": decision_digest(model), "ranking": rows}


@pytest.fixture
def audit(converted, tmp_path):
    model = protonmf_cli.load(converted).model
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(ranked(model, (model.own(2)[0], True), (model.own(0)[1], False), (0, True))))
    return path


def test_the_first_of_an_audit_are_removed_from_every_class(toy, converted, audit, tmp_path):
    target, by_hand = tmp_path / "clean.safetensors", tmp_path / "by-hand.safetensors"
    words = ("--data", toy.data, "--refit", toy.data)
    code, out, err = intervened(converted, "--audit", audit, "--remove-suspicious", 2, *words, "-o", target, "--json")
    assert code == 0, err
    edits = json.loads(out)["edits"]
    assert [(e["everywhere"], e["owner_label"], e["prototype"], e["factor"]) for e in edits] == [
        (True, "blue things", 1, 0.0), (True, "red things", 2, 0.0),
    ]  # fmt: skip
    assert "warning: prototype 2 of red things: the audit does not call it a shortcut; removed as asked" in said(err)
    zero = ("--everywhere", "--class", 0, "--zero", "blue things:1", "--zero", "red things:2")
    assert intervened(converted, *zero, *words, "-o", by_hand)[0] == 0
    assert target.read_bytes() == by_hand.read_bytes()
    _, _, err = intervened(converted, "--audit", audit, "--remove-suspicious", 1, *words)
    assert "does not call" not in err


def test_an_audit_from_python(toy, converted, audit):
    loaded = protonmf_cli.load(converted)
    edits = protonmf_cli.suspicious_edits(loaded, audit, 1)
    found = protonmf_cli.intervene(loaded, edits, data=toy.data, everywhere=True)
    assert [(e.everywhere, e.prototype_id) for e in found.edits] == [(True, loaded.model.own(2)[0])]
    for count in (0, 4):
        with pytest.raises(UsageError, match=r"ranks 3 prototypes, so N is a number from 1 to 3\."):
            protonmf_cli.suspicious_edits(loaded, audit, count)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--audit", "{audit}", "--remove-suspicious", 9), "ranks 3 prototypes, so N is a number from 1 to 3"),
        (("--audit", "{audit}", "--remove-suspicious", 1, "--zero", 1), "says itself what is removed: leave out --zero"),
        (("--audit", "{audit}", "--remove-suspicious", 1, "--class", 0), "says itself what is removed: leave out --class"),
        (("--audit", "{audit}"), "belong together: give both"),
        (("--remove-suspicious", 1, "--zero", 1), "belong together: give both"),
        (("--audit", "{audit}.gone", "--remove-suspicious", 1), "cannot be read"),
        (("--audit", "{image}", "--remove-suspicious", 1), "is no audit"),
    ],
)  # fmt: skip
def test_audits_that_cannot_be_followed(toy, converted, audit, tmp_path, words, sentence):
    target = tmp_path / "clean.safetensors"
    given = [str(word).format(audit=audit, image=toy.image(0)) for word in words]
    code, _, err = intervened(converted, *given, "--data", toy.data, "-o", target)
    assert code in (2, 3) and sentence in said(err)
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_digest": "0" * 64}, "is of another model than"),
        ({"schema": "protonmf.evaluation/1"}, "is no audit. Give what `protonmf audit --json` wrote"),
        ({"ranking": [{"rank": 1}]}, "is damaged"),
        ({"ranking": None}, "is damaged"),
    ],
)
def test_files_that_are_not_this_model_s_audit(toy, converted, audit, change, sentence):
    audit.write_text(json.dumps(json.loads(audit.read_text()) | change))
    code, _, err = intervened(converted, "--audit", audit, "--remove-suspicious", 1, "--data", toy.data)
    assert code == 3 and sentence in said(err)
    with pytest.raises(InputError):
        protonmf_cli.suspicious_edits(protonmf_cli.load(converted), audit, 1)


def test_a_refit_reads_as_many_images_as_fit(converted, toy, monkeypatch):
    monkeypatch.setattr(protonmf_cli.jobs.intervention, "MOST_REFIT_IMAGES", 8)
    code, out, err = intervened(converted, "--everywhere", "--class", 0, "--zero", 1, "--refit", toy.data, "--json")
    assert code == 0, err
    assert json.loads(out)["refit"]["images"] == 8  # of 18: two of each class
    assert "a step needs few images: 10 of --refit are left out" in err
