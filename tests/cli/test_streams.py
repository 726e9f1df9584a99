"""Standard input line by line, readers that go away, and settings of the process that must change nothing."""

import contextlib
import io
import json
import os
import subprocess
import sys

import pytest

from protonmf_cli.cli.app import main
from toys import run, run_into, slow


class Lines:
    """Standard input whose next line comes when something was said."""

    def __init__(self, out, *lines):
        self.out, self.lines = out, lines

    def __iter__(self):
        for n, line in enumerate(self.lines):
            assert self.out.getvalue().count("\n") >= n, "the next line was read before the answer to the last one"
            yield f"{line}\n"


@contextlib.contextmanager
def unread():
    """A stream that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        yield gone


def test_explain_answers_each_line_before_the_next_is_read(toy, converted, monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr("sys.stdin", Lines(out, toy.image(0), toy.image(1), toy.image(2)))
    code, err = run_into(out, "explain", "-", "--model", converted, "--jsonl")
    assert code == 0, err
    assert [json.loads(line)["image"] for line in out.getvalue().splitlines()] == [str(toy.image(c)) for c in range(3)]


def test_a_line_that_cannot_be_explained_is_named_and_the_next_ones_are(toy, converted, monkeypatch, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / f"{toy.image(0).stem}.png").write_bytes(b"mine")
    monkeypatch.setattr("sys.stdin", iter([f"{toy.image(0)}\n", "\n", "nothing.png\n", f"{toy.image(3)}\n"]))
    code, out, err = run("explain", "-", "--model", converted, "--jsonl", "--png", folder)
    assert (code, len(out.splitlines())) == (6, 1)
    assert "exists already. Give another name with --figure" in err and "nothing.png cannot be read" in err
    assert (folder / f"{toy.image(0).stem}.png").read_bytes() == b"mine"


def test_pictures_of_standard_input_go_to_a_folder(toy, converted, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.stdin", iter([f"{toy.image(0)}\n"]))
    code, out, err = run("explain", "-", "--model", converted, "--png", tmp_path / "one.png")
    assert (code, out) == (2, "") and "the images come one by one: give a folder" in err


@pytest.mark.parametrize("where", ["both", slow("out"), slow("err")])
def test_files_are_written_whoever_stops_reading(toy, converted, tmp_path, where):
    words = ["explain", toy.image(0), toy.image(1), "--model", converted, "--html", tmp_path / "p.html"]
    words += ["--png", tmp_path / "pictures"]
    edit = ["intervene", toy.image(0), "--class", 0, "--zero", 1, "--model", converted]
    edit += ["-o", tmp_path / "e.safetensors"]
    for each in (words, edit):
        with (
            unread() as gone,
            contextlib.redirect_stdout(io.StringIO() if where == "err" else gone),
            contextlib.redirect_stderr(io.StringIO() if where == "out" else gone),
        ):
            assert main([str(word) for word in each]) == 0
    assert (tmp_path / "p.html").is_file() and (tmp_path / "e.safetensors").is_file()
    assert len(list((tmp_path / "pictures").iterdir())) == 2


def test_every_command_that_writes_does_so_whoever_reads(toy, converted, tmp_path):
    commands = {
        "c.safetensors": ["convert", toy.name, "--data", toy.data, "-p", 1, "--near", 0, "--no-stability"],
        "r.html": ["report", "--model", converted],
        "network": ["export", converted],
    }
    for name, words in commands.items():
        with unread() as gone, contextlib.redirect_stdout(gone), contextlib.redirect_stderr(gone):
            assert main([*map(str, words), "-o", str(tmp_path / name)]) == 0
        assert (tmp_path / name).exists()


def test_a_gate_is_not_passed_because_nobody_reads(toy, converted):
    with unread() as gone:
        code, err = run_into(gone, "evaluate", "--data", toy.data, "--model", converted, "--max-residual-share", -50)
    read = run("evaluate", "--data", toy.data, "--model", converted, "--max-residual-share", -50)
    assert (code, err.splitlines()[-1]) == (read[0], read[2].splitlines()[-1])


def test_without_files_explaining_stops_when_nobody_reads(toy, converted, monkeypatch):
    def lines():
        for _ in range(3):
            yield f"{toy.image(0)}\n"
        raise AssertionError("it went on")

    monkeypatch.setattr("sys.stdin", lines())
    with unread() as gone:
        assert run_into(gone, "explain", "-", "--model", converted) == (0, "")


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path):
    with unread() as gone, contextlib.redirect_stderr(gone):
        assert main(["explain", "x.png", "--model", str(tmp_path / "none.safetensors")]) == 3


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_changes_no_numbers(toy, converted, encoding, tmp_path):
    image = tmp_path / "bär.png"
    image.write_bytes(toy.image(0).read_bytes())
    said = []
    for each in (encoding, "utf-8"):
        content = io.BytesIO()
        with io.TextIOWrapper(content, encoding=each, write_through=True) as out:
            assert run_into(out, "explain", image, "--model", converted, "--json")[0] == 0
            said.append(json.loads(content.getvalue().decode(each)))
            assert run_into(out, "explain", image, "--model", converted)[0] == 0
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_file_is_there_whatever_reads_the_output(toy, converted, tmp_path, unbuffered):
    target = tmp_path / "edited.safetensors"
    words = ["intervene", toy.image(0), "--class", 0, "--zero", 1, "--model", converted, "-o", target]
    line = " ".join(f"'{word}'" for word in (sys.executable, "-m", "protonmf_cli", *words))
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    shell = ["bash", "-c", f"set -o pipefail; {line} 2>&1 | head -1"]
    done = subprocess.run(shell, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and target.is_file()


@pytest.mark.slow
def test_settings_of_the_interpreter_change_no_byte(toy, converted, tmp_path):
    target = tmp_path / "again.safetensors"
    words = ["convert", toy.name, "--data", toy.data, "-o", target, "-p", 2, "--near", 1, "-q"]
    settings = {"PYTHONHASHSEED": "7", "PYTHONUNBUFFERED": "1", "PYTHONOPTIMIZE": "1", "LC_ALL": "C", "COLUMNS": "40"}
    line = [sys.executable, "-m", "protonmf_cli", *map(str, words)]
    subprocess.run(line, env=os.environ | settings, check=True, timeout=300)
    assert target.read_bytes() == converted.read_bytes()
