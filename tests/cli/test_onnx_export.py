"""A model as one graph: its numbers are those that `explain` shows, for any number of images, edits included."""

import json
import sys

import numpy as np
import pytest
import torch

import protonmf_cli
from protonmf_cli.errors import InputError
from protonmf_cli.files.onnx_graph import check_size, read_metadata, run_graph
from protonmf_cli.jobs import export as job
from protonmf_cli.pipelines.exporting import tracing
from toys import LABELS, run, slow

pytest.importorskip("onnxruntime", reason="ONNX is an extra")


@pytest.fixture(scope="module")
def graph(toy, converted, tmp_path_factory):
    """An edited toy, its graph, and what the command said."""
    folder = tmp_path_factory.mktemp("onnx")
    edited, target = folder / "edited.safetensors", folder / "edited.onnx"
    words = ("--class", "red things", "--model", converted, "--zero", "2", "--scale", "1=-3")
    assert run("intervene", toy.image(0), *words, "-o", edited)[0] == 0
    code, out, err = run("export", edited, "--format", "onnx", "-o", target, "--json")
    assert code == 0, err
    return edited, target, json.loads(out)


def outputs_of(target, loaded, images):
    crops = torch.stack([loaded.crop(image) for image in images])
    return run_graph(target, [loaded.backbone.normalise(crops).contiguous()])


def check_shows_what_explain_shows(target, loaded, images):
    """Logits, own amounts and maps of every class, image by image."""
    found, own = outputs_of(target, loaded, images), 0
    prototypes = read_metadata(target)["prototypes"]
    for n, image in enumerate(images):
        for c in range(len(loaded.model.bias)):
            explanation = loaded.explain(image, c)
            assert float(found["logits"][n, c]) == pytest.approx(explanation.logit, abs=2e-4)
            for part in explanation.contributions:
                if part.owner_index != c:
                    continue
                own += 1
                j = part.prototype_id
                assert (prototypes[j]["class_index"], prototypes[j]["prototype"]) == (c, part.prototype)
                assert prototypes[j]["weight"] == pytest.approx(part.weight)
                assert float(found["amounts"][n, j]) == pytest.approx(part.evidence, abs=2e-4)
                if "maps" in found:
                    assert np.allclose(found["maps"][n, j], part.maps["presence"], atol=2e-4)
    assert own == len(images) * sum(each["prototype"] > 0 for each in prototypes)
    return found


def test_the_graph_gives_the_edited_logits_amounts_and_maps(toy, converted, graph):
    edited, target, said = graph
    images = [toy.image(c) for c in range(4)]
    loaded = protonmf_cli.load(edited)
    found = check_shows_what_explain_shows(target, loaded, images)
    assert torch.allclose(found["maps"].sum(dim=(2, 3)), found["amounts"], atol=1e-4)
    assert (said["format"], said["edits"], set(said["differences"])) == ("onnx", 2, {"logits", "amounts", "maps"})
    assert said["relative_difference"] == said["differences"]["logits"] < job.LIMIT
    assert 0 < said["rounding"] < job.LIMIT
    unedited = protonmf_cli.load(converted)
    before = unedited.backbone.read(unedited.crop(images[0])[None]).logits
    assert float(found["logits"][0, 0]) != pytest.approx(float(before[0, 0]), abs=0.1)
    assert found["logits"][0, 1:].tolist() == pytest.approx(before[0, 1:].tolist(), abs=1e-4)


def test_any_number_of_images_gives_what_each_gives_alone(toy, graph):
    edited, target, _ = graph
    loaded, images = protonmf_cli.load(edited), [toy.image(c) for c in (0, 1, 2, 3, 0)]
    together = outputs_of(target, loaded, images)
    for n, image in enumerate(images):
        for name, alone in outputs_of(target, loaded, [image]).items():
            assert torch.allclose(alone[0], together[name][n], atol=1e-4)


def test_metadata_say_what_the_numbers_are(graph):
    found = read_metadata(graph[1])
    assert found["schema"] == "protonmf.onnx/1" and found["edits"] == 2
    assert [name["label"] for name in found["classes"]] == list(LABELS)
    assert [each["prototype"] for each in found["prototypes"]] == [1, 2] * 4 + [0] * 4  # classes as wholes come last
    assert found["prototypes"][1]["weight"] == 0 and found["prototypes"][8]["weight"] is None
    assert found["preprocessing"]["input_size"] == [3, 64, 64] and found["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert (
        found["exactness"]["max_abs_logit_difference"] < 1e-3
        and found["versions"]["torch"] == torch.__version__.partition("+")[0]
    )
    assert set(found["outputs"]) == {"logits", "amounts", "maps"}
    assert b"site-packages" not in graph[1].read_bytes()  # nothing of the machine that wrote it


@pytest.mark.slow
def test_rows_without_a_place_count_in_the_logits_alone(toy, vit, tmp_path):
    code, out, err = run("export", vit, "--format", "onnx", "-o", tmp_path / "vit.onnx")
    assert code == 0, err
    assert "gives logits, amounts, maps of any number of images" in out
    check_shows_what_explain_shows(tmp_path / "vit.onnx", protonmf_cli.load(vit), [toy.image(0), toy.image(3)])


@pytest.mark.parametrize(("output", "factor", "limit"), [("logits", 1e-3, "1e-05"), ("maps", 0.1, "1e-03")])
def test_a_graph_that_differs_is_not_kept(converted, tmp_path, monkeypatch, output, factor, limit):
    target = tmp_path / "net.onnx"
    monkeypatch.setattr(job, "traced", lambda *_: None)
    monkeypatch.setattr(job, "save_graph", lambda path, *_: path.write_bytes(b"graph"))

    def wrong(path, batches):
        assert path.read_bytes() == b"graph" and [len(batch) for batch in batches] == [1, 3]
        expected = {name: tensor.float() for name, tensor in seen[0].given().items()}
        return expected | {output: expected[output] * (1 + factor)}

    seen, usual = [], job.expected_outputs
    monkeypatch.setattr(job, "expected_outputs", lambda *words: seen.append(usual(*words)) or seen[-1])
    monkeypatch.setattr(job, "run_graph", wrong)
    code, out, err = run("export", converted, "--format", "onnx", "-o", target)
    assert (code, out) == (4, "") and f"the {output} of the graph differ by" in err
    assert f"of their spread from the model's, more than {limit}; nothing was written" in err
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_traced_is_refused_with_its_reason(converted, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("wrapped") from ValueError("No ONNX function found for <OpOverload(op='aten.roll.default')>")

    monkeypatch.setattr(torch.export, "export", fails)
    code, out, err = run("export", converted, "--format", "onnx", "-o", tmp_path / "net.onnx")
    assert code == 4 and "cannot be written as a graph: the operator aten.roll.default" in err
    assert "Traceback" not in err and list(tmp_path.iterdir()) == []
    assert tracing._reason(RuntimeError("")) == "RuntimeError"
    guarded = RuntimeError("Could not guard on data-dependent expression Eq(u0, 1)\nmore")
    assert tracing._reason(guarded) == "what it computes depends on the numbers of an image"


def test_refusals_before_any_work(converted, tmp_path, monkeypatch):
    target = tmp_path / "net.onnx"
    monkeypatch.setattr(job, "loaded_from", lambda *_: pytest.fail("loaded"))
    code, _, err = run("export", converted, "-o", target)
    assert code == 2 and "looks like a file of ONNX: give --format onnx" in err
    target.write_text("mine")
    code, _, err = run("export", converted, "--format", "onnx", "-o", target)
    assert code == 3 and "exists already" in err and target.read_text() == "mine"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = run("export", converted, "--format", "onnx", "-o", tmp_path / "other.onnx")
    assert code == 3 and "onnxruntime, which is not installed: pip install 'protonmf[onnx]'" in err
    with pytest.raises(InputError, match=r"take 4\.0 GiB, and a file of ONNX holds 2 GiB"):
        check_size([torch.empty(2**30, device="meta")])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "checkpoint"])
def test_several_networks_are_not_one(files_of_other_kinds, tmp_path, kind):
    code, _, err = run("export", files_of_other_kinds["combined"], "--format", kind, "-o", tmp_path / "it")
    assert code == 3 and err.startswith("error: 2 networks are combined in this model, each of which sees its own")
    assert not (tmp_path / "it").exists()


@pytest.mark.parametrize("kind", [slow("fewshot"), slow("protopnet")])
def test_other_models(request, kind, toy, tmp_path):
    model = request.getfixturevalue("files_of_other_kinds")[kind]
    code, out, err = run("export", model, "--format", "onnx", "-o", tmp_path / "m.onnx", "--json")
    assert code == 0, err
    check_other(tmp_path / "m.onnx", protonmf_cli.load(model), toy.image(1))


def check_other(target, loaded, image):
    found, explanation = outputs_of(target, loaded, [image]), loaded.explain(image)
    assert float(found["logits"][0, explanation.class_index]) == pytest.approx(explanation.logit, abs=1e-3)
    for part in explanation.contributions:
        assert float(found["amounts"][0, part.prototype_id]) == pytest.approx(part.evidence, abs=1e-3)
        assert np.allclose(found["maps"][0, part.prototype_id], part.maps["presence"], atol=1e-3)


@pytest.fixture(scope="module")
def files_of_other_kinds(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    few, first, second, both = (folder / f"{name}.safetensors" for name in ("few", "first", "second", "both"))
    common = ("--data", toy.data, "-q")
    assert run("fewshot", "fit", toy.name, *common, "--shots", 4, "-p", 1, "--anchor", 1, "-o", few)[0] == 0
    train = ("protopnet", "train", toy.name, *common, "-p", 1, "--epochs", 2, "--warm-epochs", 1)
    for path, seed in ((first, 0), (second, 1)):
        code, _, err = run(*train, "--seed", seed, "-o", path)
        assert code == 0, err
    assert run("protopnet", "combine", first, second, "-o", both)[0] == 0
    return {"fewshot": few, "protopnet": first, "combined": both}
