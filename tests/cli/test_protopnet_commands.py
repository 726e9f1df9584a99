"""ProtoPNet from the command line: trained, changed, combined, explained; and what bad input gets."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

import toys
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.jobs.loaded import load
from protonmf_cli.models.response import parts_of_rows
from protonmf_cli.options import PROTOPNET_RECIPES
from toys import run, start

SHORT = ("--epochs", 3, "--warm-epochs", 1, "--cycles", 2, "--batch-size", 8, "-p", 2, "--width", 16, "--device", "cpu")


def train(toy, output, *words):
    return run("protopnet", "train", toy.name, "--data", toy.data, "-o", output, *SHORT, *words)


@pytest.fixture(scope="module")
def net(toy, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("protopnet")
    code, out, err = train(
        toy, folder / "net.safetensors", "--validation", 0.2, "--json", "--log", folder / "log.json",
        "--figure", folder / "curves.png", "--keep-cycles", folder / "cycles",
    )  # fmt: skip
    assert code == 0, err
    (folder / "report.json").write_text(out)
    return folder / "net.safetensors"


def test_the_report_says_what_happened(net):
    report = json.loads((net.parent / "report.json").read_text())
    assert report["schema"] == "protonmf.protopnet_training/1"
    assert [row["stage"] for row in report["epochs"]] == ["warm", "joint", "joint"]
    assert len(report["stages"]) == 2 and report["prototypes"] == 8
    assert report["images"] == {"train": 24, "held_out": 6, "test": 18}
    push = report["push"]
    assert push["last_layer"]["kkt"] <= 1e-6
    assert push["duplicates"] == 0 and push["images"] >= 4
    assert push["theorem"]["images"] == 24
    assert all(0 <= value <= 1 for value in report["accuracy"].values())
    assert json.loads((net.parent / "log.json").read_text())["push"] == push
    with Image.open(net.parent / "curves.png") as picture:
        assert picture.width > 500
    assert sorted(p.name for p in (net.parent / "cycles").iterdir()) == ["cycle-1.safetensors", "cycle-2.safetensors"]
    assert not list(net.parent.glob(".*"))


def test_every_prototype_is_its_own_patch(net):
    loaded = load(net)
    model = loaded.model
    assert model.card.method == "protopnet" and model.card.pooling == "max"
    data = Path(json.loads((net.parent / "report.json").read_text())["output"])
    assert data.exists()
    for j in range(len(model.prototypes)):
        first = model.examples.of(j)[0]
        assert float(model.examples.score[first]) > 8.5  # log((d + 1) / (d + 1e-4)) at d = 0 is 9.21
        assert model.examples.sources[first].path.split("/")[0] == model.card.classes[int(model.owner[j])].label


def test_it_works_in_every_command(net, toy, tmp_path):
    image = toy.image(1)
    code, out, err = run("explain", image, "--model", net, "--json", "--png", tmp_path / "why.png")
    assert code == 0, err
    why = json.loads(out)
    total = sum(c["contribution"] for c in why["contributions"]) + why["residual"]["contribution"] + why["bias"]
    assert abs(total - why["logit"]) < 1e-4
    sizes = [abs(c["contribution"]) for c in why["contributions"]]
    assert sizes == sorted(sizes, reverse=True)
    first = next(c for c in why["contributions"] if c["prototype"] == 1 and c["owner_index"] == why["class_index"])
    for c in why["contributions"]:
        grid = np.array(c["presence"])
        assert np.isclose(grid.max(), c["evidence"])
        assert np.isclose(np.sum(c["map"]), c["contribution"])
        left, top, right, bottom = c["box"]
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.width > 500
    code, out, err = run("intervene", image, "--model", net, "--zero", 1, "--class", why["label"], "--json")
    assert code == 0, err
    change = json.loads(out)
    assert np.isclose(change["after"]["logit"], why["logit"] - first["contribution"])
    code, out, err = run(
        "evaluate", "--data", toy.data, "--model", net, "--json", "--table", "oracle", "--table", "rival"
    )
    assert code == 0, err
    scores = json.loads(out)
    report = json.loads((net.parent / "report.json").read_text())
    assert scores["accuracy"]["prototype_model"] == report["accuracy"]["test"]
    assert scores["accuracy"]["black_box"] is None and scores["exactness"]["max_abs_logit_difference"] is None
    assert {row["prototypes"] for row in scores["tables"]["rival"]["rows"]} == {
        "NMF prototypes",
        "ProtoPNet prototypes",
    }
    code, out, _ = run("inspect", net, "--class", "green things")
    assert code == 0 and "of the most similar patch" in out and "prototype 2: weight" in out
    code, _, err = run("evaluate", "--data", toy.data, "--model", net, "--table", "parts")
    assert code == 2 and "this file holds a protopnet model. Tables for it: oracle, part-quality, rival" in err
    code, _, err = run("evaluate", "--data", toy.data, "--model", net, "--min-accuracy", 1.0, "-q")
    assert code == (0 if report["accuracy"]["test"] == 1 else 5)


@pytest.mark.slow
def test_the_cycles_are_compared_with_our_prototypes(net, converted, toy, tmp_path):
    cycles = sorted((net.parent / "cycles").iterdir())
    words = [word for cycle in cycles for word in ("--protopnet", cycle)]
    words += ["--table", "rival", "--table", "pictures", "--counts", "2", "--figures", tmp_path, "--json"]
    code, out, err = run("evaluate", "--data", toy.data, "--model", converted, *words)
    assert code == 0, err
    rows = json.loads(out)["tables"]["rival"]["rows"]
    assert [(row["features"], row["prototypes"]) for row in rows] == [
        (name, kind) for name in ("cycle-1", "cycle-2") for kind in ("NMF prototypes", "ProtoPNet prototypes")
    ]
    assert all(rows[n]["error"] < rows[n + 1]["error"] for n in (0, 2))
    assert all((tmp_path / f"{name}.png").is_file() for name in ("areas", "rival", "reasoning"))


def test_the_analyses(net, toy, tmp_path):
    code, out, err = run(
        "protopnet", "local", toy.image(2), "-m", net, "--json", "--figures", tmp_path / "local", "--classes", 9
    )
    assert code == 0, err
    found = json.loads(out)
    similar = [c["evidence"] for c in found["most_similar"]]
    assert similar == sorted(similar, reverse=True) and len(similar) == 8
    assert len(found["classes"]) == 4 and all(len(c["prototypes"]) == 2 for c in found["classes"])
    assert len(list((tmp_path / "local").iterdir())) == 5
    code, out, err = run(
        "protopnet", "evaluate", net, "--data", toy.data, "--figures", tmp_path / "all", "--l1-path", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    assert report["prototypes"]["count"] == report["prototypes"]["unique"] == 8
    zeros = [row["other_class_weights"] for row in report["l1_path"]]
    assert zeros[0] == 0 and zeros == sorted(zeros)
    assert all(row["kkt"] <= 1e-6 for row in report["l1_path"])
    assert len(report["nearest"]) == 8 and len(report["nearest"][0]["here"]) == 5
    scores = [view["score"] for view in report["nearest"][0]["here"]]
    assert scores == sorted(scores, reverse=True)
    assert len(list((tmp_path / "all").iterdir())) == 4


def test_a_network_from_scratch(toy, tmp_path):
    words = ("protopnet", "train", "test_resnet", "--no-pretrained", "--img-size", 64, "--data", toy.data, "--json",
             "--epochs", 2, "--cycles", 1, "--batch-size", 8, "-p", 2, "--width", 16, "--device", "cpu")  # fmt: skip
    code, out, err = run(*words, "-o", tmp_path / "net.safetensors")
    assert code == 0, err
    report = json.loads(out)
    assert [row["stage"] for row in report["epochs"]] == ["joint", "joint"]
    chosen = {name: report["options"][name] for name in ("similarity", "start", "frozen_norms", "addon_rate")}
    assert chosen == {"similarity": "cosine", "start": "random", "frozen_norms": False, "addon_rate": 3e-3}
    code, out, err = run(*words, "--similarity", "log", "--rate", 1e-2, "-o", tmp_path / "log.safetensors")
    assert code == 0, err
    options = json.loads(out)["options"]
    assert options["similarity"] == "log" and options["addon_rate"] == 1e-2
    code, _, err = run(*words, "--weights", tmp_path / "net.safetensors", "-o", tmp_path / "x.safetensors")
    assert code == 2 and "exclude each other" in err


def test_a_start_that_failed_can_be_corrected(toy, tmp_path):
    target = tmp_path / "net.safetensors"
    code, _, err = train(toy, target, "-p", 5000)
    assert code != 0 and "smaller -p" in err
    assert list(tmp_path.iterdir()) == []
    code, _, err = train(toy, target, "--epochs", 1, "--warm-epochs", 0, "--cycles", 1)
    assert code == 0, err


def test_a_network_that_its_last_step_broke_is_refused(toy, tmp_path):
    code, _, err = train(toy, tmp_path / "net.safetensors", "--backbone-rate", 1e20, "--batch-size", 64)
    assert code != 0 and "became NaN or infinite" in err and "smaller rates" in err
    assert "or --precision float32" not in err


def test_broken_validation_images_are_found_before_training(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    for path in (data / "val").rglob("*.png"):
        path.write_bytes(b"junk")
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "net.safetensors", *SHORT)
    assert code == 5 and "could not be read" in err and "epoch" not in err


def test_a_model_of_cut_images_says_so(net, toy, tmp_path):
    model, weights = load_model(net)
    cut = replace(model, card=replace(model.card, data=replace(model.card.data, boxes=True)))
    save_model(tmp_path / "cut.safetensors", cut, weights)
    for words in (
        ("protopnet", "evaluate", tmp_path / "cut.safetensors", "--data", toy.data),
        ("evaluate", "--model", tmp_path / "cut.safetensors", "--data", toy.data),
    ):
        code, _, err = run(*words)
        assert code == 0 and "give --boxes" in err
    code, out, err = run("inspect", tmp_path / "cut.safetensors")
    assert code == 0 and "cut to bounding boxes" in out + err


def test_classes_of_a_rival_are_its_own(net, toy, tmp_path):
    model, weights = load_model(net)
    last = len(model.bias) - 1
    card = replace(model.card, classes=model.card.classes[::-1])
    turned = replace(
        model, card=card, owner=last - model.owner,
        weights=replace(model.weights, class_index=last - model.weights.class_index),
    )  # fmt: skip
    save_model(tmp_path / "turned.safetensors", turned, weights)
    words = ["evaluate", "--model", net, "--data", toy.data, "--table", "rival", "--json", "--protopnet"]
    tables = []
    for rival in (net, tmp_path / "turned.safetensors"):
        code, out, err = run(*words, rival)
        assert code == 0, err
        tables.append({r["prototypes"]: r["error"] for r in json.loads(out)["tables"]["rival"]["rows"]})
    assert tables[0] == pytest.approx(tables[1], rel=1e-6)


def logits_of(loaded, crop):
    exact = loaded.model.to(torch.device("cpu"), torch.float64)
    return parts_of_rows(exact, loaded.backbone.read(crop[None]).rows.double()).logits


def test_push_prune_and_combine(net, toy, tmp_path):
    pushed, pruned, both = (tmp_path / f"{name}.safetensors" for name in ("pushed", "pruned", "both"))
    code, out, err = run("protopnet", "push", net, "--data", toy.data, "-o", pushed, "--json")
    assert code == 0, err
    assert json.loads(out)["push"]["last_layer"]["kkt"] <= 1e-6
    code, out, err = run("protopnet", "prune", pushed, "--data", toy.data, "-o", pruned, "--least", 1, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["prototypes"] + len(report["removed"]) == 8
    assert report["kept"] == sorted(report["kept"])
    code, out, err = run("protopnet", "combine", net, pushed, pruned, "-o", both, "--json")
    assert code == 0, err
    assert json.loads(out)["prototypes"] == 16 + report["prototypes"]
    crop = load(net).crop(toy.image())
    single = []
    for path in (net, pushed, pruned):
        loaded = load(path)
        single.append(logits_of(loaded, crop))
    code, _, err = run("audit", "-m", both, "--data", toy.data)
    assert code == 3 and "combined of several networks, and an audit reads one. Audit them one by one" in err
    combined = load(both)
    whole = combined.crop(toy.image())
    logits = logits_of(combined, whole)
    assert torch.allclose(logits, sum(single), rtol=1e-4)
    code, out, err = run("explain", toy.image(), "--model", both, "--json", "--png", tmp_path / "why.png")
    assert code == 0, err
    why = json.loads(out)
    assert abs(sum(c["contribution"] for c in why["contributions"]) - why["logit"]) < 1e-4
    assert np.isclose(why["logit"], float(logits[0, why["class_index"]]), rtol=1e-4)
    assert {c["network"] for c in why["contributions"]} == {toy.name}
    code, _, err = run("evaluate", "--data", toy.data, "--model", both, "--table", "part-quality")
    assert code == 2 and "looks at one network" in err
    for words in (
        ("inspect", both),
        ("evaluate", "--data", toy.data, "--model", both),
        ("intervene", toy.image(), "--model", both, "--zero", 3),
    ):
        code, _, err = run(*words)
        assert code == 0, err


@pytest.mark.slow
def test_same_seed_same_bytes_and_a_killed_training_goes_on(net, toy, tmp_path):
    report = json.loads((net.parent / "report.json").read_text())
    assert report["options"]["validation"] == 0.2
    words = ["protopnet", "train", toy.name, "--data", toy.data, *SHORT, "--validation", 0.2]
    target = tmp_path / "net.safetensors"
    process = start(*words, "-o", target, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".net.safetensors.work/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    code, _, err = run(*words[:1], *words[1:], "-o", target)
    assert code == 0, err
    assert "goes on after epoch" in err
    assert target.read_bytes() == net.read_bytes()


def test_an_unfinished_training_with_other_options_is_not_mixed_up(net, toy, tmp_path, monkeypatch):
    from protonmf_cli.pipelines.protopnet import training as protopnet_training

    real = protopnet_training.Trainer._push

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(protopnet_training.Trainer, "_push", interrupted)
    same = ("--validation", 0.2)
    assert train(toy, tmp_path / "n.safetensors", *same)[0] == 130
    monkeypatch.setattr(protopnet_training.Trainer, "_push", real)
    code, _, err = train(toy, tmp_path / "n.safetensors", *same, "--l1", 0.01)
    assert code == 3
    assert "an unfinished training with this output was asked for something else (l1 0.0001 instead of 0.01)" in err
    other = tmp_path / "data"
    shutil.copytree(toy.data, other)
    next((other / "train" / toys.LABELS[0]).iterdir()).unlink()
    words = ("protopnet", "train", toy.name, "--data", other, "-o", tmp_path / "n.safetensors", *SHORT, *same)
    code, _, err = run(*words)
    assert code == 3 and "asked for something else (training images" in err
    code, _, err = train(toy, tmp_path / "n.safetensors", *same)
    assert code == 0 and "goes on after epoch 2" in err
    assert (tmp_path / "n.safetensors").read_bytes() == net.read_bytes()


@pytest.mark.slow
def test_two_processes_train_the_same_network_even_if_one_is_killed(net, toy, tmp_path):
    def torchrun(target):
        words = ["protopnet", "train", toy.name, "--data", toy.data, *SHORT, "--validation", 0.2, "-o", target]
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "protonmf_cli", *map(str, words)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    whole, target = tmp_path / "whole.safetensors", tmp_path / "n.safetensors"
    done = torchrun(whole)
    said = done.communicate(timeout=300)[1]
    assert done.returncode == 0, said[-2000:]
    ours, theirs = load_model(net)[0], load_model(whole)[0]
    assert torch.allclose(ours.prototypes, theirs.prototypes, atol=5e-3)
    killed = torchrun(target)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".n.safetensors.work/*/state.safetensors")) and time.monotonic() < deadline:
        time.sleep(0.02)
    psutil.Process(killed.pid).children()[1].kill()
    killed.communicate(timeout=120)
    assert killed.returncode != 0 and not target.exists()
    again = torchrun(target)
    said = again.communicate(timeout=300)[1]
    assert again.returncode == 0 and "goes on after epoch" in said, said[-2000:]
    assert target.read_bytes() == whole.read_bytes()


def test_recipe_paper_keeps_the_original_habits(toy, tmp_path, monkeypatch):
    recipe = PROTOPNET_RECIPES["paper"]
    assert recipe.augmentation.copies == 30 and recipe.head_epochs == 20
    fewer = replace(recipe, head_epochs=2, augmentation=replace(recipe.augmentation, copies=2))
    monkeypatch.setitem(PROTOPNET_RECIPES, "paper", fewer)
    code, out, err = run(
        "protopnet", "train", toy.name, "--data", toy.data, "-o", tmp_path / "n.safetensors", "--recipe", "paper",
        "--epochs", 2, "--warm-epochs", 1, "-p", 2, "--width", 16, "--json",
    )  # fmt: skip
    assert code == 0, err
    assert "selected on the test images" in err
    report = json.loads(out)
    assert [row["stage"] for row in report["epochs"]] == ["warm", "joint", "head", "head"]
    assert report["selected_on"] == "test" and "last_layer" not in report["push"]
    model = load_model(tmp_path / "n.safetensors")[0]
    assert model.card.preprocessing.crop_mode == "squash"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("--patch", "9x9"), 3, "does not fit the latent map of 4 x 4"),
        (("--patch", "x"), 2, "is not of the form HEIGHTxWIDTH"),
        (("--width", "wide"), 2, "neither a number from 1 nor auto"),
        (("-p", 200), 3, "fewer than its 200 prototypes"),
        (("--rate", 1e30), 3, "became NaN or infinite in batch"),
        (("--per-class", "COUNTS"), 3, "'none' of 'red things' is not a number of prototypes"),
        (("--boxes", "COUNTS"), 3, "cannot be read"),
    ],
)  # fmt: skip
def test_bad_words(toy, tmp_path, words, code, sentence):
    (tmp_path / "counts.csv").write_text("red things,none\n")
    words = [str(tmp_path / "counts.csv") if word == "COUNTS" else word for word in words]
    found, _, err = train(toy, tmp_path / "n.safetensors", *words)
    assert (found, sentence in " ".join(err.split())) == (code, True), err
    assert not (tmp_path / "n.safetensors").exists()


def test_numbers_of_prototypes_may_differ(toy, tmp_path):
    (tmp_path / "counts.csv").write_text("blue things,1\n3,4\n")
    code, _, err = train(toy, tmp_path / "n.safetensors", "--per-class", tmp_path / "counts.csv")
    assert code == 0, err
    assert load_model(tmp_path / "n.safetensors")[0].owner.tolist() == [0, 1, 1, 2, 2, 3, 3, 3, 3]


def test_bad_data(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    (data / "train" / "empty").mkdir()
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "n.safetensors", *SHORT)
    assert code == 3 and "has folders without images: empty" in err
    (data / "train" / "empty").rmdir()
    shutil.copy(next((data / "train" / toys.LABELS[0]).iterdir()), data / "val" / toys.LABELS[0] / "leak.png")
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "n.safetensors", *SHORT)
    assert code == 3 and "1 images of val are also in train" in err
    (data / "val" / toys.LABELS[0] / "leak.png").unlink()
    images = sorted((data / "train" / toys.LABELS[0]).iterdir())
    for image in images[1:]:
        image.unlink()
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "n.safetensors", *SHORT)
    assert code == 0 and "classes with one training image: red things" in err
    images[0].write_bytes(b"no image")
    words = ("--max-skipped", 0.5, "--force")
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "n.safetensors", *SHORT, *words)
    assert code == 3 and "class red things has no readable image to train on" in err


def test_refusals_of_trained_files(net, converted, toy, tmp_path):
    code, _, err = run("protopnet", "push", converted, "--data", toy.data, "-o", tmp_path / "x.safetensors")
    assert code == 3 and "holds a protonmf model, not a ProtoPNet" in err
    code, _, err = run("protopnet", "combine", net, "-o", tmp_path / "x.safetensors")
    assert code == 2 and "give two or more files" in err
    code, _, err = run(
        "protopnet", "prune", net, "--data", toy.data, "-o", tmp_path / "x.safetensors", "--nearest", 40, "--least", 40
    )
    assert code == 3 and "pruning would leave no prototype for" in err
    code, _, err = run("protopnet", "prune", net, "--data", toy.data, "-o", tmp_path / "x.safetensors", "--least", 9)
    assert code == 2 and "--least 9 is more than --nearest 6" in err
    assert not (tmp_path / "x.safetensors").exists()
    data = tmp_path / "data"
    shutil.copytree(toy.data, data)
    (data / "train" / toys.LABELS[0]).rename(data / "train" / "other things")
    (data / "val" / toys.LABELS[0]).rename(data / "val" / "other things")
    code, _, err = run("protopnet", "train", toy.name, "--data", data, "-o", tmp_path / "y.safetensors", *SHORT)
    assert code == 0, err
    code, _, err = run("protopnet", "combine", net, tmp_path / "y.safetensors", "-o", tmp_path / "x.safetensors")
    assert code == 3 and "have different classes" in err and "other things" in err


@pytest.mark.parametrize("command", ["push", "prune", "evaluate", "combine"])
@pytest.mark.parametrize("named", [(), ("--model",)])
def test_a_file_is_given_by_its_place_or_by_name(converted, toy, tmp_path, command, named):
    data = () if command == "combine" else ("--data", toy.data)
    output = () if command == "evaluate" else ("-o", tmp_path / "x.safetensors")
    again = (*named, converted) if command == "combine" else ()
    code, out, err = run("protopnet", command, *named, converted, *again, *data, *output)
    assert (code, out) == (3, "") and f"{converted} holds a protonmf model, not a ProtoPNet" in err


def test_a_last_layer_that_does_not_converge_is_refused(net, toy, tmp_path, monkeypatch):
    from protonmf_cli.pipelines.protopnet import push

    real = push.solve_last_layer
    monkeypatch.setattr(push, "solve_last_layer", lambda *words, **more: real(*words, **more, max_iterations=1))
    code, _, err = run("protopnet", "push", net, "--data", toy.data, "-o", tmp_path / "x.safetensors")
    assert code == 4 and "the last layer was not solved: KKT residual" in err
    assert not (tmp_path / "x.safetensors").exists()


def test_an_audit_takes_a_prototype_out_of_its_own_class(net, toy):
    code, out, err = run("audit", "-m", net, "--data", toy.data, "--json")
    assert code == 0, err
    record = json.loads(out)
    one = next(each for each in record["ranking"] if each["transplant"]["flips"]["trials"])
    words = ("intervene", "-m", net, "--class", one["label"], "--zero", one["prototype"], "--data", toy.data)
    after = json.loads(run(*words, "--json")[1])["after"]["accuracy"]
    assert after == pytest.approx(one["without"]["accuracy"][1])
    text = run("audit", "-m", net, "--data", toy.data)[1]
    assert "--everywhere" not in text
