"""The few-shot model from the command line: fitted, read, compared, explained; and what bad input gets."""

import json
import math
import shutil
import signal
import subprocess
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from protonmf_cli.errors import ModelFileError
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.loaded import load
from protonmf_cli.models.response import parts_of_rows
from toys import run, start


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fit(toy, output, *words):
    return run("fewshot", "fit", toy.name, "--data", toy.data, "-o", output, "--device", "cpu", *words)


@pytest.fixture(scope="module")
def few(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fewshot")
    code, out, err = fit(toy, folder / "few.safetensors", "--shots", 5, "--json", "--png", folder / "plane.png")
    assert code == 0, err
    (folder / "report.json").write_text(out)
    return folder / "few.safetensors"


def test_the_report_says_what_was_fitted(few):
    report = json.loads((few.parent / "report.json").read_text())
    assert report["schema"] == "protonmf.fewshot_fit/1"
    assert (report["classes"], report["images"], report["folds"]) == (4, 20, 5)
    assert report["prototypes"] >= 4 and report["zero_weights"] == 0
    assert report["chosen"]["scale"] in (5.0, 10.0) and 0 <= report["held_out"]["accuracy"] <= 1
    assert report["accuracy"]["train"] > 0.7 and report["accuracy"]["test"] > 0.5
    kinds = [p["kind"] for p in report["interpretation"]["prototypes"]]
    assert len(kinds) == report["prototypes"] and set(kinds) <= {"pure", "ambiguous", "unused"}
    with Image.open(few.parent / "plane.png") as picture:
        assert picture.width > 700
    assert not list(few.parent.glob(".*"))


def test_equal_fits_give_equal_files(few, toy, tmp_path):
    code, _, err = fit(toy, tmp_path / "again.safetensors", "--shots", 5, "-q")
    assert code == 0, err
    assert (tmp_path / "again.safetensors").read_bytes() == few.read_bytes()


def test_the_file_answers_as_it_was_fitted(few, toy, tmp_path):
    loaded = load(few)
    model = loaded.model
    assert model.card.method == "fewshot" and model.card.pooling == "soft"
    matching = model.evidence
    assert torch.allclose(matching.normaliser(matching.samples.features).norm(dim=1), torch.ones(20))
    assert model.owner.tolist() == sorted(model.owner.tolist()) == model.dense_weights.argmax(dim=1).tolist()
    for source, features, label in zip(
        matching.samples.sources, matching.samples.features, matching.samples.labels, strict=True
    ):
        path = toy.data / "train" / source.path
        assert source.path.split("/")[0] == model.card.classes[int(label)].label
        rows = loaded.backbone.read(loaded.crop(path)[None]).rows
        assert torch.allclose(rows.mean(dim=1)[0], features, atol=1e-5)
    # the softmax of distances, written out
    distances = torch.cdist(matching.normaliser(rows.mean(dim=1)).double(), model.prototypes.double()).square()
    matched = (-matching.scale * distances / 2).softmax(dim=1)
    assert torch.allclose(parts_of_rows(model, rows).logits.double(), matched @ model.dense_weights.double(), atol=1e-5)
    again = tmp_path / "again.safetensors"
    save_model(again, *load_model(few))
    assert again.read_bytes() == few.read_bytes()


def test_examples_are_the_images_that_match_most(few):
    model = load(few).model
    matched = model.evidence.of_features(model.evidence.samples.features.double(), model.prototypes.double())
    names = [source.path for source in model.evidence.samples.sources]
    for j in range(len(model.prototypes)):
        own = model.examples.of(j)
        assert len(own) == 5
        expected = [names[n] for n in matched[:, j].argsort(descending=True, stable=True)[:5]]
        assert [model.examples.sources[n].path for n in own] == expected
        assert float(model.examples.score[own[0]]) == pytest.approx(float(matched[:, j].max()), abs=1e-5)
        assert float(model.examples.map[own].min()) >= 0


def test_it_works_in_every_command(few, toy, tmp_path):
    image = toy.image(1)
    code, out, err = run("explain", image, "--model", few, "--json", "--png", tmp_path / "why.png")
    assert code == 0, err
    why = json.loads(out)
    total = sum(c["contribution"] for c in why["contributions"]) + why["residual"]["contribution"] + why["bias"]
    assert abs(total - why["logit"]) < 1e-4
    assert math.isclose(sum(c["evidence"] for c in why["contributions"]), 1, abs_tol=1e-6)
    for c in why["contributions"]:
        assert np.isclose(np.sum(c["map"]), c["contribution"]) and np.min(c["presence"]) >= 0
        left, top, right, bottom = c["box"]
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 500
    code, out, err = run("explain", image, "--model", few)
    assert code == 0 and "how much the image matches the prototype" in out
    code, out, err = run("intervene", image, "--model", few, "--zero", 1, "--class", why["label"], "--json")
    assert code == 0, err
    change = json.loads(out)
    first = next(c for c in why["contributions"] if c["prototype"] == 1 and c["owner_index"] == why["class_index"])
    assert np.isclose(change["after"]["logit"], why["logit"] - first["contribution"])
    code, out, err = run("evaluate", "--data", toy.data, "--model", few, "--json")
    assert code == 0, err
    report = json.loads((few.parent / "report.json").read_text())
    assert json.loads(out)["accuracy"]["prototype_model"] == report["accuracy"]["test"]
    code, out, _ = run("inspect", few, "--class", "green things", "--png", tmp_path / "green.png")
    assert code == 0 and "mean over the places of layers -1, normalisation unit" in out and "prototype 1: weight" in out
    code, _, err = run("evaluate", "--data", toy.data, "--model", few, "--table", "parts")
    assert code == 2 and "this file holds a fewshot model" in err
    code, _, err = run("export", few, "-o", tmp_path / "out")
    assert code in (3, 4) and not (tmp_path / "out").exists() and "pooled-features" in err


def test_predictions_name_matches_and_neighbours(few, toy, tmp_path):
    images = [toy.image(0), toy.image(2)]
    code, out, err = run("fewshot", "predict", *images, "--model", few, "--json")
    assert code == 0, err
    found = json.loads(out)["predictions"]
    assert [f["image"] for f in found] == [str(i) for i in images]
    for one, image in zip(found, images, strict=True):
        assert one["schema"] == "protonmf.fewshot_prediction/1"
        assert sum(m["match"] for m in one["matches"]) == pytest.approx(1)
        assert 0 <= one["entropy"] <= one["most_entropy"] == pytest.approx(math.log(4))
        assert [n["distance"] for n in one["neighbours"]] == sorted(n["distance"] for n in one["neighbours"])
        code, out, _ = run("explain", image, "--model", few, "--json")
        assert json.loads(out)["predictions"][0]["probability"] == pytest.approx(
            one["predictions"][0]["probability"], abs=1e-5
        )
    code, out, err = run("fewshot", "predict", toy.image(), tmp_path / "none.png", "--model", few)
    assert code == 6 and "matches prototypes" in out and "none.png cannot be read" in err
    training = toy.data / "train" / load(few).model.evidence.samples.sources[0].path
    code, out, _ = run("fewshot", "predict", training, "--model", few, "--json")
    assert json.loads(out)["neighbours"][0]["distance"] < 1e-3 and json.loads(out)["typical"] == 1


def test_the_interpretation_is_shown_and_drawn(few, tmp_path):
    code, out, err = run(
        "fewshot", "interpret", few, "--figures", tmp_path, "--virtual", "--steps", 4, "--fgsm", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["schema"] == "protonmf.fewshot_interpretation/1"
    assert {m["source"] for p in report["prototypes"] for m in p["members"]} == {
        m["source"] for m in report["meetings"]
    }
    assert len(report["virtual"]) == len(report["prototypes"])
    assert set(report["adversarial"]["flipped"]) == {"0.5", "1", "2", "4", "8"}
    for name in ("cards.png", "plane.png", "virtual.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500
    code, _, err = run("fewshot", "interpret", few, "--figures", tmp_path)
    assert code == 3 and "cards.png exists already" in err
    code, out, err = run("fewshot", "interpret", few, "--fgsm")
    assert code == 0 and "classes meet" in out and "fast gradient" in out
    assert run("fewshot", "interpret", few, "--virtual")[0] == 2


@pytest.mark.slow
def test_layers_are_joined_and_recorded(toy, tmp_path):
    output = tmp_path / "joined.safetensors"
    code, _, err = fit(toy, output, "--layers", "-1,-2", "--norm", "l1", "--normalisation", "centred", "-p", 2, "-q")
    assert code == 0, err
    loaded = load(output)
    readout = loaded.model.card.readout
    assert readout.layers == (-1, -2) and len(readout.blocks) == 2 and readout.normalisation == "centred"
    assert loaded.model.prototypes.shape == (8, sum(readout.blocks))
    code, out, err = run("explain", toy.image(), "--model", output, "--json")
    assert code == 0, err
    assert len(json.loads(out)["contributions"]) <= 8
    assert fit(toy, tmp_path / "x.safetensors", "--layers", "two")[0] == 2


def test_a_file_without_its_network_finds_it_again(toy, tmp_path):
    output = tmp_path / "bare.safetensors"
    code, _, err = fit(toy, output, "--no-embed-backbone", "-q")
    assert code == 0, err
    assert output.stat().st_size < 1e6
    code, out, err = run("fewshot", "predict", toy.image(), "--model", output)
    assert code == 0, err
    shutil.copytree(toy.network, tmp_path / "moved")
    model, _ = load_model(output)
    assert model.card.source.name == toy.name


@pytest.mark.slow
def test_the_benchmark_compares_and_keeps_features(toy, tmp_path):
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in sorted((toy.data / "train").rglob("*.png")):
            packed.write(path, path.relative_to(toy.data / "train"))
    words = ("fewshot", "benchmark", toy.name, "--data", archive, "--ways", "2,3", "--shots", 3, "--subsets", 2)
    words = (*words, "--threads", 1, "--cache-features", tmp_path / "kept", "--device", "cpu")
    code, out, err = run(*words, "--json", "-o", tmp_path / "bench.json")
    assert code == 0, err
    report = json.loads(out)
    assert (
        report["schema"] == "protonmf.fewshot_benchmark/1"
        and json.loads((tmp_path / "bench.json").read_text()) == report
    )
    assert [(r["method"], r["ways"]) for r in report["rows"]] == [
        (m, n) for n in (2, 3) for m in ("prototypes-l2", "prototypes-l1", "single-prototype", "softmax-l2", "knn")
    ]
    assert all(0 <= r["mean"] <= 1 and r["subsets"] == 2 and r["shots"] == 3 for r in report["rows"])
    kept = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert kept
    before = [p.stat().st_mtime_ns for p in kept]
    code, out, err = run(*words)
    assert code == 0, err
    assert "2-way" in out and "linear softmax, L2" in out and "p = " in out
    assert [p.stat().st_mtime_ns for p in kept] == before
    code, out, err = run(*words, "--json")
    assert json.loads(out)["rows"] == report["rows"]


def test_the_benchmark_says_why_a_test_is_left_out(capsys):
    from protonmf_cli.cli.blocks import show_blocks
    from protonmf_cli.cli.console import Shown
    from protonmf_cli.output.text.fewshot import benchmark_blocks
    from protonmf_cli.pipelines.fewshot.benchmark import METHODS, Score, summary

    models = ("prototypes-l2", "prototypes-l1")
    gains = {2: lambda n: 0.01, 5: lambda n: 0.01 * n}
    scores = [
        Score(
            ways=ways,
            subset=n,
            accuracy=dict.fromkeys(METHODS, 0.8 + n / 100) | {"prototypes-l2": 0.8 + n / 100 + gain(n)},
            prototypes=dict.fromkeys(models, ways),
            zeros=dict.fromkeys(models, 0.5),
        )
        for ways, gain in gains.items()
        for n in range(10)
    ]
    report = {"rows": summary(scores, 5), "images": 100, "seconds": {"features": 1.0, "fitting": 1.0}}
    show_blocks(benchmark_blocks(report), Shown())
    out = " ".join(capsys.readouterr().out.split())
    assert (
        "prototypes, L2 weights against linear softmax, L2: p = - / 0.002, 0.001 / 0.004 (t-test / Wilcoxon); "
        "no t-test of 2-way: all 10 subsets differ by +0.0100, without variance" in out
    )
    assert (
        "against nearest neighbours: p = - / 1.000, - / 1.000 (t-test / Wilcoxon); no t-test of 2-way, 5-way: no" in out
    )


@pytest.mark.slow
def test_a_sparse_fit_says_that_its_weights_were_fitted_again(toy, tmp_path):
    from protonmf_cli.output.text.fewshot import chosen_words

    output = tmp_path / "sparse.safetensors"
    code, out, err = fit(toy, output, "--norm", "l1", "--shots", 5)
    assert code == 0, err
    chosen = load(output).model.card.measured.chosen
    said = f"weights fitted again with L2 norm {chosen['refit']:g}"
    assert said in " ".join(out.split()) and said in " ".join(run("inspect", output)[1].split())
    del chosen["refit"]  # a file of an earlier version
    assert chosen_words(chosen, None, 0).endswith(f"anchor {chosen['anchor']:g}")


@contextmanager
def interrupted_in_epoch(monkeypatch, number):
    """Fine-tuning that stops in the epoch of this number, from 0."""
    from protonmf_cli.pipelines.fewshot.finetuning import FineTuner

    real = FineTuner._epoch

    def epoch(tuner, now):
        if now == number:
            raise KeyboardInterrupt
        return real(tuner, now)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuner, "_epoch", epoch)
        yield


@pytest.mark.slow
def test_a_process_that_is_interrupted_while_it_tunes_goes_on(toy, tmp_path):
    output = tmp_path / "few.safetensors"
    words = ("--finetune", "last", "--epochs", 6, "--rate", "1e-3", "--shots", 5)
    command = ("fewshot", "fit", toy.name, "--data", toy.data, "-o", output, "--device", "cpu", *words)
    process = start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    for line in process.stderr:
        if line.startswith("epoch   2"):
            process.send_signal(signal.SIGINT)
            break
    process.communicate(timeout=120)
    assert process.returncode == 130 and not output.exists()
    code, _, err = fit(toy, output, *words)
    assert code == 0 and "goes on after epoch" in err


@pytest.mark.slow
def test_fine_tuning_goes_on_where_it_was_interrupted(toy, tmp_path, monkeypatch):
    words = ("--finetune", "last", "--epochs", 6, "--rate", "1e-3", "--shots", 5)
    code, out, err = fit(toy, tmp_path / "whole.safetensors", *words, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert len(report["finetuning"]["epochs"]) == 6 and not list(tmp_path.glob(".*"))
    output = tmp_path / "cut.safetensors"
    with interrupted_in_epoch(monkeypatch, 2):
        code, _, err = fit(toy, output, *words)
        assert code == 130 and "interrupted" in err and not output.exists()
    code, _, err = fit(toy, output, *words)
    assert code == 0 and "goes on after epoch 2" in err
    assert output.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert load(output).model.card.source.digest != load_model_digest(toy)
    code, _, err = fit(toy, tmp_path / "x.safetensors", *words, "--no-embed-backbone")
    assert code == 2 and "must be inside the file" in err


def load_model_digest(toy):
    from protonmf_cli.files.networks.backbones import load_features
    from protonmf_cli.files.networks.request import BackboneRequest

    return load_features(BackboneRequest(name=toy.name))[2].digest


def some(toy, folder, counts):
    """A data set with so many images per class."""
    for c, count in enumerate(counts):
        source = sorted((toy.data / "train").iterdir())[c]
        (folder / source.name).mkdir(parents=True)
        for image in sorted(source.iterdir())[:count]:
            shutil.copy(image, folder / source.name)
    return folder


@pytest.mark.slow
def test_another_choice_of_layers_does_not_go_on(toy, tmp_path, monkeypatch):
    output = tmp_path / "few.safetensors"
    words = ("--finetune", "last", "--epochs", 6, "--rate", "1e-3", "--shots", 5)
    with interrupted_in_epoch(monkeypatch, 1):
        assert fit(toy, output, *words, "--layers", "-1,-2")[0] == 130
    code, _, err = fit(toy, output, *words[:2], "--epochs", 1, "--layers", "-2,-1")
    assert code == 0 and "goes on" not in err


def test_tables_that_do_not_need_a_black_box(few, toy):
    code, out, err = run(
        "evaluate", "--data", toy.data, "--model", few, "--json", "--table", "oracle", "--table", "part-quality"
    )
    assert code == 0, err
    assert set(json.loads(out)["tables"]) == {"oracle", "part_quality"}


def test_classes_and_prototypes_without_weights(toy, tmp_path):
    """Strong L1 leaves prototypes that say nothing: they stay with the class they started in."""
    output = tmp_path / "sparse.safetensors"
    code, _, err = fit(toy, output, "--norm", "l1", "-p", 2, "--shots", 4, "-q")
    assert code == 0, err
    model = load(output).model
    silent = (model.dense_weights <= 0).all(dim=1)
    for j in silent.nonzero()[:, 0].tolist():
        first = model.examples.sources[model.examples.of(j)[0]].path
        assert first.split("/")[0] == model.card.classes[int(model.owner[j])].label
    code, out, err = run("fewshot", "interpret", output, "--json")
    assert code == 0, err
    for row in json.loads(out)["prototypes"]:
        assert bool(row["classes"]) == (row["kind"] != "unused")
    for label in ("red things", "grey things"):
        assert (
            run("explain", toy.image(), "--model", output, "--class", label, "--png", tmp_path / f"{label}.png")[0] == 0
        )


@pytest.mark.slow
def test_validation_images_are_checked_before_the_fit(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    extra = data / "val" / "red things" / "copy.png"
    shutil.copy(next((data / "train" / "red things").iterdir()), extra)
    output = tmp_path / "out.safetensors"
    code, _, err = run("fewshot", "fit", toy.name, "--data", data, "-o", output)
    assert code == 3 and "1 images of val are also in train" in err and not output.exists()
    extra.unlink()
    shutil.copytree(data / "val" / "red things", data / "val" / "purple things")
    code, _, err = run("fewshot", "fit", toy.name, "--data", data, "-o", output)
    assert code == 3 and "match no class of the model" in err
    shutil.rmtree(data / "val" / "purple things")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as packed:
        for path in sorted(data.rglob("*.png")):
            packed.write(path, path.relative_to(data))
    code, out, err = run("fewshot", "fit", toy.name, "--data", tmp_path / "data.zip", "-o", output, "--json")
    assert code == 0, err
    assert json.loads(out)["accuracy"]["test"] > 0.5


def test_few_and_unequal_images(toy, tmp_path):
    data = some(toy, tmp_path / "unequal", [6, 1, 2])
    code, out, err = run("fewshot", "fit", toy.name, "--data", data, "-o", tmp_path / "a.safetensors")
    assert code == 0 and "classes of one image are never held out in the cross-validation: " in err
    data = some(toy, tmp_path / "single", [1, 1, 1])
    code, out, err = run("fewshot", "fit", toy.name, "--data", data, "-o", tmp_path / "b.safetensors", "--json")
    assert code == 0 and "every class has one image: nothing can be held out" in err
    report = json.loads(out)
    assert report["folds"] == 0 and report["held_out"] is None and report["accuracy"]["train"] == 1


def test_what_cannot_be_fitted_is_refused(toy, tmp_path, few):
    output = tmp_path / "out.safetensors"

    def refused(code, sentence, *words, data=toy.data):
        found, _, err = run("fewshot", "fit", toy.name, "--data", data, "-o", output, *words)
        assert (found, sentence in err) == (code, True), err
        assert not output.exists()

    refused(3, "--shots 40 needs 40 images of every class, but blue things (8), green things (7)", "--shots", 40)
    refused(2, "--anchor inf is not a number from 0 to 1e+06", "--anchor", "inf")
    refused(2, "--rate inf is not a number", "--rate", "inf", "--finetune", "last")
    refused(2, "--seed", "--seed", 10**20)
    refused(3, "9 prototypes per class need as many images, but a class has 6", "-p", 9)
    refused(3, "has one class with images; a few-shot model needs at least two", data=some(toy, tmp_path / "one", [3]))
    refused(3, "does not exist", data=tmp_path / "nowhere")
    refused(3, "cannot be joined: this network has", "--layers", "-12")
    same = some(toy, tmp_path / "same", [2, 2])
    picture = next(same.rglob("*.png")).read_bytes()
    for path in same.rglob("*.png"):
        path.write_bytes(picture)
    refused(3, "all images have the same features: nothing can be told apart", data=same)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04")
    refused(3, "broken.zip is damaged or not a zip archive", data=broken)
    spoilt = some(toy, tmp_path / "spoilt", [3, 3])
    for path in (spoilt / "blue things").iterdir():
        path.write_bytes(b"no image")
    refused(3, "no image of blue things could be read", "--max-skipped", 1, data=spoilt)
    refused(5, "3 of 6 images could not be read", data=spoilt)
    code, _, err = fit(toy, few)
    assert code == 3 and "exists already" in err
    code, _, err = run("fewshot", "benchmark", toy.name, "--data", toy.data, "--shots", 4)
    assert code == 3 and "2-way with 4 shots needs 2 classes of at least 8 images (two folds), but only 2" not in err
    assert "5-way with 4 shots needs 5 classes" in err
    assert run("fewshot", "benchmark", toy.name, "--data", toy.data, "--ways", "1,2")[0] == 2
    code, _, err = run("fewshot", "benchmark", toy.name, "--data", toy.data, "--shots", 3, "--images", 4)
    assert code == 2 and "--images 4 leaves less than --shots 3 for each of two folds; give 6 or more" in err
    code, _, err = run("fewshot", "interpret", tmp_path / "none.safetensors", "--figures", tmp_path / "figures")
    assert code == 3 and "`fewshot fit`" in err and not (tmp_path / "figures").exists()


def test_names_that_look_like_markup_are_shown_as_they_are(toy, tmp_path):
    data = some(toy, tmp_path / "data", [3, 3])
    (data / "blue things").rename(data / "[red]")
    output = tmp_path / "few.safetensors"
    code, _, err = run("fewshot", "fit", toy.name, "--data", data, "-o", output)
    assert code == 0, err
    image = toy.image()
    for words in (("fewshot", "interpret", output), ("explain", image, "-m", output, "--class", "[red]")):
        code, out, err = run(*words)
        assert code == 0 and "[red]" in out, err


def test_a_file_that_was_tampered_with_is_refused(few, tmp_path):
    import safetensors.torch

    from protonmf_cli.files.store import KEY, OF_MATCHING

    with safetensors.safe_open(few, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert tensors.keys() >= OF_MATCHING and KEY in metadata
    tensors["sample_features"][0, 0] += 1
    safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors", metadata=metadata)
    with pytest.raises(ModelFileError, match="does not match its checksum"):
        load_model(tmp_path / "bad.safetensors")


def test_other_models_are_refused(converted, toy):
    for words in (("fewshot", "predict", toy.image(), "--model", converted), ("fewshot", "interpret", converted)):
        code, _, err = run(*words)
        assert code == 3 and "this is a model of the method protonmf, not a few-shot model" in err


def test_python_fits_predicts_and_interprets(toy, tmp_path):
    from protonmf_cli.errors import UsageError
    from protonmf_cli.jobs.fewshot.fitting import fit_fewshot
    from protonmf_cli.jobs.fewshot.interpretation import interpret_fewshot
    from protonmf_cli.jobs.fewshot.prediction import FewShotPrediction, predict
    from protonmf_cli.options import FewShotOptions, ImageWords, Machine

    output = tmp_path / "few.safetensors"
    options, machine = FewShotOptions(prototypes=1), Machine(device="cpu", threads=1)
    words = {"options": options, "output": str(output), "machine": machine}
    train, val = toy.data / "train", toy.data / "val"
    with pytest.raises(UsageError, match="leave out class_map"):
        fit_fewshot(toy.name, ImageWords(data=train, class_order=True), **words)
    with pytest.raises(UsageError, match="in float32. Leave dtype out"):
        fit_fewshot(toy.name, train, **words | {"machine": Machine(device="cpu", dtype="float64")})
    assert fit_fewshot(toy.name, train, **words).loaded.model.card.measured.accuracy["test"] is None
    output.unlink()
    found = fit_fewshot(toy.name, str(train), val=str(val), figure=str(tmp_path / "plane.png"), **words)
    assert found.loaded.model.card.measured.accuracy["test"] > 0.5 and (tmp_path / "plane.png").exists()
    assert found.bytes == output.stat().st_size and len(found.interpretation.prototypes) == 4
    seen, unread = predict(found.loaded, [toy.image(), tmp_path / "none.png"])
    assert isinstance(seen, FewShotPrediction) and seen.predictions[0].label == "red things"
    assert unread.path == str(tmp_path / "none.png") and unread.reason.startswith("cannot be read")
    again = interpret_fewshot(str(output), fgsm=True, machine=machine)
    assert again.virtual is None and len(again.attacked.check.images) == len(again.attacked.names)
    assert [f.members for f in again.found.prototypes] == [f.members for f in found.interpretation.prototypes]


def test_an_audit_takes_a_prototype_out_of_its_own_class(few, toy, tmp_path):
    page = tmp_path / "audit.html"
    code, out, err = run("audit", "-m", few, "--data", toy.data, "--json", "-o", page)
    assert code == 0, err
    record, model = json.loads(out), load(few).model
    assert len(record["ranking"]) == len(model.prototypes) and page.exists()
    one = next(each for each in record["ranking"] if each["transplant"] is not None)
    words = ("intervene", "-m", few, "--class", one["label"], "--zero", one["prototype"], "--data", toy.data)
    after = json.loads(run(*words, "--json")[1])["after"]["accuracy"]
    assert after == pytest.approx(one["without"]["accuracy"][1])
