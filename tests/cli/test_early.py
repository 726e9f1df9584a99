"""What is wrong at first sight is said before torch, a network or a model is loaded."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from toys import run

PROGRAM = """
import json, sys
from protonmf_cli.cli.app import main
print(json.dumps([main(words) for words in json.loads(sys.argv[1])]))
heavy = {"torch", "timm", "matplotlib"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_nothing_heavy_is_imported_for_a_refusal(tmp_path):
    image, model, there, data = (tmp_path / name for name in ("i.png", "m.safetensors", "there", "data"))
    for path in (image, model, there):
        path.write_bytes(b"")
    data.mkdir()
    named = ["--model", model]
    commands = [
        ["explain", tmp_path / "no.png", *named],
        ["explain", tmp_path / "no.png", tmp_path / "neither.png", *named],
        ["explain", image],  # without the usual model
        ["explain", model, *named],
        ["explain", image, *named, "--png", there],
        ["explain", image, *named, "--html", tmp_path / "no folder" / "p.html"],
        ["intervene", image, *named, "--zero", 1, "-o", there],
        ["intervene", image, *named, "--zero", 1, "-o", model],
        ["intervene", tmp_path / "no.png", *named, "--zero", 1],
        ["intervene", *named, "--zero", 1, "--class", 0, "--data", tmp_path / "no"],
        ["evaluate", "--data", tmp_path / "no", *named],
        ["evaluate", "--data", data, *named, "--junit-xml", there],
        ["audit", "--data", data, "--model", tmp_path / "none"],
        ["report", *named, "-o", there],
        ["report", *named, "--images", tmp_path / "no.png", "-o", tmp_path / "r.html"],
        ["inspect", tmp_path / "none.safetensors"],
        ["name", tmp_path / "none.safetensors", "--vocabulary", image, "--tower", data],
        ["name", *named, "--vocabulary", image, "--tower", data, "-o", there],
        ["name", *named, "--drop", "-o", model],
        ["name", *named, "--vocabulary", image],
        ["export", tmp_path / "none.safetensors", "-o", tmp_path / "n"],
        ["push", tmp_path / "none.safetensors", "org/name"],
        ["convert", "resnet18", "--data", tmp_path / "no"],
        ["convert", "resnet18", "--data", data, "-o", there],
        ["protopnet", "train", "resnet18", "--data", tmp_path / "no"],
        ["protopnet", "push", tmp_path / "none", "--data", data, "-o", tmp_path / "p"],
        ["protopnet", "prune", "--model", tmp_path / "none", "--data", data, "-o", tmp_path / "p"],
        ["protopnet", "combine", tmp_path / "none", "--model", model, "-o", tmp_path / "p"],
        ["protopnet", "evaluate", *named, "--data", tmp_path / "no"],
        ["protopnet", "local", tmp_path / "no.png", *named],
        ["fewshot", "fit", "resnet18", "--data", tmp_path / "no"],
        ["fewshot", "predict", tmp_path / "no.png", *named],
        ["fewshot", "interpret", tmp_path / "none"],
        ["fewshot", "benchmark", "resnet18", "--data", tmp_path / "no"],
    ]
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    codes = json.loads(done.stdout)
    assert {
        " ".join(map(str, command)): code for command, code in zip(commands, codes, strict=True) if code not in (2, 3)
    } == {}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("explain", "IMAGE", "--png", "THERE"), "exists already. Give another name with --figure, or --force"),
        (("explain", "IMAGE", "--html", "THERE"), "exists already. Give another name with --html, or --force"),
        (("explain", "MODEL"), "is a model file, not an image: give it with --model"),
        (("explain", "IMAGE", "MODEL"), "is a model file, not an image: give it with --model"),
        (("intervene", "IMAGE", "--zero", 1, "-o", "THERE"), "exists already. Give another name with -o, or --force"),
        (("inspect", "--class", 0, "--png", "THERE"), "exists already. Give another name with --figure, or --force"),
        (("evaluate", "--data", "DATA", "--junit-xml", "THERE"), "Give another name with --junit-xml, or --force"),
        (("report", "-o", "THERE"), "exists already. Give another name with -o, or --force"),
    ],
)
def test_a_refusal_names_the_option_that_there_is(toy, converted, tmp_path, monkeypatch, words, sentence):
    there = tmp_path / "there.png"
    there.write_bytes(b"mine")
    monkeypatch.setenv("PROTONMF_MODEL", str(converted))
    named = {"IMAGE": toy.image(0), "MODEL": converted, "THERE": there, "DATA": toy.data}
    code, out, err = run(*(named.get(word, word) for word in words))
    assert (code, out) == (3, "") and sentence in err
    assert there.read_bytes() == b"mine"


def test_several_images_of_which_some_exist_are_explained_as_far_as_they_do(toy, converted):
    code, out, err = run("explain", "no.png", toy.image(0), "--model", converted, "--jsonl")
    assert (code, len(out.splitlines())) == (6, 1) and "no.png cannot be read" in err


def test_what_is_named_instead_is_said(toy, converted, tmp_path):
    graph = tmp_path / "model.onnx"
    graph.write_bytes(b"\x08\x07\x12\x04" * 40)
    code, _, err = run("explain", toy.image(0).parent, "--model", converted)
    assert code == 3 and "it is a folder; name the images in it (FOLDER/*.jpg)" in err
    code, _, err = run("explain", toy.image(0), "--model", graph)
    assert code == 3 and "model.onnx is a graph, as `protonmf export` writes them" in err
    words = ("convert", toy.name, "--data", toy.data, "--dry-run", "-o")
    code, _, err = run(*words, tmp_path / "none" / "m.safetensors")
    assert code == 3 and "none of the output does not exist. Create it first" in err
    (tmp_path / "there.safetensors").write_bytes(b"")
    assert run(*words, tmp_path / "there.safetensors")[0] == 0


def test_a_class_without_prototypes_names_whose_there_are(toy, tmp_path):
    few = tmp_path / "few"
    for label in ("red", "green"):
        name = next(path.name for path in (toy.data / "train").iterdir() if label in path.name)
        shutil.copytree(toy.data / "train" / name, few / name)
    file = tmp_path / "few.safetensors"
    assert run("convert", toy.name, "--data", few, "-p", 2, "-o", file, "-q")[0] == 0
    words = ("intervene", toy.image(0), "--class", "blue things", "--model", file)
    code, _, err = run(*words, "--zero", 1)
    assert code == 3
    assert "blue things has no prototypes of its own in this model; its rows are of other classes" in err
    (example,) = re.findall(r"e\.g\. --zero '(\w+ things:0)'\.$", err.strip())
    assert run(*words, "--zero", example)[0] == 0
    code, _, err = run(*words, "--zero", example.replace(":0", ":1"))
    assert code == 3 and f"It weighs {example[:-2]} as a whole: --zero '{example}'. Give --everywhere to take" in err
    code, _, err = run(*words, "--zero", "blue things:1", "--everywhere")
    assert code == 3 and "blue things has no prototypes of its own" in err


def test_what_a_command_reads_is_not_replaced_by_what_it_writes(toy, converted, tmp_path):
    model, image = shutil.copy(converted, tmp_path / "m.safetensors"), shutil.copy(toy.image(0), tmp_path / "a.png")
    network = shutil.copytree(toy.network, tmp_path / "network")
    labels = tmp_path / "map.csv"
    labels.write_text("red things,red things\n")
    of_data, explained = ("--data", toy.data, "-m", model), ("explain", image, "-m", model)
    calls = {
        "-o": [
            ("report", *of_data, "-o", model), ("audit", *of_data, "-o", model), ("export", model, "--format", "onnx", "-o", model),
            ("convert", f"local-dir:{network}", "--data", toy.data, "-o", network / "model.safetensors"),
            ("convert", network, "--data", toy.data, "-o", network / "model.safetensors"),
        ],
        "--html": [(*explained, "--html", model)],
        "--figure": [(*explained, "--figure", image), ("explain", image, toy.image(1), "-m", model, "--figure", tmp_path)],
        "--junit-xml": [("evaluate", *of_data, "--class-map", labels, "--min-accuracy", 0.1, "--junit-xml", labels)],
    }  # fmt: skip
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for option, listed in calls.items():
        for words in listed:
            code, out, err = run(*words, "--force")
            assert (code, out) == (2, "") and f"{option} must not be " in err and "which this command reads" in err, err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_device_or_pipe_is_never_replaced(toy, converted, tmp_path):
    os.mkfifo(tmp_path / "pipe.html")
    code, _, err = run("report", "--data", toy.data, "-m", converted, "-o", tmp_path / "pipe.html", "--force")
    assert code == 3 and "is a device or a pipe, which is never replaced" in err
    assert (tmp_path / "pipe.html").is_fifo()


def test_numbers_that_nobody_counts_to(toy, converted):
    code, _, err = run("explain", toy.image(0), "-m", converted, "--class", "9" * 5000)
    assert code == 3 and "no class of the model is called" in err
    code, _, err = run("intervene", toy.image(0), "-m", converted, "--zero", "9" * 5000)
    assert code == 2 and "is not a prototype number" in err
    many, net = "9" * 5000, ("--data", toy.data, "-o", "never.safetensors")
    for words, sentence in (
        (("convert", toy.name, *net, "-p", many), "is neither a number from 1 nor auto"),
        (("convert", toy.name, *net, "--share", f"1/{many}"), "is neither I/N"),
        (("evaluate", "--data", toy.data, "-m", converted, "--counts", many), "is not a list of numbers from 1"),
        (("protopnet", "train", toy.name, *net, "--width", many), "is neither a number from 1 nor auto"),
        (("protopnet", "train", toy.name, *net, "--patch", f"1x{many}"), "is not of the form HEIGHTxWIDTH"),
        (("fewshot", "benchmark", toy.name, "--data", toy.data, "--ways", many), "is not a list of numbers from 2"),
    ):
        code, _, err = run(*words)
        assert code == 2 and sentence in err, err[-300:]
    code, _, err = run("explain", toy.image(0), "-m", converted, "--threads", 100_000)
    assert code == 2 and "threads" in err and "1024" in err


def test_the_current_folder_is_gone(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); from protonmf_cli.__main__ import run; raise SystemExit(run())"
    done = subprocess.run([sys.executable, "-c", script, "doctor"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "error: the current folder is not there any more; change to another one.\n"
