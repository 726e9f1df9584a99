"""Options of convert and evaluate for batch jobs and studies, end to end on the toy."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from protonmf_cli.files.store import load_model
from protonmf_cli.jobs.gates import Gate
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.options import RECIPES
from toys import convert, run


def options_in(path):
    code, out, err = run("inspect", path, "--json")
    assert code == 0, err
    return json.loads(out)


def test_one_switch_is_the_papers_pipeline(toy, tmp_path):
    target = tmp_path / "paper.safetensors"
    code, out, err = run("convert", toy.name, "--data", toy.data, "-o", target, "-p", 2, "--recipe", "paper", "--json")
    assert code == 0, err
    found = options_in(target)["card"]["options"]
    paper = RECIPES["paper"]
    assert found["nmf"] == {
        "init": "paper", "solver": "mu", "inner_updates": 1, "balance": 0.0, "tolerance": 1e-4, "max_iterations": 200,
    }  # fmt: skip
    assert (found["reconstruction"], found["near"], found["augment"]) == ("paper", 0, "paper")
    assert paper.nmf.init == "paper"
    rows = options_in(target)["per_class"]
    assert all(p["owner_index"] == c["class_index"] for c in rows for p in c["prototypes"])
    assert all(p["usual"] is None for c in rows for p in c["prototypes"])
    assert json.loads(out)["augmentation"]["kind"] == "paper"


def test_single_options_count_beside_a_recipe(toy, tmp_path):
    target = convert(
        toy, tmp_path / "m.safetensors", "--near", 0, "--recipe", "paper", "--init", "abs", "--augment", "none"
    )
    found = options_in(target)
    assert (found["card"]["options"]["nmf"]["init"], found["augmented"]) == ("abs", False)


def test_prototypes_of_near_classes_say_whose_they_are(converted, toy):
    rows = options_in(converted)["per_class"]
    others = [(c, p) for c in rows for p in c["prototypes"] if p["owner_index"] != c["class_index"]]
    assert len(others) == 4  # one class each, as a whole
    class_of, part = others[0]
    words = ("--class", class_of["label"], "--model", converted)
    code, out, _ = run("explain", toy.image(0), *words)
    assert code == 0
    assert f"{part['owner_label']} as a whole" in out
    code, out, err = run(
        "intervene", toy.image(0), "--zero", f"{part['owner_label']}:{part['prototype']}", *words, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["edits"][0]["owner_label"] == part["owner_label"]


@pytest.mark.parametrize(("near", "connections"), [(0, 2), (2, 4), (8, 5)])
def test_as_many_near_classes_as_there_are(toy, tmp_path, near, connections):
    target = convert(toy, tmp_path / "m.safetensors", "--near", near, "--no-stability")
    found = options_in(target)
    assert found["card"]["options"]["near"] == near
    assert [len(c["prototypes"]) for c in found["per_class"]] == [connections] * 4


def test_a_number_for_each_class_comes_with_its_curve(toy, tmp_path):
    target = tmp_path / "auto.safetensors"
    words = ("--data", toy.data, "-o", target, "-p", "auto", "--max-prototypes", 4, "--json")
    code, out, err = run("convert", toy.name, *words)
    assert code == 0, err
    found = options_in(target)
    curves = found["card"]["measured"]["curves"]
    assert set(curves) == {"0", "1", "2", "3"}
    for c, curve in curves.items():
        own = sum(p["owner_index"] == int(c) for p in found["per_class"][int(c)]["prototypes"])
        assert 1 <= own <= 4
        assert [point["prototypes"] for point in curve] == list(range(1, len(curve) + 1))
        assert own <= len(curve)
        errors = [point["feature_relative_error"] for point in curve]
        assert errors == sorted(errors, reverse=True)
        assert all(0 <= point["residual_share"] <= 1 for point in curve)
    code, _, err = run("inspect", target, "--png", tmp_path / "curve.png")
    assert code == 0, err
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_fewer_images_than_prototypes_is_said(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    code, _, err = run("convert", toy.name, "--data", toy.data, "-o", target, "-p", 7)
    assert code == 0, err
    assert "1 classes have fewer images than prototypes (7): red things" in err


def test_curves_that_there_are_not(converted, tmp_path):
    code, _, err = run("inspect", converted, "--png", tmp_path / "c.png")
    assert code == 3
    assert "Convert with -p auto" in err


def test_cached_features_give_the_same_bytes_without_the_network(toy, converted, tmp_path, monkeypatch):
    cache = tmp_path / "features"
    first = convert(toy, tmp_path / "first.safetensors", "--cache-features", cache)
    assert first.read_bytes() == converted.read_bytes()

    def never(*_):
        raise AssertionError("the network ran")

    monkeypatch.setattr(Backbone, "read", never)
    second = convert(toy, tmp_path / "second.safetensors", "--cache-features", cache)
    assert second.read_bytes() == converted.read_bytes()
    convert(
        toy,
        tmp_path / "third.safetensors",
        "--cache-features",
        cache,
        "-p",
        3,
        "--reconstruction",
        "paper",
        "--near",
        0,
    )


def test_evaluate_reads_the_same_cache(toy, converted, tmp_path):
    cache = tmp_path / "features"
    convert(toy, tmp_path / "first.safetensors", "--cache-features", cache)
    words = ("--data", toy.data, "--model", converted, "--table", "stability", "--cache-features", cache)
    code, _, err = run("evaluate", *words)
    assert code == 0, err
    assert len(list(cache.iterdir())) == 1


def test_a_cut_cache_is_read_again(toy, converted, tmp_path):
    cache = tmp_path / "features"
    convert(toy, tmp_path / "first.safetensors", "--cache-features", cache)
    for path in cache.glob("*/class-000001.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    second = convert(toy, tmp_path / "second.safetensors", "--cache-features", cache)
    assert second.read_bytes() == converted.read_bytes()


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("--near", -1), 2, "Invalid value for '--near'"),
        (("--near", 2, "--reconstruction", "paper"), 2, "--near 2 needs --reconstruction amounts"),
        (("--near", 2, "--recipe", "paper"), 2, "--near 2 needs --reconstruction amounts"),
        (("--near-as", "parts", "--recipe", "paper"), 2, "--near-as parts needs --reconstruction amounts"),
        (("--borrow", 2), 2, "No such option: --borrow"),
        (("--reconstruction", "functional"), 2, "is not one of"),
        (("--augment", "dynamic"), 2, "is not one of"),
        (("-p", "many"), 2, "neither a number from 1 nor auto"),
        (("-p", "0"), 2, "neither a number from 1 nor auto"),
        (("--augment", "twice"), 2, "is not one of"),
    ],
)
def test_conversions_that_cannot_be(toy, tmp_path, words, exit_code, sentence):
    target = tmp_path / "m.safetensors"
    code, out, err = run("convert", toy.name, "--data", toy.data, "-o", target, *words)
    assert (code, out) == (exit_code, "")
    assert sentence in " ".join(err.replace("│", " ").split())
    assert not list(tmp_path.glob("*.safetensors"))


def test_gates_and_their_junit_report(toy, converted, tmp_path):
    report = tmp_path / "gates.xml"
    words = (
        "evaluate",
        "--data",
        toy.data,
        "--model",
        converted,
        "--junit-xml",
        report,
        "--min-agreement",
        1,
        "--json",
    )
    code, out, err = run(*words, "--min-accuracy", 0.0, "--max-residual-share", 1)
    assert code == 0, err
    suite = ET.parse(report).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("4", "0")
    code, _, err = run(*words, "--max-residual-share", -5)
    assert code == 3
    assert "--force" in err
    code, out, err = run(*words, "--max-residual-share", -5, "--force")
    assert code == 5
    assert "residual share" in err
    assert "is above --max-residual-share -5" in err
    assert json.loads(out)["schema"] == "protonmf.evaluation/1"
    cases = {case.get("name"): case for case in ET.parse(report).getroot().iter("testcase")}
    assert cases["max-residual-share"].find("failure") is not None
    assert cases["min-agreement"].find("failure") is None


@pytest.mark.parametrize(
    ("name", "value", "met"),
    [
        ("min-accuracy", 0.6, True),
        ("min-accuracy", 0.5, True),
        ("min-accuracy", 0.4, False),
        ("max-skipped", 0.4, True),
        ("max-skipped", 0.5, True),
        ("max-skipped", 0.6, False),
        ("max-skipped", None, False),
    ],
)
def test_on_which_side_of_a_threshold_a_value_must_be(name, value, met):
    assert Gate(name=name, limit=0.5, value=value).met == met


def test_a_threshold_that_counts_names_what_it_counts():
    names = tuple(f"seven\x1b {n}" for n in range(1, 11))
    gate = Gate(name="max-shortcuts", limit=2, value=10, counted=names)
    first = ", ".join(f"seven\\033 {n}" for n in range(1, 9))
    said = f"shortcuts 10 ({first} and 2 more) is above"
    assert gate.said == f"{said} --max-shortcuts 2"
    assert "seven" not in replace(gate, limit=10).said


@pytest.mark.parametrize(
    "words",
    [
        ("--min-accuracy", 1.5),
        ("--min-agreement", -1),
        ("--max-skipped", 2),
        ("--max-residual-share", 3),
        ("--min-accuracy", "nan"),
    ],
)
def test_gates_out_of_range(toy, converted, words):
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, *words)
    assert (code, out) == (2, "")
    assert "Invalid value for" in err or "is not a number" in err


@pytest.mark.slow
def test_every_table_on_one_line(toy, converted, tmp_path):
    tables = [
        "parts",
        "stability",
        "cancellation",
        "oracle",
        "augmentation",
        "faithfulness",
        "part-quality",
        "pictures",
    ]
    words = [word for name in tables for word in ("--table", name)]
    words += [
        "--figures",
        tmp_path / "figures",
        "--counts",
        "1,2",
        "--images",
        4,
        "--cache-features",
        tmp_path / "cache",
    ]
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, "--json", *words)
    assert code == 0, err
    found = json.loads(out)["tables"]
    made = {
        "parts",
        "stability",
        "explanation_stability",
        "cancellation",
        "oracle",
        "augmentation",
        "faithfulness",
        "prototype_deletion",
        "part_quality",
        "pictures",
    }
    assert found.keys() == made
    assert all(table["rows"] and table["title"] for table in found.values())
    assert [row["named"] for row in found["parts"]["rows"]][:2] == ["1", "2"]
    assert [row["prototypes"] for row in found["parts"]["rows"]] == [1, 2, 2, 2, 2]
    drawn = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert drawn == (made - {"pictures"}) | {"prototypes_by_count", "augmented_maps", "reasoning"}
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, "--table", "oracle")
    assert code == 0, err
    assert "edited where wrong" in out


def test_controls_have_as_many_prototypes_as_a_model_that_chose_their_number(toy, tmp_path):
    file = tmp_path / "auto.safetensors"
    words = ("-p", "auto", "--max-prototypes", 2, "--no-stability", "--device", "cpu", "-q", "-o", file)
    code, _, err = run("convert", toy.name, "--data", toy.data, *words)
    assert code == 0, err
    words = ("--table", "parts", "--counts", 1, "--json")
    code, out, err = run("evaluate", "--data", toy.data, "--model", file, *words)
    assert code == 0, err
    model = load_model(file)[0]
    mean = round(len(model.parts) / 4)
    assert [row["prototypes"] for row in json.loads(out)["tables"]["parts"]["rows"]][1:] == [mean] * 3


@pytest.mark.parametrize(
    ("words", "exit_code", "sentence"),
    [
        (("--table", "all"), 2, "--table all is not one of parts, stability"),
        (("--table", "pictures"), 2, "give a folder for them with --figures"),
        (("--table", "rival"), 2, "give its file with --protopnet"),
        (("--table", "rival", "--protopnet", "MODEL"), 3, "holds a protonmf model, but --protopnet needs a ProtoPNet"),
        (("--table", "part-quality", "--parts", "DATA"), 3, "cannot be read"),
        (("--counts", "1,x"), 2, "is not a list of numbers"),
        (("--figures", "MODEL"), 3, "cannot be made"),
    ],
)
def test_tables_that_cannot_be(toy, converted, words, exit_code, sentence):
    places = {"MODEL": converted, "DATA": toy.data}
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, *(places.get(w, w) for w in words))
    assert (code, out) == (exit_code, "")
    assert sentence in err


def test_annotations_of_other_images_are_refused(toy, converted, tmp_path):
    for name, text in (("images.txt", "1 a/b.jpg\n"), ("parts.txt", "1 beak\n"), ("part_locs.txt", "1 1 3 4 1\n")):
        (tmp_path / name).write_text(text)
    words = ("--table", "part-quality", "--parts", tmp_path)
    code, _, err = run("evaluate", "--data", toy.data, "--model", converted, *words)
    assert code == 3
    assert "is in the part annotations" in err
