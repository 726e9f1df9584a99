"""Table of commands, and the one place where an error becomes a sentence and an exit code."""

import functools
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from inspect import unwrap
from typing import Annotated, Any

import typer

from protonmf_cli import __version__, jobs
from protonmf_cli.cli.audit import audit
from protonmf_cli.cli.console import drop, say
from protonmf_cli.cli.convert import convert
from protonmf_cli.cli.demo import demo
from protonmf_cli.cli.doctor import doctor
from protonmf_cli.cli.evaluate import evaluate
from protonmf_cli.cli.explain import explain
from protonmf_cli.cli.export import export
from protonmf_cli.cli.fewshot.benchmark import benchmark
from protonmf_cli.cli.fewshot.fit import fit
from protonmf_cli.cli.fewshot.interpret import interpret
from protonmf_cli.cli.fewshot.predict import predict
from protonmf_cli.cli.groups import with_groups
from protonmf_cli.cli.help import HelpfulCommand
from protonmf_cli.cli.inspect import inspect
from protonmf_cli.cli.intervene import OrderedCommand, intervene
from protonmf_cli.cli.manual import manual
from protonmf_cli.cli.naming import name
from protonmf_cli.cli.protopnet.analyse import evaluate as evaluate_protopnet
from protonmf_cli.cli.protopnet.analyse import local
from protonmf_cli.cli.protopnet.edit import combine, prune, push
from protonmf_cli.cli.protopnet.train import train
from protonmf_cli.cli.push import push as push_to_hub
from protonmf_cli.cli.report import report
from protonmf_cli.cli.signals import Stopped, exit_code, heeded
from protonmf_cli.errors import InputError, ProtonmfError

RESUMABLE = (convert, train, fit)

GROUPS = {
    "protopnet": (
        "ProtoPNet (Chen et al. 2019): train, push, prune, combine and evaluate; its files work in explain, "
        "intervene, evaluate and inspect.",
        (train, push, prune, combine, evaluate_protopnet, local),
    ),
    "fewshot": (
        "The few-shot prototype model: soft prototypes on a frozen network and a sparse layer from prototypes to "
        "classes; its files work in explain, intervene, evaluate and inspect.",
        (fit, predict, interpret, benchmark),
    ),
}
"""What `protonmf NAME` helps with, and its subcommands."""

app = typer.Typer(
    name="protonmf",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Turn a trained image classifier into a prototype model that shows what each decision is made of, "
    "with its accuracy untouched.",
)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose known failures end in one sentence on stderr; a bug keeps its traceback."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with heeded(), _alone(command):
                command(*args, **kwargs)
                _flush()
        except ProtonmfError as failure:
            say(f"error: {failure.words}")
            raise SystemExit(failure.exit_code) from None
        except KeyboardInterrupt as end:
            raise SystemExit(_stopped(command, end)) from None
        except OSError as failure:
            raise SystemExit(_failed(failure)) from None

    return run


def _failed(failure: OSError) -> int:
    """Say what a disk or a stream refused; the exit code."""
    drop(sys.stdout)
    place = os.fsdecode(failure.filename) if isinstance(failure.filename, str | bytes) else "the output"
    say(f"error: {place} could not be written or read: {failure.strerror or failure}.")
    return InputError.exit_code


def _alone(command: Callable[..., None]) -> AbstractContextManager[None]:
    """What a command writes is its own until it ends; several conversions may work on one output."""
    if unwrap(command) is convert:
        return nullcontext()
    return jobs.early.claiming(lambda text: say(f"warning: {text}"))


def _stopped(command: Callable[..., None], end: KeyboardInterrupt) -> int:
    """Say that a command was ended, and whether it can be taken up again; its exit code."""
    stopped = end if isinstance(end, Stopped) else Stopped()
    resumable = "; the same command goes on where it stopped" if unwrap(command) in RESUMABLE else ""
    say(f"{stopped.said}{resumable}")
    return stopped.exit_code


def _flush() -> None:
    """What is left on stdout, unless whoever read it has gone."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        drop(sys.stdout)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"protonmf {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


for _command in (
    convert,
    explain,
    audit,
    intervene,
    evaluate,
    report,
    inspect,
    name,
    export,
    push_to_hub,
    demo,
    doctor,
    manual,
):
    app.command(cls=OrderedCommand if _command is intervene else HelpfulCommand)(_guarded(with_groups(_command)))


for _name, (_help, _commands) in GROUPS.items():
    _group = typer.Typer(name=_name, no_args_is_help=True, help=_help)
    for _subcommand in _commands:
        _group.command(cls=HelpfulCommand)(_guarded(with_groups(_subcommand)))
    app.add_typer(_group)


@functools.cache
def _program() -> Callable[..., Any]:
    """The table of commands as click has it, made once: it takes longer than many a command."""
    return typer.main.get_command(app)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code instead of leaving the process."""
    try:
        _program()(args=argv, prog_name="protonmf")
    except SystemExit as end:
        return exit_code(end.code if isinstance(end.code, int) else int(end.code is not None))
    except OSError as failure:  # of what says how commands are used
        return exit_code(_failed(failure))
    return exit_code(0)
