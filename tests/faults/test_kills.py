"""Commands that are killed anywhere: what stands under its final name is whole, and the next start makes up for it all."""

import os
import random
import re
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from kills import Server

import small_networks
from protonmf_cli.jobs.protopnet import training
from toys import run, slow

TRAIN = ("--epochs", 2, "--warm-epochs", 1, "--cycles", 1, "--batch-size", 8, "-p", 2, "--width", 16, "--device", "cpu")
TUNE = ("--shots", 3, "--device", "cpu", "--finetune", "last", "--epochs", 2)
KILLS = {
    "convert": 5, "convert by two processes": 1, "train": 2, "push": 3, "prune": 5, "combine": 14, "fit": 3,
    "fit and tune": 4, "interpret": 3, "intervene": 15, "report": 8, "report folder": 12, "audit": 3, "export": 14,
    "export graph": 1, "evaluate": 2, "explain": 5, "name": 3,
}  # fmt: skip
NEEDS = {"push": "train", "prune": "train", "combine": "train", "interpret": "fit"}
CLOCKS = re.compile(rb'(time="|"seconds": )[\d.]+')


@dataclass(frozen=True)
class Bench:
    """Processes, what they work on, and what they wrote undisturbed."""

    server: Server
    commands: dict[str, tuple[object, ...]]
    folder: Path
    whole: dict[str, tuple[dict[str, bytes], int, float]]

    def undisturbed(self, name: str) -> tuple[dict[str, bytes], int, float]:
        """Files by their names, how many changes it took to write them, and how many seconds."""
        if name not in self.whole:
            if name in NEEDS:  # what another command writes first
                self.undisturbed(NEEDS[name])
            folder = self.folder / name
            folder.mkdir()
            ended = self.server.run(self.commands[name], folder)
            assert ended.code == 0, (name, ended.said)
            self.whole[name] = files_in(folder), ended.changes, ended.seconds
            assert not [path for path in self.whole[name][0] if "/." in f"/{path}"], self.whole[name][0].keys()
        return self.whole[name]


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file by its name in the folder, without what a clock said."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): CLOCKS.sub(rb"\1", path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def bench(toy, converted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    net, few = folder / "train" / "net.safetensors", folder / "fit" / "few.safetensors"
    data, model = ("--data", toy.data), ("--model", converted)
    commands = {
        "convert": ("convert", toy.name, *data, "-o", "m.safetensors", "-p", 2, "--near", 1),
        "convert by two processes": (
            "convert", toy.name, *data, "-o", "m.safetensors", "-p", 2, "--near", 1, "--processes", 2
        ),
        "train": (
            "protopnet", "train", toy.name, *data, "-o", "net.safetensors", *TRAIN, "--keep-cycles", "cycles",
            "--log", "log.json", "--figure", "curves.png",
        ),
        "push": ("protopnet", "push", net, *data, "-o", "pushed.safetensors"),
        "prune": ("protopnet", "prune", net, *data, "-o", "pruned.safetensors", "--least", 1),
        "combine": ("protopnet", "combine", net, net, "-o", "combined.safetensors"),
        "fit": (
            "fewshot", "fit", toy.name, *data, "-o", "few.safetensors", "--shots", 3, "--device", "cpu",
            "--figure", "plane.png",
        ),
        "fit and tune": ("fewshot", "fit", toy.name, *data, "-o", "few.safetensors", *TUNE),
        "interpret": ("fewshot", "interpret", few, "--figures", "cards"),
        "intervene": ("intervene", toy.image(1), *model, "--class", 0, "--zero", 1, "-o", "edited.safetensors"),
        "report": ("report", *model, *data, "--per-class", 1, "-o", "report.html"),
        "report folder": ("report", *model, *data, "--per-class", 1, "--folder", "-o", "report"),
        "audit": ("audit", *model, *data, "-o", "audit.html", "--max-shortcuts", 30, "--junit-xml", "audit.xml"),
        "export": ("export", converted, "-o", "checkpoint"),
        "export graph": ("export", converted, "--format", "onnx", "-o", "graph.onnx"),
        "evaluate": ("evaluate", *model, *data, "--table", "oracle", "--figures", "figures", "--junit-xml", "e.xml"),
        "explain": ("explain", toy.image(1), *model, "--figure", "e.png", "--html", "e.html"),
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in ("XDG_STATE_HOME", "XDG_CACHE_HOME")}
    os.environ |= {"XDG_STATE_HOME": str(folder / "state"), "XDG_CACHE_HOME": str(folder / "cache")}
    with Server() as server:
        yield Bench(server, commands, folder, {})
    for name, value in before.items():
        os.environ.pop(name, None)
        os.environ |= {} if value is None else {name: value}


def naming(model: Path, folder: Path) -> tuple[object, ...]:
    """The command that names prototypes, whose library is slow to import."""
    (folder / "words.txt").write_text("red\ngreen\nblue")
    words = ("--vocabulary", folder / "words.txt", "--tower", small_networks.clip_folder(folder / "clip"))
    return "name", model, *words, "--min-margin", 0, "-o", "named.safetensors"


def kill_and_start_again(bench: Bench, name: str, seed: int, folder: Path) -> None:
    """One trial: ended by a signal before some change on disk, or at some moment, then started again."""
    whole, changes, seconds = bench.undisturbed(name)
    rng = random.Random(f"{name} {seed}")
    number = rng.choices((signal.SIGKILL, signal.SIGTERM, signal.SIGINT), (8, 1, 1))[0]
    by_clock = rng.random() < 0.2
    at = None if by_clock else rng.randint(1, changes)
    after = rng.uniform(0, seconds) if by_clock else None
    folder.mkdir()
    words = bench.commands[name]
    ended = bench.server.run(words, folder, at=at, after=after, number=number)
    told = (name, seed, number, at, after, ended)
    expected = {signal.SIGKILL: {-9}, signal.SIGTERM: {143, -15}, signal.SIGINT: {130, -2}}[number]
    assert ended.code in expected | ({0} if at is None or ended.changes < at else set()), told
    left = {path: content for path, content in files_in(folder).items() if "/." not in f"/{path}"}
    assert [path for path, content in left.items() if whole.get(path) != content] == [], told
    again = bench.server.run([*words, "--force"] if left else words, folder)
    assert again.code == 0, (told, again)
    found = files_in(folder)
    assert found.keys() == whole.keys(), (told, again, found.keys() ^ whole.keys())
    assert [path for path in whole if whole[path] != found[path]] == [], (told, again)


@pytest.mark.parametrize(("name", "seed"), [slow("intervene", 3), ("report folder", 1), ("export", 2)])
def test_a_killed_command_started_again_gives_the_same_bytes(bench, name, seed, tmp_path):
    kill_and_start_again(bench, name, seed, tmp_path / "folder")


def test_a_cycle_whose_file_was_not_written_is_written_by_the_next_start(toy, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    words = ("protopnet", "train", toy.name, "--data", toy.data, "-o", tmp_path / "n.safetensors", *TRAIN)
    words = (*words, "--keep-cycles", tmp_path / "cycles", "-q")
    with monkeypatch.context() as patch:
        patch.setattr(training, "save_model", killed)
        assert run(*words)[0] == 130
    assert run(*words)[0] == 0
    assert [path.name for path in (tmp_path / "cycles").iterdir()] == ["cycle-1.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLS)
def test_many_kills(bench, name, converted, tmp_path):
    if name == "name":
        bench.commands[name] = naming(converted, tmp_path)
    for seed in range(KILLS[name]):
        kill_and_start_again(bench, name, 100 + seed, tmp_path / str(seed))


@pytest.mark.slow
def test_a_report_is_there_at_every_moment_of_its_replacement(bench, tmp_path):
    words = bench.commands["report folder"]
    older = tmp_path / "older"
    older.mkdir()
    few = [*words[: words.index("--data")], *words[words.index("--folder") :]]
    assert bench.server.run(few, older).code == 0
    old, new = files_in(older), bench.undisturbed("report folder")[0]
    changes = bench.server.run([*words, "--force"], older).changes
    assert files_in(older) == new
    for at in random.Random(0).sample(range(1, changes + 1), 12):
        folder = tmp_path / str(at)
        folder.mkdir()
        assert bench.server.run(few, folder).code == 0
        assert bench.server.run([*words, "--force"], folder, at=at).code == -9
        found = files_in(folder)
        assert any(one.items() <= found.items() for one in (old, new)), at
        assert bench.server.run([*words, "--force"], folder).code == 0
        assert files_in(folder) == new
