"""Streams that are closed, full or broken, and what names and class labels bring along for a terminal."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from protonmf_cli.cli.app import main
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.errors import InputError, printable
from protonmf_cli.files.store import load_model, save_model
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.output.text.blocks import Row, TextTable
from toys import run, run_into, slow

TITLE = "\x1b]0;owned\x07"
"""Sets the title of a terminal's window."""


def shell(line: str, **more) -> subprocess.CompletedProcess:
    """A line of bash with `protonmf` as a command."""
    program = f"protonmf() {{ '{sys.executable}' -m protonmf_cli \"$@\"; }}; "
    return subprocess.run(["bash", "-c", program + line], capture_output=True, text=True, timeout=120, **more)


@pytest.mark.parametrize("closed", [">&- <&- 2>&-", slow(">&-"), slow(">&- 2>&-"), slow("2>/dev/full")])
def test_a_file_is_written_whatever_is_closed(toy, converted, tmp_path, closed):
    target = tmp_path / "e.safetensors"
    words = f"intervene '{toy.image(0)}' --class 0 --zero 1 --model '{converted}' -o '{target}'"
    done = shell(f"protonmf {words} {closed}")
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert load_model(target)[0].card.edits


@pytest.mark.slow
def test_processes_of_a_conversion_whose_streams_are_closed(toy, tmp_path):
    words = f"convert '{toy.name}' --data '{toy.data}' -p 1 --no-stability --processes 2 -o '{tmp_path}/m.safetensors'"
    assert shell(f"protonmf {words} >&- <&- 2>&-").returncode == 0
    assert load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        slow("explain - --model MODEL <&-", 2),
        ("--version >/dev/full", 3),
        slow("--help >/dev/full", 3),
    ],
)
def test_what_cannot_be_read_or_written_is_one_sentence(converted, words, ends):
    done = shell(f"protonmf {words.replace('MODEL', str(converted))}")
    assert done.returncode == ends
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("words", ["manual convert", "inspect MODEL --json"])
def test_a_reader_that_leaves_is_no_failure(converted, words):
    done = shell(f"set -o pipefail; protonmf {words.replace('MODEL', str(converted))} | true")
    assert (done.returncode, done.stderr) == (0, "")


def test_another_broken_pipe_than_that_of_the_output_is_a_failure(toy, converted, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("protonmf_cli.jobs.intervention.save_model", broken)
    words = [
        "intervene",
        toy.image(0),
        "--class",
        0,
        "--zero",
        1,
        "--model",
        converted,
        "-o",
        tmp_path / "e.safetensors",
    ]
    code, _, err = run(*words)
    assert (code, err.splitlines()[-1]) == (3, "error: the output could not be written or read: Broken pipe.")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_the_manual_is_written_in_every_encoding(encoding):
    content = io.BytesIO()
    with io.TextIOWrapper(content, encoding=encoding, write_through=True) as out:
        assert run_into(out, "manual", "words") == (0, "")
        assert content.getvalue()


# what names bring along


def test_names_are_shown_as_ls_shows_them():
    assert printable("a\x1b[2J\x9b\x7f\t\n\udcff ä€\\.png") == r"a\033[2J\302\233\177\t\n\377 ä€\.png"
    assert printable("\ud800") == r"\355\240\200"
    assert printable("a\nb\r", keep="\n") == "a\nb\\r"


def test_every_text_for_a_terminal_is_escaped():
    out, err = io.StringIO(), io.StringIO()
    name = f":cat: {TITLE}\x9b31m\udcff[bold]"
    table = TextTable(headings=("a", name), rows=(Row(cells=(name, (name, "bold")), last=name, bar=1.0),), scale=1.0)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        shown = Shown(verbose=True)
        for say in (shown.note, shown.log, shown.detail, shown.warn, shown.error):
            say(f"{name}\nerror: not mine")
        shown.text([name])
        shown.lines({name: name})
        show_blocks([(name, (name, "bold")), name, table], shown)
        with shown.progress() as bars:
            bars.stage(name, 2)
            bars.note(name)
    assert err.getvalue().count("\n") == 6
    for text in (out.getvalue(), err.getvalue()):
        assert text.replace("\n", "").isprintable()
        assert r"\033]0;owned" in text and ":cat:" in text and "[bold]" in text


def test_json_holds_no_command_and_no_half_character():
    value = {"name": f"{TITLE}\x9b\x7f\udcff 𝄞 ä"}
    for encoding in ("utf-8", "ascii"):
        content = io.BytesIO()
        with io.TextIOWrapper(content, encoding=encoding, write_through=True) as out, contextlib.redirect_stdout(out):
            Shown(as_json=True).json(value)
            text = content.getvalue().decode(encoding)
        assert text.replace("\n", "").isprintable()
        assert json.loads(text) == {"name": f"{TITLE}\x9b\x7f\\377 𝄞 ä"}


def test_errors_are_text_for_python_too():
    assert str(InputError("a\udcff\x1b.png is gone\nand more")) == "a\\377\\033.png is gone\nand more"


def test_class_names_of_a_model_file_command_no_terminal(toy, converted, tmp_path):
    model, weights = load_model(converted)
    names = tuple(
        ClassName(label=f"{TITLE}{name.label}", description=f"\x1b[31m{name.label}") for name in model.card.classes
    )
    save_model(tmp_path / "m.safetensors", replace(model, card=replace(model.card, classes=names)), weights)
    for words in (
        ["inspect", tmp_path / "m.safetensors", "--class", 0],
        ["explain", toy.image(0), "--model", tmp_path / "m.safetensors"],
        ["intervene", toy.image(0), "--zero", 1, "--model", tmp_path / "m.safetensors"],
    ):
        code, out, err = run(*words)
        assert code == 0 and (out + err).replace("\n", "").isprintable()
        assert r"\033" in out


def test_an_error_names_a_path_without_its_commands(converted):
    code, _, err = run("explain", f"{TITLE}.png", "--model", converted)
    assert (code, err) == (3, r"error: \033]0;owned\007.png cannot be read: No such file or directory." + "\n")


def test_an_error_on_a_full_disk_keeps_its_exit_code(tmp_path):
    with Path("/dev/full").open("w") as full, contextlib.redirect_stderr(full):
        assert main(["explain", "x.png", "--model", str(tmp_path / "none.safetensors")]) == 3
