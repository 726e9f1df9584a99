"""Options of model files that another version wrote: read as far as they are known, never a reason to fail."""

import json
from dataclasses import asdict, replace

import pytest

import protonmf_cli
from protonmf_cli.jobs.stored_options import options_of
from protonmf_cli.models.card import Card
from protonmf_cli.models.card.stored import read_options
from protonmf_cli.options import ConversionOptions, FewShotOptions, NmfOptions, ProtoPNetOptions
from protonmf_cli.pipelines.progress import Silent
from toys import run

CHANGES = {
    "an unknown option": (lambda stored: stored | {"polish": 3}, "polish"),
    "an unknown option of the factorisation": (
        lambda stored: stored | {"nmf": stored["nmf"] | {"momentum": 0.9}},
        "nmf.momentum",
    ),
    "an unknown value": (lambda stored: stored | {"nmf": stored["nmf"] | {"init": "svd"}}, "nmf.init=svd"),
    "no group": (lambda stored: stored | {"nmf": None}, "nmf=None"),
    "a missing option": (lambda stored: {name: value for name, value in stored.items() if name != "near"}, None),
    "a missing option of the factorisation": (
        lambda stored: stored | {"nmf": {name: value for name, value in stored["nmf"].items() if name != "balance"}},
        None,
    ),
    "nothing stored": (lambda stored: {}, None),
}


class Heard(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(params=CHANGES, ids=lambda name: name.replace(" ", "_"))
def changed(request, converted, tmp_path):
    """A model file whose card keeps other options, and what a note must name."""
    change, name = CHANGES[request.param]
    loaded = protonmf_cli.load(converted)
    stored = loaded.model.card.as_json()
    card = Card.from_json(stored | {"options": change(stored["options"])})
    file = tmp_path / "other.safetensors"
    replace(loaded, model=replace(loaded.model, card=card)).save(file)
    return file, name


@pytest.mark.parametrize("words", [("inspect",), ("inspect", "--json"), ("inspect", "--class", "red things")])
def test_inspect_names_what_it_does_not_know(changed, words):
    file, name = changed
    code, out, err = run(*words, "--model", file)
    assert code == 0, err
    assert ("options that this version does not know" in err) == (name is not None)
    assert (name or "") in err
    assert not run(*words, "--model", file, "-q")[2]
    if "--json" in words:
        found = json.loads(out)["card"]["options"]
        assert found == protonmf_cli.load(file).model.card.stored_options, "as it is stored"


def test_a_table_that_converts_again_ignores_what_it_does_not_know(toy, changed):
    file, name = changed
    words = ("evaluate", "--data", toy.data, "--table", "stability", "--json", "--model", file)
    code, out, err = run(*words)
    assert code == 0, err
    assert json.loads(out)["tables"]["stability"]["rows"][0]["prototypes"] == 8
    assert err.count("options that this version does not know") == (name is not None)
    assert (name or "") in err


@pytest.fixture(scope="module")
def later(converted, tmp_path_factory):
    """A model file as a later version might write it: more options, more facts of every group, more on the card."""
    loaded = protonmf_cli.load(converted)
    stored = loaded.model.card.as_json()
    groups = ("readout", "data", "measured", "options")
    card = Card.from_json(
        stored | {name: stored[name] | {"polish": [1, {"a": None}]} for name in groups} | {"mood": "good"}
    )
    file = tmp_path_factory.mktemp("later") / "later.safetensors"
    replace(loaded, model=replace(loaded.model, card=card)).save(file)
    return file


@pytest.mark.parametrize("command", ["explain", "intervene", "report", "export", "evaluate", "inspect"])
def test_a_later_file_does_what_ours_does(toy, converted, later, tmp_path, command):
    def of(file):
        words = {
            "explain": (toy.image(0), "--json"),
            "intervene": (toy.image(0), "--class", "red things", "--zero", "1", "-o", tmp_path / "e.safetensors", "--json"),
            "report": ("--data", toy.data, "-o", tmp_path / "page.html", "--json"),
            "export": ("-o", tmp_path / "timm", "--json"),
            "evaluate": ("--data", toy.data, "--json"),
            "inspect": ("--json",),
        }[command]  # fmt: skip
        code, out, err = run(
            command, *words, "--model", file, *(() if command in ("explain", "evaluate", "inspect") else ("--force",))
        )
        assert code == 0, err
        assert "Error" not in err
        return json.loads(out.replace(str(file), "FILE"))

    later_said, ours_said = of(later), of(converted)
    if command == "report":  # its options are listed on it
        assert later_said.pop("bytes") >= ours_said.pop("bytes")
    if command == "inspect":
        assert later_said["card"].pop("mood") == "good"
        assert all(later_said["card"][name].pop("polish") for name in ("readout", "data", "measured", "options"))
        assert later_said.pop("bytes") > ours_said.pop("bytes")
    assert later_said == ours_said


def test_what_is_known_is_kept(converted):
    model = protonmf_cli.load(converted).model
    heard = Heard()
    assert options_of(model, heard) == ConversionOptions(prototypes=2, near=1)
    stored = model.card.as_json()
    card = Card.from_json(stored | {"options": stored["options"] | {"polish": 3, "seed": 7}})
    other = replace(model, card=card)
    assert options_of(other, heard) == ConversionOptions(prototypes=2, near=1, seed=7)
    (note,) = heard.notes
    assert note.endswith("they are ignored: polish")


@pytest.mark.parametrize("kind", [ConversionOptions, NmfOptions, ProtoPNetOptions, FewShotOptions])
def test_options_of_this_version_are_read_back(kind):
    stored = json.loads(json.dumps(asdict(kind())))
    found = read_options(kind, stored)
    assert (found.options, found.unknown) == (kind(), ())


@pytest.mark.parametrize("value", ["three", 2.5, True, [3]])
def test_a_value_of_another_type_is_not_taken(value):
    found = read_options(ConversionOptions, {"near": value, "prototypes": None})
    assert (found.options.near, found.options.prototypes) == (ConversionOptions().near, None)
    assert found.unknown == (f"near={value}",)
