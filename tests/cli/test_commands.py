"""Each command end to end: output, exit code, and nothing but data on stdout."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toys
from toys import run, run_into, start


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys; from protonmf_cli.cli.app import main; main(['convert', '--help']); print([m for m in ('torch', 'timm', 'cvxpy', 'numpy', 'matplotlib') if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "--prototypes" in done.stdout
    assert done.stderr.strip() == "[]"


def test_convert_json(toy, tmp_path):
    code, out, err = run("convert", toy.name, "--data", toy.data, "-o", tmp_path / "m.safetensors", "-p", 2, "--json")
    report = json.loads(out)
    assert code == 0, err
    assert report["schema"] == "protonmf.conversion/1"
    assert (report["classes"], report["classes_with_images"], report["prototypes"], report["images"]) == (4, 4, 8, 30)
    assert report["agreement"] == 1
    assert report["max_abs_logit_difference"] <= 1e-4
    assert report["accuracy_black_box"] == report["accuracy_prototype_model"]
    assert report["readout"]["kind"] == "average"
    assert report["ridge"] >= 0
    assert 1 <= report["cancellation"]["median"] <= report["cancellation"]["high"]
    assert "alike" not in report  # one entry per pair: `inspect --json` has them
    assert set(report["seconds"]) == {"extract", "factorise", "head", "residual", "total"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m.safetensors", "state"] or sorted(
        p.name for p in tmp_path.iterdir()
    ) == ["m.safetensors"]


def test_same_command_same_bytes(toy, converted, tmp_path):
    assert toys.convert(toy, tmp_path / "again.safetensors").read_bytes() == converted.read_bytes()


def test_dry_run_touches_nothing(toy, tmp_path):
    code, out, _ = run("convert", toy.name, "--data", toy.data, "-o", tmp_path / "m.safetensors", "--dry-run", "--json")
    plan = json.loads(out)
    assert (code, plan["images"], plan["readout"]) == (0, 30, "average")
    assert not (tmp_path / "m.safetensors").exists()
    assert not list(tmp_path.glob(".*"))


def test_existing_output_is_refused_before_any_work(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    target.write_text("precious")
    code, _, err = run("convert", toy.name, "--data", toy.data, "-o", target)
    assert (code, target.read_text()) == (3, "precious")
    assert "exists already" in err
    assert "--force" in err


@pytest.mark.parametrize(
    "words",
    [
        ("-p", 1),
        ("--init", "abs", "--solver", "hals"),
        ("--rows", "image"),
        ("--dtype", "float64"),
        ("--no-embed-backbone",),
        ("--memory", "0.001", "-p", 1),
    ],
)
def test_options_of_convert_stay_exact(toy, tmp_path, words):
    target = tmp_path / "m.safetensors"
    code, out, err = run("convert", toy.name, "--data", toy.data, "-o", target, "--json", *words)
    assert code == 0, err
    assert json.loads(out)["agreement"] == 1
    code, out, err = run("explain", toy.image(), "--model", target, "--json")
    assert code == 0, err
    assert json.loads(out)["ledger_error"] < 1e-4


def test_images_are_left_out_only_where_a_sample_is_asked_for(toy, converted, tmp_path, monkeypatch):
    from protonmf_cli.pipelines.conversion import classes

    words = ("convert", toy.name, "--data", toy.data, "-p", 2, "--near", 1, "--json", "-o")
    assert run(*words, tmp_path / "no.safetensors", "--memory", "0.0001")[0] == 2  # below what the option takes
    monkeypatch.setattr(classes, "images_that_fit", lambda *_: 3)  # rows of every class go to the disk
    code, out, err = run(*words, tmp_path / "m.safetensors", "--memory", "0.001")
    assert code == 0, err
    assert json.loads(out)["left_out"] == {} and json.loads(out)["images"] == 30
    assert (tmp_path / "m.safetensors").read_bytes() == converted.read_bytes()
    code, out, err = run(*words, tmp_path / "few.safetensors", "--sample", 5)
    assert code == 0, err
    found = json.loads(out)
    assert found["images"] == 20 and sum(found["left_out"].values()) == 10 and "10 images of 4 classes" in err


def test_rows_in_bfloat16_give_nearly_the_same_prototypes_and_an_exact_file(toy, converted, tmp_path):
    from protonmf_cli.files.store import load_model

    target = toys.convert(toy, tmp_path / "m.safetensors", "--dtype", "bfloat16")
    (ours, weights), (theirs, others) = load_model(target), load_model(converted)
    near = torch.cosine_similarity(ours.prototypes, theirs.prototypes)
    assert 0.98 < near.min() < 1
    assert all(torch.equal(weights[name], others[name]) for name in others)
    assert 1e-4 < ours.card.readout.relative_difference < 0.25
    code, out, err = run("explain", toy.image(), "--model", target, "--json")
    assert code == 0 and json.loads(out)["ledger_error"] < 1e-4, err
    code, _, err = run("explain", toy.image(), "--model", target, "--dtype", "bfloat16")
    assert code == 2 and "bfloat16 is for the rows of a conversion" in err


def test_explain_text_json_and_picture(toy, converted, tmp_path):
    picture = tmp_path / "e.png"
    code, out, err = run("explain", toy.image(2), "--model", converted, "--png", picture)
    assert code == 0, err
    for word in ("prototype 1", "amount", "usual", "weight", "residual", "bias", "= logit", "ledger error"):
        assert word in out
    assert "no place" not in out  # every row of this network has one
    assert "amount 1: as much as usual in images of the prototype's own class" in " ".join(out.split())
    size = Image.open(picture).size
    assert size[0] > 1000
    code, out, _ = run("explain", toy.image(2), "--model", converted, "--json")
    found = json.loads(out)
    assert found["schema"] == "protonmf.explanation/1"
    assert (found["evidence"], found["no_place"]) == ("amounts", None)
    assert "against" not in found
    total = sum(c["contribution"] for c in found["contributions"]) + found["residual"]["contribution"] + found["bias"]
    assert total == pytest.approx(found["logit"], abs=1e-4)
    sizes = [abs(c["contribution"]) for c in found["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    for c in found["contributions"]:
        assert np.sum(c["map"]) == pytest.approx(c["localised"], abs=1e-6)
        assert c["localised"] == pytest.approx(c["contribution"])
        assert c["unlocalised"] == pytest.approx(0, abs=1e-9)
        assert np.shape(c["presence"]) == (4, 4)
        assert np.sum(c["presence"]) == pytest.approx(c["evidence"], abs=1e-6)
        assert c["usual"][0] <= 1 <= c["usual"][1]
        assert len(c["examples"]) == 5


def test_the_papers_explanation_is_of_projections(toy, paper, tmp_path):
    code, out, err = run("explain", toy.image(2), "--model", paper, "--png", tmp_path / "e.png")
    assert code == 0, err
    assert "evidence" in out and "amount" not in out
    code, out, _ = run("explain", toy.image(2), "--model", paper, "--json")
    found = json.loads(out)
    assert (found["evidence"], found["no_place"]) == ("projections", None)
    assert np.min(found["residual"]["codes"]) >= 0
    for c in found["contributions"]:
        assert (c["usual"], c["owner_index"]) == (None, found["class_index"])
        assert np.min(c["presence"]) >= 0


def test_why_one_class_and_not_another(toy, converted, paper):
    words = ("explain", toy.image(0), "--model", converted, "--class", "red things")
    code, out, err = run(*words, "--against", "blue things", "--json")
    assert code == 0, err
    found = json.loads(out)["against"]
    assert found["class_indices"] == [0, 2]
    logits = {p["class_index"]: p["logit"] for p in json.loads(out)["predictions"]}
    assert found["difference"] == pytest.approx(logits[0] - logits[2], abs=1e-4)
    for row in found["rows"]:
        assert row["difference"] == pytest.approx(row["amount"] * (row["weights"][0] - row["weights"][1]))
    sizes = [abs(row["difference"]) for row in found["rows"]]
    assert sizes == sorted(sizes, reverse=True)
    for side, c in ((0, 0), (1, 2)):
        rows = sum(row["amount"] * row["weights"][side] for row in found["rows"])
        rest = sum(found[name][side] for name in ("residual", "no_place", "bias"))
        assert rows + rest == pytest.approx(logits[c], abs=1e-4)
    code, out, err = run(*words, "--against", "blue things")
    assert code == 0, err
    assert "why red things and not blue things?" in out and "= difference of the logits" in out
    code, out, err = run(*words, "--against", "0")
    assert (code, out) == (3, "") and "cannot be compared with itself" in err
    code, out, err = run("explain", toy.image(0), "--model", paper, "--class", 0, "--against", 1)
    assert (code, out) == (3, "") and "does not read amounts" in err


def test_explain_several_partly_and_from_stdin(toy, converted, tmp_path, monkeypatch):
    bad = tmp_path / "bad.jpg"
    bad.write_text("no image")
    code, out, err = run("explain", toy.image(0), bad, toy.image(1), "--model", converted, "--json")
    assert code == 6
    assert "bad.jpg is not an image" in err
    assert [Path(e["image"]) for e in json.loads(out)["explanations"]] == [toy.image(0), toy.image(1)]
    code, out, err = run("explain", bad, "--model", converted)
    assert (code, out) == (3, "")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{toy.image(0)}\n{toy.image(1)}\n"))
    code, out, err = run("explain", "-", "--model", converted, "--jsonl", "--png", tmp_path / "pictures")
    assert code == 0, err
    assert len([json.loads(line)["label"] for line in out.splitlines()]) == 2
    assert len(list((tmp_path / "pictures").iterdir())) == 2
    monkeypatch.setattr("sys.stdin", iter([]))
    assert run("explain", "-", "--model", converted)[0] == 2


def test_intervene_goes_on_from_the_last_explanation(toy, converted):
    assert run("intervene", "--zero", 2, "--model", converted)[0] == 2  # nothing explained yet
    assert run("explain", toy.image(3), "--model", converted, "--class", "blue things")[0] == 0
    code, out, err = run("intervene", "--zero", "2", "--model", converted, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["schema"] == "protonmf.intervention/1"
    assert [(e["label"], e["prototype"], e["factor"]) for e in found["edits"]] == [("blue things", 2, 0.0)]
    code, out, _ = run("explain", toy.image(3), "--model", converted, "--class", "blue things", "--json")
    own = {c["prototype"]: c for c in json.loads(out)["contributions"] if c["owner_label"] == "blue things"}
    lost = own[2]["contribution"]
    assert found["before"]["logit"] - found["after"]["logit"] == pytest.approx(lost, abs=1e-6)


def test_intervene_with_owner_scale_and_save(toy, converted, tmp_path):
    target = tmp_path / "edited.safetensors"
    words = ("--scale", "red things:1=0.5", "--zero", "2", "--class", "red things", "--model", converted)
    code, out, err = run("intervene", toy.image(0), *words, "-o", target, "--json")
    assert code == 0, err
    after = json.loads(out)["after"]
    code, out, _ = run("explain", toy.image(0), "--class", "red things", "--model", target, "--json")
    assert json.loads(out)["logit"] == pytest.approx(after["logit"], abs=1e-6)
    code, out, _ = run("inspect", target, "--json")
    assert len(json.loads(out)["card"]["edits"]) == 2


def test_intervene_over_data(toy, converted):
    words = ("intervene", "--scale", "1=-20", "--class", "red things", "--data", toy.data, "--model", converted)
    code, out, err = run(*words, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["images"] == 18
    assert found["flips"]
    assert {"image", "label", "before", "after"} == set(found["flips"][0])
    code, out, _ = run(*words)
    before, after = (found[when]["accuracy"] for when in ("before", "after"))
    lines = out.splitlines()
    assert lines[0] == "red things: prototype 1 x -20"
    assert lines[1] == f"all classes: {before:.1%} -> {after:.1%} of 18 images right, {len(found['flips'])} flipped"
    rows = {row["label"]: row for row in found["per_class"]}
    assert "red things" in rows
    for label, row in rows.items():
        assert f"  {label}: {row['before']:.1%} -> {row['after']:.1%} of {row['images']}" in lines
    assert sum(" -> " in line and ".png" in line for line in lines) == min(12, len(found["flips"]))


def test_an_edited_class_is_counted_even_if_nothing_changed(toy, converted):
    words = ("intervene", "--scale", "1=1.0001", "--class", "blue things", "--data", toy.data, "--model", converted)
    code, out, err = run(*words, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["flips"], found["before"]) == ([], found["after"])
    assert [(row["label"], row["images"]) for row in found["per_class"]] == [("blue things", 5)]


def test_several_classes_with_their_own_edits(toy, converted, tmp_path):
    words = ("intervene", toy.image(0), "--model", converted)
    both = ("--class", "red things", "--zero", 1, "--class", "blue things", "--zero", 2, "--scale", "red things:1=0.5")
    code, out, err = run(*words, *both[:-2], "--json", "-o", tmp_path / "both.safetensors")
    assert code == 0, err
    found = json.loads(out)
    assert [(e["label"], e["prototype"], e["factor"]) for e in found["edits"]] == [
        ("red things", 1, 0.0), ("blue things", 2, 0.0),
    ]  # fmt: skip
    assert found["after"]["label"] == "red things"
    after = {p["class_index"]: p["logit"] for p in found["after"]["predictions"]}
    before = {p["class_index"]: p["logit"] for p in found["before"]["predictions"]}
    for c, number in ((0, 1), (2, 2)):
        code, out, _ = run("explain", toy.image(0), "--class", c, "--model", converted, "--json")
        parts = {x["prototype"]: x["contribution"] for x in json.loads(out)["contributions"] if x["owner_index"] == c}
        assert before[c] - after[c] == pytest.approx(parts[number], abs=1e-5)
    assert {c: after[c] for c in (1, 3)} == {c: before[c] for c in (1, 3)}
    code, out, _ = run(*words, *both[:-2])
    assert "red things: zero prototype 1; blue things: zero prototype 2" in out
    (also,) = found["also"]
    assert (also["label"], also["before"], also["after"]) == ("blue things", before[2], after[2])
    assert f"logit of blue things {before[2]:.2f} {after[2]:.2f}" in " ".join(out.split())
    # the same number in each
    code, out, _ = run(*words, "--class", 0, "--zero", 1, "--class", 2, "--zero", 1, "--json")
    assert [(e["class_index"], e["owner_index"], e["prototype"]) for e in json.loads(out)["edits"]] == [
        (0, 0, 1),
        (2, 2, 1),
    ]
    # one --class counts for all edits, wherever it stands
    first = run(*words, "--zero", 1, "--class", "red things", "--zero", 2, "--json")
    second = run(*words, "--class", "red things", "--zero", "1,2", "--json")
    assert first[0] == second[0] == 0 and first[1] == second[1]


def test_a_near_class_is_one_row_that_an_edit_takes_out(toy, converted):
    words = ("explain", toy.image(0), "--class", "red things", "--model", converted)
    found = json.loads(run(*words, "--json")[1])
    (whole,) = (part for part in found["contributions"] if part["owner_label"] != "red things")
    assert (whole["prototype"], whole["stability"]) == (0, None)
    assert f"{whole['owner_label']} as a whole" in run(*words)[1]
    listed = run("inspect", converted, "--class", "red things")[1]
    assert (
        f"  {whole['owner_label']} as a whole: weight {whole['weight']:+.3f}" in listed and "prototype 0" not in listed
    )
    words = ("intervene", toy.image(0), "--class", "red things", "--model", converted)
    code, out, err = run(*words, "--zero", f"{whole['owner_label']}:0", "--json")
    assert code == 0, err
    before, after = (json.loads(out)[when]["logit"] for when in ("before", "after"))
    assert before - after == pytest.approx(whole["contribution"], abs=1e-4)
    assert f"zero {whole['owner_label']} as a whole" in run(*words, "--zero", f"{whole['owner_label']}:0")[1]


def test_everywhere_edits_every_class(toy, converted, tmp_path):
    words = ("intervene", toy.image(0), "--zero", "red things:1", "--class", "grey things", "--model", converted)
    target = tmp_path / "edited.safetensors"
    code, out, err = run(*words, "--everywhere", "--json", "-o", target)
    assert code == 0, err
    found = json.loads(out)
    (edit,) = found["edits"]
    assert (edit["everywhere"], edit["class_index"], edit["label"], edit["owner_label"]) == (
        True,
        None,
        None,
        "red things",
    )
    before, after = ({p["class_index"]: p["logit"] for p in found[when]["predictions"]} for when in ("before", "after"))
    assert all(before[c] != after[c] for c in range(4))
    code, out, _ = run("explain", toy.image(0), "--class", 0, "--model", target, "--json")
    assert json.loads(out)["logit"] == pytest.approx(after[0], abs=1e-5)
    code, out, _ = run(*words, "--everywhere")
    assert out.splitlines()[0] == "every class: zero prototype 1 of red things"


def test_a_class_that_nothing_speaks_for_any_more_is_said(toy, converted):
    words = ("intervene", toy.image(0), "--class", "red things", "--model", converted)
    assert "speaks for it any more" not in run(*words, "--zero", 1)[2]
    code, _, err = run(*words, "--zero", "1,2")
    assert code == 0
    assert "none of red things's own prototypes speaks for it any more (largest weight left: +0.00)" in " ".join(
        err.split()
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_edited_model_is_saved_before_anything_is_printed(toy, converted, tmp_path):
    target = tmp_path / "edited.safetensors"
    words = ["intervene", toy.image(0), "--class", 0, "--zero", 1, "--model", converted, "-o", target, "-q"]
    with Path("/dev/full").open("w") as full:
        assert run_into(full, *words)[0] == 3
    assert len(json.loads(run("inspect", target, "--json")[1])["card"]["edits"]) == 1


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("--zero", "9"), 3, "has no prototype 9; it has 1 to 2"),
        (("--zero", "0"), 2, "they start at 1"),
        (("--zero", "two"), 2, "is not a prototype number"),
        (("--scale", "1"), 2, "not of the form"),
        (("--scale", "1=x"), 2, "'x' is not a number"),
        (("--scale", "1=nan"), 3, "finite number"),
        (("--zero", "1", "--class", "purple things"), 3, "no class of the model is called 'purple things'"),
        (("--zero", "blue things:9"), 3, "blue things has no prototype 9"),
        (("--zero", "red things:0"), 3, "red things has no prototype 0; it has 1 to 2"),
        (("--zero", "1,1"), 3, "prototype 1 of red things is edited twice"),
        (("--zero", "1", "--scale", "red things:1=0.5"), 3, "prototype 1 of red things is edited twice"),
        (("--zero", "1", "--zero", "1", "--everywhere"), 3, "prototype 1 of red things is edited twice"),
        (
            ("--zero", "1", "--class", "red things", "--class", "blue things"),
            2,
            "stands before the first of several --class",
        ),
        (
            ("--class", "red things", "--zero", "1", "--class", "blue things"),
            2,
            "--class blue things has no edit behind it",
        ),
        ((), 2, "nothing to do"),
    ],
)
def test_interventions_that_cannot_be(toy, converted, words, exit_code, sentence):
    image_class = () if "--class" in words else ("--class", "red things")
    code, out, err = run("intervene", toy.image(0), *words, *image_class, "--model", converted)
    assert (code, out) == (exit_code, "")
    assert sentence in err
    assert err.count("\n") <= 2


def test_what_is_gone_cannot_be_edited_again(toy, converted, tmp_path):
    gone = tmp_path / "gone.safetensors"
    words = ("intervene", toy.image(0), "--class", "red things")
    assert run(*words, "--zero", 1, "--model", converted, "-o", gone)[0] == 0
    code, out, err = run(*words, "--scale", "1=2", "--model", gone)
    assert (code, out) == (3, "")
    assert "prototype 1 of red things has the weight 0 in class red things: there is nothing left to edit" in err


def test_evaluate_json_and_gates(toy, converted, tmp_path):
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, "--json")
    found = json.loads(out)
    assert code == 0, err
    assert (found["schema"], found["images"]) == ("protonmf.evaluation/1", 18)  # of val
    assert found["agreement"]["prototype_model"] == 1
    assert found["accuracy"]["prototype_model"] == found["accuracy"]["black_box"]
    assert found["exactness"]["max_abs_logit_difference"] <= 1e-4
    assert {"accuracy", "agreement"} == set(found["restricted"])
    spoiled = tmp_path / "spoiled.safetensors"
    run("intervene", toy.image(0), "--scale", "1=-20", "--class", "red things", "--model", converted, "-o", spoiled)
    code, out, err = run(
        "evaluate", "--data", toy.data, "--model", spoiled, "--min-accuracy", 0.999, "--max-residual-share", "-9"
    )
    assert code == 5
    assert "prototype model" in out
    assert "below --min-accuracy 0.999" in err
    assert "above --max-residual-share" in err
    assert run("evaluate", "--data", toy.data, "--model", converted, "--min-agreement", 1)[0] == 0


def test_inspect(converted, monkeypatch):
    monkeypatch.setenv("PROTONMF_MODEL", str(converted))
    code, out, _ = run("inspect")
    assert code == 0
    assert "8 with 40 training patches from 30 images" in out
    code, out, _ = run("inspect", "--json", "--class", "blue things")
    found = json.loads(out)
    assert found["schema"] == "protonmf.inspection/1"
    own = [row for row in found["per_class"][0]["prototypes"] if row["owner_label"] == "blue things"]
    assert [row["prototype"] for row in own] == [1, 2]
    assert all(row["usual"][0] <= 1 <= row["usual"][1] for row in own)
    assert found["format"] == 3
    text = " ".join(run("inspect")[1].split())
    assert "evidence amounts, no ridge, condition at most" in text
    assert "cancellation" in text
    assert "projections" not in text


def test_doctor():
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["schema"] == "protonmf.doctor/1"
    assert found["versions"]["torch"] != "missing"
    assert "cpu" in found["devices"]


def test_doctor_names_a_bad_pair_of_torch_and_torchvision(monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.extension, "_has_ops", lambda: False)
    _, out, _ = run("doctor")
    assert "torchvision::nms does not exist" in out
    assert "pip install" in out


BAD_CONVERSIONS = [
    (("resnet999", "--data", "DATA"), 2, "Did you mean"),
    (("resnet18.nobody", "--data", "DATA"), 2, "timm has no weights 'resnet18.nobody' for resnet18"),
    (("resnet18", "--data", "DATA", "--offline"), 3, "are not on this machine and cannot be downloaded"),
    (("local-dir:/nowhere", "--data", "DATA"), 3, "the model folder /nowhere does not exist"),
    (("TOY", "--data", "/nowhere"), 3, "the data /nowhere does not exist"),
    (("TOY", "--data", "EMPTY"), 3, "holds no class folder with images"),
    (("TOY", "--data", "STRANGE"), 3, "1 of 1 classes"),
    (("TOY", "--data", "DATA", "-p", "500"), 3, "at most 96 are possible"),
    (("TOY", "--data", "DATA", "-p", "0"), 2, ""),
    (("TOY", "--data", "DATA", "--rows", "all-layers"), 4, "could not be written as a sum over rows"),
    (("TOY", "--data", "DATA", "--weights", "GARBAGE"), 3, "cannot be read"),
    (("test_resnet", "--data", "DATA", "--weights", "OTHER"), 3, "does not fit test_resnet"),
    (("TOY", "--data", "DATA", "--model-arg", "output_stride"), 2, "not of the form key=value"),
    (("TOY", "--data", "DATA", "--model-arg", "no_such=1"), 2, "cannot be built with"),
    (("TOY", "--data", "DATA", "--device", "cuda:99"), 2, "not available"),
    (("TOY", "--data", "DATA", "--device", "toaster"), 2, "is not a device"),
    (("TOY", "--data", "DATA", "--dtype", "float16"), 2, "float32, float64"),
    (("NANS", "--data", "DATA"), 3, "hold NaN"),
    (("HEADLESS", "--data", "DATA"), 4, "has no classifier"),
]


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"), BAD_CONVERSIONS, ids=[" ".join(w) for w, _, _ in BAD_CONVERSIONS]
)
def test_conversions_that_cannot_be(toy, tmp_path, words, exit_code, sentence):
    import safetensors.torch
    import torch

    (tmp_path / "empty").mkdir()
    (tmp_path / "strange" / "zebra").mkdir(parents=True)
    shutil.copy(toy.image(), tmp_path / "strange" / "zebra")
    (tmp_path / "garbage.safetensors").write_text("garbage")
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    for name, change in (
        ("nans", lambda key, t: t * torch.nan if key == "fc.weight" else t),
        ("headless", lambda key, t: None if key.startswith("fc.") else t),
    ):
        shutil.copytree(toy.network, tmp_path / name)
        tensors = safetensors.torch.load_file(tmp_path / name / "model.safetensors")
        kept = {key: change(key, t) for key, t in tensors.items() if change(key, t) is not None}
        safetensors.torch.save_file(kept, tmp_path / name / "model.safetensors")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    places = {
        "TOY": toy.name,
        "DATA": toy.data,
        "EMPTY": tmp_path / "empty",
        "STRANGE": tmp_path / "strange",
        "GARBAGE": tmp_path / "garbage.safetensors",
        "OTHER": tmp_path / "other.safetensors",
        "NANS": f"local-dir:{tmp_path / 'nans'}",
        "HEADLESS": f"local-dir:{tmp_path / 'headless'}",
    }
    target = tmp_path / "out" / "m.safetensors"
    target.parent.mkdir()
    code, out, err = run("convert", *(places.get(word, word) for word in words), "-o", target)
    assert (code, out) == (exit_code, "")
    assert sentence in err
    assert not list(target.parent.iterdir()), "something was left behind"


def test_unreadable_images_are_skipped_named_and_counted(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    (data / "train" / "red things" / "broken.jpg").write_text("no image")
    target = tmp_path / "m.safetensors"
    code, _, err = run("convert", toy.name, "--data", data, "-o", target, "-p", 2)
    assert code == 5
    assert "red things/broken.jpg is not an image" in err
    assert "--max-skipped 0.04" in err
    assert not target.exists()
    words = ("convert", toy.name, "--data", data, "-o", target, "-p", 2, "--json")
    assert run(*words, "--max-skipped", 0.032)[0] == 5  # one of 31 is 0.0323
    code, out, err = run(*words, "--max-skipped", 0.033)
    assert code == 0, err
    assert "4 of 4 classes were finished before" in err
    assert [s["path"] for s in json.loads(out)["skipped"]] == ["red things/broken.jpg"]


LATE = """
import sys, time
from protonmf_cli.cli.app import main
from protonmf_cli.files.work.finished_classes import Shards
put, done = Shards.__setitem__, []
def late(self, c, part):
    put(self, c, part)
    done.append(c)
    if len(done) == {classes}:
        time.sleep(120)
Shards.__setitem__ = late
sys.exit(main(sys.argv[1:]))
"""
"""A command that falls asleep once so many classes are finished."""


def wait_for_classes(folder, count):
    deadline = time.monotonic() + 120
    while len(list(folder.glob(".m.safetensors.work/*/class-*.safetensors"))) < count and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_started_again_gives_the_same_bytes(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    words = ["convert", toy.name, "--data", toy.data, "-o", target, "-p", 2, "--near", 1]
    process = start(*words, "-q", program=LATE.format(classes=2))
    wait_for_classes(tmp_path, 2)
    code, _, err = run(*words)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert code == 3
    assert "another conversion into" in err
    assert not target.exists()
    assert len(list(tmp_path.glob(".m.safetensors.work/*/class-*.safetensors"))) == 2
    code, _, err = run(*words)
    assert code == 0, err
    assert "2 of 4 classes were finished before" in err
    assert target.read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".m*"))


@pytest.mark.slow
def test_interrupted(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    words = ("convert", toy.name, "--data", toy.data, "-o", target)
    process = start(*words, program=LATE.format(classes=1), stderr=subprocess.PIPE)
    wait_for_classes(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; the same command goes on where it stopped"
    assert "Traceback" not in err
    assert not target.exists()


def test_terminated(toy, tmp_path, monkeypatch):
    from protonmf_cli.files.work.finished_classes import Shards

    target = tmp_path / "m.safetensors"
    monkeypatch.setattr(Shards, "__setitem__", lambda *_: signal.raise_signal(signal.SIGTERM))
    code, out, _ = run("convert", toy.name, "--data", toy.data, "-o", target)
    assert (code, out) == (143, "")
    assert not target.exists()


def test_nobody_reads_the_output(converted):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        assert run_into(gone, "inspect", converted, "--json") == (0, "")


@pytest.mark.slow
def test_a_closed_pipe_ends_quietly(converted):
    line = f"{sys.executable} -m protonmf_cli inspect {converted} --json | head -1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.slow
def test_demo(tmp_path):
    code, out, err = run("demo", tmp_path / "demo", "-q")
    assert code == 0, err
    assert float(out.split("digits: ")[1].split("%")[0]) >= 95
    assert (tmp_path / "demo" / "explanation.png").is_file()
    assert "<title>network</title>" in (tmp_path / "demo" / "report.html").read_text()
    assert run("demo", tmp_path / "demo", "-q")[0] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("words", [(), ("--json",)])
def test_an_output_that_is_full_is_one_sentence(converted, words):
    with Path("/dev/full").open("w") as full:
        code, err = run_into(full, "inspect", converted, *words)
    assert code == 3
    assert err == "error: the output could not be written or read: No space left on device.\n"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_process_whose_output_is_full_says_nothing_more(converted):
    with Path("/dev/full").open("w") as full:
        process = start("inspect", converted, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3
    assert err == "error: the output could not be written or read: No space left on device.\n"


def test_a_picture_that_its_camera_turned_is_noted_once(toy, converted, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for n in range(2):
        Image.open(toy.image(n)).convert("RGB").save(tmp_path / f"{n}.jpg", exif=exif)
    code, _, err = run("explain", tmp_path / "0.jpg", tmp_path / "1.jpg", "--model", converted)
    assert code == 0, err
    assert err.count("is stored turned (EXIF)") == 1 and "0.jpg is stored" in err
    assert "is stored turned" not in run("explain", toy.image(0), "--model", converted)[2]
    turning = tmp_path / "turning.safetensors"
    words = ("--data", toy.data, "-p", 1, "--no-stability", "--exif-transpose", "-o", turning, "-q")
    assert run("convert", toy.name, *words)[0] == 0
    assert "is stored turned" not in run("explain", tmp_path / "0.jpg", "--model", turning)[2]
