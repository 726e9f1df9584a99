"""The examples run, and what README, manual and results say is what the program does."""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
import yaml

import small_networks
from protonmf_cli import errors
from protonmf_cli.cli.app import app
from protonmf_cli.cli.manual import about
from protonmf_cli.cli.signals import ENDS
from toys import Toy, run

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
MANUAL = sorted((ROOT / "protonmf_cli" / "manual").glob("*.md"))
RESULTS = ROOT / "tests" / "benchmarks" / "RESULTS.md"
DOCUMENTS = {path.stem: path for path in (README, *MANUAL, RESULTS)}
TEXT = {name: path.read_text(encoding="utf-8") for name, path in DOCUMENTS.items()}
COMMANDS = typer.main.get_command(app).commands
GROUPS = ("protopnet", "fewshot")
TOO_LONG = {"demo", "protopnet train", "fewshot benchmark"}
"""Read, not run: their own tests run them."""
SHORTER = {"fewshot fit": ["--shots", "5", "-p", "1", "--anchor", "1"]}
"""Added to a document's command where it is run, after its own options."""
HERE = {
    "revolver": "red things",
    "seven": "red things",
    "tagged": "val",
    "protonmf-demo/data/val/eight/0028.png": "img.jpg",
}
"""What a document names -> what the toy has."""

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def commands_in(words: list[str]) -> list[list[str]]:
    """The calls of protonmf in a line of shell, without program name, redirections and the other programs."""
    calls: list[list[str]] = [[]]
    for word in words:
        if word in {"&&", "|", ";"}:
            calls.append([])
        else:
            calls[-1].append(word)
    cut = (call[: call.index(">")] if ">" in call else call for call in calls)
    return [call[1:] for call in cut if call and call[0] == "protonmf"]


def shown_commands(text: str) -> list[list[str]]:
    """What the document shows in blocks, to be typed: every line of shell, and lines that begin with a prompt."""
    shell = "\n".join([*fenced(text, "sh"), *fenced(text, "bash")])
    typed = "\n".join(re.findall(r"^\$ ((?:.*\\\n)*.*)", "\n".join(fenced(text, "text")), flags=re.MULTILINE))
    lines = re.sub(r"\\\n", " ", f"{shell}\n{typed}").splitlines()
    return [call for line in lines for call in commands_in(shlex.split(line, comments=True))]


def named_commands(text: str) -> list[list[str]]:
    """Commands in the running text and in tables, with the program's name or a group's."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    wanted = [f"protonmf {s}" if s.startswith(tuple(f"{g} " for g in GROUPS)) else s for s in spans]
    found = [call for span in wanted if "protonmf " in span for call in commands_in(shlex.split(span))]
    return [call for call in found if call not in ([group] for group in GROUPS)]


def parsed(words: list[str]) -> tuple[str, dict]:
    """Name and parameters of a command line, by the program's own parser, which raises where it does not fit."""
    known, depth = (COMMANDS[words[0]].commands, 2) if words[0] in GROUPS else (COMMANDS, 1)
    assert words[depth - 1] in known, f"there is no command {' '.join(words[:depth])}"
    context = known[words[depth - 1]].make_context("protonmf", list(words[depth:]))
    return " ".join(words[:depth]), context.params


def lacks_something(failure: Exception) -> bool:
    return type(failure).__name__ == "MissingParameter"


@pytest.fixture
def workshop(toy: Toy, converted: Path, tmp_path: Path, monkeypatch) -> Iterator[Path]:
    """A folder where everything that the documents name is there: networks, data, images, a model."""
    for network in ("mobilenetv2", "deit_tiny", "vit_base_patch32", "mine", "protonmf-demo/network", "planted/network"):
        shutil.copytree(toy.network, tmp_path / network)  # a document may write there
    for data in ("imagenet", "caltech24", "my-images", "protonmf-demo/data", "planted/data", "DIR"):
        (tmp_path / data).symlink_to(toy.data)
    for model in ("prototypes.safetensors", "protonmf-demo/prototypes.safetensors"):
        (tmp_path / model).write_bytes(converted.read_bytes())
    (tmp_path / "img.jpg").write_bytes(toy.image(0).read_bytes())
    (tmp_path / "words.txt").write_text("curved neck\nlong legs\nwater\n")
    small_networks.clip_folder(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    _write_own_network(tmp_path)
    yield tmp_path
    sys.modules.pop("mynetworks", None)


def _write_own_network(folder: Path) -> None:
    """The module that the page about networks begins, with what it leaves to the reader, and a checkpoint."""
    shown = next(code for code in fenced(TEXT["networks"], "python") if "mynetworks.py" in code)
    (folder / "mynetworks.py").write_text(
        "from torch import nn\n\n"
        "class Mean(nn.Module):\n    def forward(self, found):\n        return found.mean(dim=(2, 3))\n\n"
        "def MyNetwork(classes):\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 16, 16), nn.ReLU(), Mean(), nn.Linear(8, classes))\n\n" + shown
    )
    made = runpy.run_path(str(folder / "mynetworks.py"))["build"]()
    torch.save(
        {"state_dict": {f"model.{name}": each for name, each in made.state_dict().items()}}, folder / "last.ckpt"
    )


def test_example_script(toy, monkeypatch, capsys, tmp_path):
    script = ROOT / "examples" / "explain_and_edit.py"
    assert len(script.read_text().splitlines()) <= 60
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script), toy.name, str(toy.data), str(toy.image(0))])
    runpy.run_path(str(script), run_name="__main__")
    said = capsys.readouterr().out
    assert "without prototype" in said and "gives its logits" in said
    assert (tmp_path / "edited" / "model.safetensors").is_file()


@pytest.mark.slow
def test_batch_job(toy, tmp_path):
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    words = [ROOT / "examples" / "batch_job.sh", toy.name, toy.data]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "explanations.jsonl").read_text().splitlines()) == 18
    assert "Evaluation on 18 images" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("page", "name"), [("batch-jobs", "batch_job.sh"), ("machines", "slurm_array.sh")])
def test_the_manual_shows_the_scripts_of_the_examples(page, name):
    (script,) = fenced(TEXT[page], "bash")
    assert script == (ROOT / "examples" / name).read_text()


def test_readme_is_short():
    assert len(TEXT["README"].splitlines()) <= 150
    for code in fenced(TEXT["README"], "python"):
        assert len([line for line in code.splitlines() if line.strip()]) <= 14


@pytest.mark.parametrize("name", [name for name, text in TEXT.items() if "```python" in text])
def test_python_runs(name, workshop):
    """The blocks of a document go on from each other."""
    if name == "export":  # its block goes on from the commands
        run_all(name)
    names: dict = {}
    for code in fenced(TEXT[name], "python"):
        exec(compile(code, name, "exec"), names)
    if name == "README":
        assert (workshop / "edited.safetensors").is_file()


def run_all(name: str) -> int:
    """Run what a document shows, from top to bottom, after an explanation that it can go on from."""
    assert run("explain", "img.jpg")[0] == 0
    count = 0
    for call in shown_commands(TEXT[name]):
        words = [HERE.get(word, word) for word in call]
        command, parameters = parsed(words)
        if command in TOO_LONG or "$" in "".join(words) or "-" in words:
            continue
        words += SHORTER.get(command, [])
        words += ["--force"] * ("force" in parameters and command != "inspect")
        code, out, err = run(*words)
        assert code == 0, (call, err)
        assert out or err, call
        count += 1
    return count


@pytest.mark.parametrize("name", [n for n, text in TEXT.items() if n != "RESULTS" and shown_commands(text)])
def test_shown_commands_run(name, workshop):
    ran = run_all(name)
    assert ran or all(parsed(call)[0] in TOO_LONG for call in shown_commands(TEXT[name])) or name == "batch-jobs"


@each_document
def test_commands_fit_the_program(name):
    for call in shown_commands(TEXT[name]):
        parsed(call)
    for call in named_commands(TEXT[name]):
        try:
            parsed(call)
        except Exception as failure:  # in the running text a command may lack its arguments
            if not lacks_something(failure):
                raise


def test_every_command_is_in_the_readme_and_in_the_manual():
    rows = re.findall(r"^\| (`.*?) \|", TEXT["README"], flags=re.MULTILINE)
    listed = set()
    for row in rows:
        group, *_ = first = re.findall(r"[a-z]+", row)
        listed |= {f"{group} {word}" for word in first[1:]} if group in GROUPS else set(first)
    known = {f"{n} {sub}" for n in GROUPS for sub in COMMANDS[n].commands} | {n for n in COMMANDS if n not in GROUPS}
    assert listed == known
    manual = "\n".join(TEXT[path.stem] for path in MANUAL)
    for command in known - {"manual"}:
        assert f"protonmf {command}" in manual or f"`{command} " in manual, command


@each_document
def test_options_exist(name):
    known = {"--version", "--nproc_per_node", "--check"}  # the last two are torchrun's and ruff's
    known |= {"--array", "--gpus", "--cpus-per-task", "--requeue", "--ntasks"}  # Slurm's
    leaves = [
        leaf for n, command in COMMANDS.items() for leaf in (command.commands.values() if n in GROUPS else [command])
    ]
    known |= {option for leaf in leaves for p in leaf.params for option in (*p.opts, *p.secondary_opts)} | {"--help"}
    if name == "RESULTS":
        scripts = (ROOT / "tests" / "benchmarks").glob("*.py")
        known |= set(re.findall(r"--[a-z][\w-]+", "".join(path.read_text() for path in scripts)))
    assert set(re.findall(r"(?<![\w-])--[a-z][\w-]+", TEXT[name])) <= known


@each_document
def test_links_and_paths_exist(name):
    for target in re.findall(r"\]\((?!http)([^)#]+)(?:#[^)]*)?\)", TEXT[name]):
        assert (DOCUMENTS[name].parent / target).exists(), target
    for path in re.findall(r"`?\b((?:protonmf_cli|tests|examples)/[\w./-]+)", TEXT[name]):
        assert (ROOT / path.rstrip(".")).exists(), path
    for anchor in re.findall(r"\]\(tests/benchmarks/RESULTS\.md#([^)]+)\)", TEXT[name]):
        titles = re.findall(r"^#+ (.+)", TEXT["RESULTS"], flags=re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_exit_codes_are_the_programs():
    told = re.findall(r"^\| ([\d, ]+) \|", TEXT["batch-jobs"], flags=re.MULTILINE)
    kinds = {getattr(errors, name) for name in vars(errors) if name.endswith("Error")}
    codes = {kind.exit_code for kind in kinds} | {0, 1, 6, *(128 + n for n in ENDS)}  # 6: of explain, some images
    assert {int(code) for cell in told for code in cell.split(",")} == codes


@each_document
def test_topics_exist(name):
    pages = {path.stem for path in MANUAL}
    assert set(re.findall(r"protonmf\s+manual\s+([a-z][a-z-]+)", TEXT[name])) <= pages


def test_what_holds_a_line_about_security_exists():
    """Every row of the page names tests, and these are there."""
    rows = [
        row for row in re.findall(r"^\| (.+) \| (.+) \|$", TEXT["security"], flags=re.MULTILINE) if row[1] != "test"
    ]
    assert len(rows) > 15
    for said, held in rows:
        files = re.findall(r"(tests/[\w/]+\.py)", held)
        assert files, said
        code = "".join((ROOT / path).read_text(encoding="utf-8") for path in files)
        for name in re.findall(r"\b(test_\w+)(?!\w*\.py)", held):
            assert f"def {name}(" in code, (said, name)


def test_every_measurement_has_its_command():
    """Each section of the results names what made its figures."""
    sections = re.split(r"^## ", TEXT["RESULTS"], flags=re.MULTILINE)[1:]
    assert len(sections) >= 8
    for section in sections:
        assert re.search(r"python tests/benchmarks/\w+\.py|protonmf [a-z]+ ", section), section.partition("\n")[0]


def test_manual_lists_every_page():
    code, out, _ = run("manual")
    assert code == 0
    told = " ".join(out.split())
    for path in MANUAL:
        title, sentence = TEXT[path.stem].splitlines()[0], about(TEXT[path.stem])
        assert title.startswith("# ")
        assert re.fullmatch(r"[A-Z][^\n]*\.", sentence), path
        assert f"{path.stem} {sentence}" in told
    assert len(MANUAL) >= 15


def test_manual_shows_a_page_as_it_is_where_no_terminal_is():
    for path in MANUAL:
        assert run("manual", path.stem) == (0, TEXT[path.stem], "")


def test_manual_draws_a_page_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    from protonmf_cli.cli.manual import manual

    manual("data")
    out = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert "# Data" not in out
    assert "Which split" in out
    assert "• a folder of class folders" in out


@pytest.mark.parametrize(
    ("word", "near"), [("protonet", "protopnet"), ("Report", "report"), ("few-shot", "fewshot"), ("qqq", None)]
)
def test_unknown_topic(word, near):
    code, out, err = run("manual", word)
    assert code == 2
    assert not out
    assert f"no topic '{word}'" in err
    assert "`protonmf manual` lists the topics" in err
    assert ("Did you mean" in err) == (near is not None)
    assert near is None or near in err


def test_manual_is_in_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "manual/*.md" in data["protonmf_cli"]


def test_manual_needs_nothing_heavy():
    code = "import sys; from protonmf_cli.cli.app import main; main(['manual', 'data']); print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "# Data" in done.stdout
    assert not {"torch", "timm", "numpy", "scipy", "PIL"} & set(done.stdout.splitlines()[-1].split())


def test_the_versions_of_changelog_and_citation_are_those_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = re.findall(r"^## (\S+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert versions[0] == "Unreleased"
    assert versions[1] == project["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


def test_one_extra_holds_all_others_for_users():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    everything = extras.pop("all")
    assert everything == [f"protonmf[{','.join(sorted(extras.keys() - {'rivals', 'test'}))}]"]
