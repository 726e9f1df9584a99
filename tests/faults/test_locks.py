"""Commands that write the same output at once: one of them does, the other says so before it begins."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from protonmf_cli.files.work.folder import WorkFolder
from protonmf_cli.files.work.locks import acquired, claim, claiming, lock_at, lock_path
from toys import run, slow, start

HOLDER = """
import sys
from pathlib import Path
from protonmf_cli.files.work.locks import claim, claiming
with claiming():
    for path in sys.argv[1:]:
        claim(Path(path))
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to `taken` and its like."""
    names = [tmp_path / name for name in ("taken", "taken.png", "taken.xml", "taken.onnx")]
    process = start(*names, program=HOLDER, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


TRAIN = ("protopnet", "train", "NETWORK", "--data", "DATA")
FIT = ("fewshot", "fit", "NETWORK", "--data", "DATA")
OF_MODEL = ("--data", "DATA", "--model", "MODEL")
EVERY = [
    (*TRAIN, "-o", "taken"),
    (*TRAIN, "-o", "free", "--log", "taken"),
    (*TRAIN, "-o", "free", "--figure", "taken.png"),
    (*TRAIN, "-o", "free", "--keep-cycles", "taken"),
    ("protopnet", "push", "MODEL", "--data", "DATA", "-o", "taken"),
    ("protopnet", "prune", "MODEL", "--data", "DATA", "-o", "taken"),
    ("protopnet", "combine", "MODEL", "MODEL", "-o", "taken"),
    ("protopnet", "evaluate", "MODEL", "--data", "DATA", "--figures", "taken"),
    (*FIT, "-o", "taken"),
    (*FIT, "-o", "free", "--figure", "taken.png"),
    ("fewshot", "benchmark", "NETWORK", "--data", "DATA", "-o", "taken"),
    ("fewshot", "interpret", "MODEL", "--figures", "taken"),
    ("intervene", "IMAGE", "--model", "MODEL", "--zero", "1", "-o", "taken"),
    ("name", "MODEL", "--drop", "-o", "taken"),
    ("name", "MODEL", "--vocabulary", "IMAGE", "--tower", "DATA", "-o", "taken"),
    ("report", "--model", "MODEL", "-o", "taken"),
    ("report", "--model", "MODEL", "--folder", "-o", "taken"),
    ("audit", *OF_MODEL, "-o", "taken"),
    ("audit", *OF_MODEL, "--max-shortcuts", "3", "--junit-xml", "taken.xml"),
    ("export", "MODEL", "-o", "taken"),
    ("export", "MODEL", "--format", "onnx", "-o", "taken.onnx"),
    ("evaluate", *OF_MODEL, "--figures", "taken"),
    ("evaluate", *OF_MODEL, "--junit-xml", "taken.xml"),
    ("explain", "IMAGE", "--model", "MODEL", "--figure", "taken.png"),
    ("explain", "IMAGE", "--model", "MODEL", "--html", "taken"),
    ("inspect", "MODEL", "--class", "0", "--figure", "taken.png"),
    ("demo", "taken"),
]


def test_an_output_that_another_command_writes_is_refused_by_every_command(toy, converted, tmp_path, holder):
    named = {"NETWORK": toy.name, "DATA": toy.data, "MODEL": converted, "IMAGE": toy.image(1)}
    for words in EVERY:
        given = [named.get(word, tmp_path / word if "taken" in word or word == "free" else word) for word in words]
        code, out, err = run(*given)
        assert code == 3, (words, err)
        assert "another command is writing" in err and "taken" in err and len(err.splitlines()) == 1, (words, err)
        assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == [
        ".taken.lock",
        ".taken.onnx.lock",
        ".taken.png.lock",
        ".taken.xml.lock",
    ]


def test_what_a_killed_command_left_keeps_nobody_away_and_is_cleared_up(toy, converted, tmp_path, holder):
    (tmp_path / ".taken.png.k3_0zz9q.part").write_bytes(b"half")
    (tmp_path / ".taken.png.more.k3_0zz9q.part").write_bytes(b"of another output")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert (tmp_path / ".taken.png.lock").exists()
    code, _, err = run("explain", toy.image(1), "--model", converted, "--figure", tmp_path / "taken.png")
    assert code == 0, err
    assert sorted(path.name for path in tmp_path.glob("*taken.png*")) == [
        ".taken.png.more.k3_0zz9q.part",
        "taken.png",
    ]


def test_the_lock_outlives_the_work_folder_of_the_same_command(tmp_path):
    output = tmp_path / "m.safetensors"
    with claiming():
        assert claim(output) and not claim(output)
        with WorkFolder(output, "0" * 64) as folder:
            folder.discard()
        assert not _free_elsewhere(output)
    assert _free_elsewhere(output) and not list(tmp_path.iterdir())


def test_a_work_folder_keeps_other_commands_from_its_output(tmp_path):
    output = tmp_path / "m.safetensors"
    with WorkFolder(output, "0" * 64), claiming(), pytest.raises(Exception, match="another command is writing"):
        claim(output)


def _free_elsewhere(output: Path) -> bool:
    """Whether a process without claims gets the lock."""
    code = "import sys\nfrom protonmf_cli.files.work.locks import acquired, lock_at, lock_path, released\n"
    code += "from pathlib import Path\nlock = lock_at(lock_path(Path(sys.argv[1])))\nfree = acquired(lock)\n"
    code += "print(free)\nif free:\n    released(lock)\n"
    return start(output, program=code, stdout=subprocess.PIPE).communicate()[0] == "True\n"


def test_two_names_of_one_file_are_one_output(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    assert lock_path(Path("m.x")) == lock_path(tmp_path / "below" / ".." / "m.x") == tmp_path / ".m.x.lock"
    other = lock_at(tmp_path / ".m.x.lock")
    assert acquired(other)
    with claiming(), pytest.raises(Exception, match="another command is writing"):
        claim(Path("m.x"))
    other.release()


def test_a_disk_without_locks_is_written_to_with_a_warning(toy, converted, tmp_path, monkeypatch):
    def lock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", lock)
    words = ("--figure", tmp_path / "e.png", "--html", tmp_path / "e.html")
    code, _, err = run("explain", toy.image(1), "--model", converted, *words)
    assert code == 0 and err.count("warning:") == 1
    assert "has no file locks (No locks available)" in err and "are not kept apart" in err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "state") == ["e.html", "e.png"]


def test_processes_that_torchrun_started_write_as_one(tmp_path, monkeypatch):
    other = lock_at(lock_path(tmp_path / "m.safetensors"))
    assert acquired(other)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with claiming():
        assert not claim(tmp_path / "m.safetensors")
    monkeypatch.setenv("RANK", "0")
    with claiming(), pytest.raises(Exception, match="another command is writing"):
        claim(tmp_path / "m.safetensors")
    other.release()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "others"),
    [
        ((*FIT, "--shots", "3"), ("--shots", "5")),
        slow((*FIT, "--finetune", "last", "--epochs", "2"), ("--epochs", "3")),
        slow((*TRAIN, "--epochs", "2", "--width", "16", "--batch-size", "8"), ("--epochs", "3")),
    ],
)
def test_two_processes_at_once_leave_one_whole_file(toy, tmp_path, words, others):
    output = tmp_path / "m.safetensors"
    named = {"NETWORK": toy.name, "DATA": toy.data}
    given = [named.get(word, word) for word in words]
    options = {"stderr": subprocess.PIPE, "env": {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}}
    running = [start(*given, *more, "-o", output, "-q", **options) for more in ((), others)]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert sorted(process.returncode for process in running) == [0, 3], said
    loser = next(n for n, process in enumerate(running) if process.returncode)
    assert "another command is writing" in said[loser] or "exists already" in said[loser]
    alone = tmp_path / "alone.safetensors"
    assert run(*given, *((), others)[1 - loser], "-o", alone, "-q")[0] == 0
    assert alone.read_bytes() == output.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} <= {"m.safetensors", "alone.safetensors", "state", "cache"}
