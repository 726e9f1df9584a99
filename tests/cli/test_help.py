"""Every command's help at 80 columns: by topic, nothing cut, with an example that its parser takes."""

import inspect
import shlex

import pytest
import typer

from protonmf_cli.cli.app import app
from protonmf_cli.cli.help import EXAMPLE, OTHERS, TOPICS, topic_of
from toys import run

ROOT = typer.main.get_command(app).commands
COMMANDS = {
    (*above, name): command
    for above, commands in (((), ROOT), *(((group,), ROOT[group].commands) for group in ("protopnet", "fewshot")))
    for name, command in commands.items()
    if not hasattr(command, "commands")
}
each_command = pytest.mark.parametrize("words", COMMANDS, ids=" ".join)


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@each_command
def test_help_is_whole_at_80_columns(words):
    code, out, err = run(*words, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80 and "…" not in out
    assert not [line for line in out.splitlines() if line.endswith("-")]
    for parameter in COMMANDS[words].params:
        if parameter.param_type_name == "option":
            for name in (*parameter.opts, *parameter.secondary_opts):
                assert name in out.split() or f"{name}," in out.split(), name


@each_command
def test_every_option_is_under_a_topic(words):
    names = {p.name for p in COMMANDS[words].params if p.param_type_name == "option"} - {"help"}
    assert {name for name in names if topic_of(name) == OTHERS} == set()


def test_topics_name_options_that_there_are():
    known = {p.name for command in COMMANDS.values() for p in command.params}
    assert {name for names in TOPICS.values() for name in names} <= known


@each_command
def test_an_example_is_shown_and_understood(words):
    example = inspect.cleandoc(COMMANDS[words].help).partition(EXAMPLE)[2]
    assert f"Example:\n  $ {example}\n" in run(*words, "--help")[1]
    program, *rest = shlex.split(example)
    assert (program, tuple(rest[: len(words)])) == ("protonmf", words)
    COMMANDS[words].make_context("protonmf", rest[len(words) :])
