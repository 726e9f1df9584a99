"""The examples run, and the README's Python and commands are what the program does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from toys import run

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_example_script(toy, converted):
    script = ROOT / "examples" / "explain_and_edit.py"
    assert len(script.read_text().splitlines()) <= 40
    done = subprocess.run(
        [sys.executable, script, converted, toy.image(0)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "without prototype" in done.stdout


def test_batch_job(toy, tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = [ROOT / "examples" / "batch_job.sh", toy.name, toy.data]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "explanations.jsonl").read_text().splitlines()) == 18
    assert "Evaluation on 18 images" in (tmp_path / "report.html").read_text()


def test_readme_python(toy, converted, tmp_path, monkeypatch):
    (code,) = blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "prototypes.safetensors").write_bytes(converted.read_bytes())
    (tmp_path / "img.jpg").write_bytes(toy.image(0).read_bytes())
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert (tmp_path / "edited.safetensors").is_file()


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"(?:^|[`$&] ?)protonmf ([a-z]+)", README, flags=re.MULTILINE)) - {"turns"})
)
def test_commands_named_in_the_readme_exist(command):
    assert run(command, "--help")[0] == 0


@pytest.mark.parametrize(
    "words", sorted(set(re.findall(r"(?:protonmf(?:_cli)? |`)((?:protopnet|fewshot) [a-z]+)", README)))
)
def test_subcommands_named_in_the_readme_exist(words):
    assert run(*words.split(), "--help")[0] == 0


def test_options_named_in_the_readme_exist(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    commands = ["convert", "explain", "intervene", "evaluate", "report", "inspect", "export", "doctor", "demo"]
    commands += [f"protopnet {c}" for c in ("train", "push", "prune", "combine", "local", "evaluate")]
    commands += [f"fewshot {c}" for c in ("fit", "predict", "interpret", "benchmark")]
    known = " ".join(re.sub(r"\s+", " ", run(*c.split(), "--help")[1]) for c in commands) + "--version"
    scripts = (ROOT / "tests" / "benchmarks").glob("*.py")
    known += " ".join(re.findall(r"--[a-z-]+", " ".join(path.read_text() for path in scripts))) + " --nproc_per_node"
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", README)):
        assert option in known, option


def test_links_and_pictures_of_the_readme_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
