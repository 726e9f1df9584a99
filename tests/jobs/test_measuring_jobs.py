"""evaluate, inspect, export and doctor from Python: the same figures as on the command line, and no side effects."""

import json

import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import GateError, InputError, UsageError
from protonmf_cli.jobs.doctor import diagnose
from protonmf_cli.jobs.evaluation import evaluate
from protonmf_cli.jobs.export import export
from protonmf_cli.jobs.gates import check_gates
from protonmf_cli.jobs.inspection import inspect
from protonmf_cli.jobs.network_inspection import inspect_network
from protonmf_cli.options import GateOptions, ImageWords, Machine, NetworkWords, Output, TableOptions
from protonmf_cli.output.records.evaluation import evaluation_json
from protonmf_cli.output.records.inspection import inspection_json
from toys import run


def test_evaluate_gives_what_the_command_says(toy, converted):
    words = ("evaluate", "--data", toy.data, "--model", converted, "--table", "oracle", "--json")
    said = json.loads(run(*words)[1])
    for model in (str(converted), protonmf_cli.load(converted)):
        found = evaluate(model, str(toy.data), tables=["oracle"])
        assert json.loads(json.dumps(evaluation_json(found))) == said
    assert list(found.tables) == ["oracle"]
    assert (found.classes, found.is_partial, found.skipped) == (4, False, ())


def test_a_gate_that_is_not_met_is_part_of_the_result(toy, converted, tmp_path, capsys):
    gates = GateOptions(min_agreement=1.0, max_residual_share=-5)
    report = tmp_path / "gates.xml"
    found = evaluate(converted, toy.data, gates=gates, junit=str(report))
    assert {gate.name: gate.met for gate in found.gates} == {
        "min-agreement": True, "max-residual-share": False, "max-skipped": True,
    }  # fmt: skip
    with pytest.raises(GateError, match="residual share"):
        check_gates(found.gates)
    with pytest.raises(InputError, match="exists already"):
        evaluate(converted, toy.data, gates=gates, junit=report)
    evaluate(converted, toy.data, gates=gates, junit=Output(path=report, force=True))
    assert capsys.readouterr().out == ""


def test_tables_and_their_figures(toy, converted, tmp_path):
    options = TableOptions(counts=(1,), limit=4)
    found = evaluate(converted, toy.data, tables=("pictures", "cancellation"), options=options, figures=tmp_path / "f")
    assert list(found.tables) == ["pictures", "cancellation"]
    drawn = {path.stem for path in (tmp_path / "f").iterdir()}
    assert drawn == {"cancellation", "prototypes_by_count", "augmented_maps", "reasoning"}
    with pytest.raises(UsageError, match="not one of parts"):
        evaluate(converted, toy.data, tables=["everything"])


@pytest.mark.parametrize("name", ["pictures", "rival"])
def test_what_a_table_lacks_is_said_before_the_images_are_read(toy, converted, tmp_path, name):
    report = tmp_path / "gates.xml"
    words = ("--model", converted, "--table", name, "--junit-xml", report)
    code, out, err = run("evaluate", "--data", toy.data, *words)
    assert (code, out) == (2, "")
    assert f"--table {name}" in err
    assert not report.exists()


def test_threads_are_given_back(toy, converted):
    torch.set_num_threads(2)
    evaluate(converted, ImageWords(data=toy.data), machine=Machine(threads=1))
    inspect_network(NetworkWords(name="test_vit", pretrained=False), machine=Machine(threads=1))
    assert torch.get_num_threads() == 2


def test_inspect(converted, tmp_path):
    whole, one = inspect(converted), inspect(str(converted), "red things", figure=tmp_path / "red.png")
    assert (whole.class_index, one.class_index, one.embedded) == (None, 0, True)
    assert len(inspection_json(whole)["per_class"]) == 4
    assert inspection_json(one)["per_class"] == inspection_json(whole)["per_class"][:1]
    assert (tmp_path / "red.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InputError, match="exists already"):
        inspect(converted, "red things", figure=tmp_path / "red.png")


def test_a_network_by_name(toy):
    found = inspect_network(toy.name)
    assert (found.readout.kind, found.pretrained) == ("average", True)
    assert found.weights == sum(tensor.numel() for tensor in found.backbone.network.parameters())
    with pytest.raises(UsageError, match="exclude each other"):
        inspect_network(NetworkWords(name="test_vit", weights=toy.folder, pretrained=False))


def test_export_leaves_a_loaded_model_as_it_is(toy, converted, tmp_path):
    loaded = protonmf_cli.load(converted, machine=Machine(dtype="float64"))
    edited = loaded.scale("red things", {1: -3.0})
    before = edited.backbone.read(edited.crop(toy.image(0))[None]).logits
    from_memory = export(edited, str(tmp_path / "memory"))
    after = edited.backbone.read(edited.crop(toy.image(0))[None]).logits
    assert torch.equal(before, after)
    assert before.dtype == torch.float64
    edited.save(tmp_path / "edited.safetensors")
    from_file = export(tmp_path / "edited.safetensors", tmp_path / "file")
    assert (from_memory.edits, from_file.edits) == (1, 1)
    written = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("memory", "file")]
    assert written[0] == written[1]


def test_diagnose():
    found = diagnose()
    assert found.packages.devices[0] == "cpu"
    assert found.packages.timm == found.versions["timm"]
