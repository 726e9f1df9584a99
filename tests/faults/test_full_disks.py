"""Disks that are full: one sentence that names the file, and what was there before stays as it was."""

import os
import subprocess
from pathlib import Path

import pytest
from kills import Server

from toys import slow

MOST = 4096
"""Bytes that a file may have: enough for what is said, too little for what is written."""
TRAIN = ("--epochs", 1, "--warm-epochs", 0, "--cycles", 1, "--batch-size", 8, "-p", 2, "--width", 16, "--device", "cpu")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("places")
    before = {name: os.environ.get(name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
    os.environ |= {name: str(folder / name) for name in before}
    with Server() as started:
        yield started
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ |= {} if value is None else {name: value}


def commands(toy, model) -> dict[str, tuple[object, ...]]:
    """Each with the file that it writes."""
    data, of_model = ("--data", toy.data), ("--model", model)
    return {
        "m.safetensors": ("convert", toy.name, *data, "-o", "m.safetensors", "-p", 2, "--near", 1),
        "n.safetensors": ("protopnet", "train", toy.name, *data, "-o", "n.safetensors", *TRAIN),
        "f.safetensors": ("fewshot", "fit", toy.name, *data, "-o", "f.safetensors", "--shots", 2, "--device", "cpu"),
        "e.safetensors": ("intervene", toy.image(1), *of_model, "--class", 0, "--zero", 1, "-o", "e.safetensors"),
        "r.html": ("report", *of_model, "-o", "r.html"),
        "r": ("report", *of_model, "--folder", "-o", "r"),
        "a.html": ("audit", *of_model, *data, "-o", "a.html"),
        "c": ("export", model, "-o", "c"),
        "g.onnx": ("export", model, "--format", "onnx", "-o", "g.onnx"),
        "figures": ("evaluate", *of_model, *data, "--table", "oracle", "--figures", "figures"),
        "x.png": ("explain", toy.image(1), *of_model, "--figure", "x.png"),
        "x.html": ("explain", toy.image(1), *of_model, "--html", "x.html"),
        "d": ("demo"),
    }


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def older(folder: Path, name: str) -> None:
    """What an earlier command left under the name."""
    if name == "r":
        (folder / name / "pictures").mkdir(parents=True)
        (folder / name / "index.html").write_text("an older page")
        (folder / name / "pictures" / "0.jpg").write_bytes(b"its picture")
    elif "." in name:
        (folder / name).write_bytes(b"an older file")


QUICK = ("e.safetensors", "r", "c", "x.png")
LONG = ("m.safetensors", "n.safetensors", "f.safetensors", "r.html", "a.html", "g.onnx", "figures", "x.html")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def check_nothing_changed(ended, before, folder, why):
    assert ended.code == 3, ended
    errors = [line for line in ended.said.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and "Traceback" not in ended.said, ended.said
    assert "could not be written" in errors[0] and why in errors[0], errors
    found = files_in(folder)
    assert before.items() <= found.items()
    assert not {path for path in found.keys() - before.keys() if not path.startswith(".")}


@pytest.mark.parametrize("name", [*QUICK, *(slow(name) for name in LONG)])
def test_files_that_may_not_grow_are_one_sentence_and_change_nothing(server, toy, converted, tmp_path, name):
    older(tmp_path, name)
    before = files_in(tmp_path)
    words = commands(toy, converted)[name]
    ended = server.run([*words, *(() if name == "figures" else ("--force",))], tmp_path, most_bytes=MOST)
    check_nothing_changed(ended, before, tmp_path, "File too large")


@pytest.mark.parametrize("name", [*QUICK[:2], *(slow(name) for name in (*QUICK[2:], *LONG))])
def test_a_full_disk_is_one_sentence_and_changes_nothing(server, toy, converted, small_disk, name):
    older(small_disk, name)
    before = files_in(small_disk)
    words = commands(toy, converted)[name]
    ended = server.run([*words, *(() if name == "figures" else ("--force",))], small_disk)
    check_nothing_changed(ended, before, small_disk, "No space left on device")
