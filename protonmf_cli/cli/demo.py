"""protonmf demo: the whole main job on an embedded real data set, without a network."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.options import Machine, Output
from protonmf_cli.output.text.demo import demo_lines


def demo(
    output: Annotated[Output, arguments.DEMO_FOLDER] = Output(path=Path("protonmf-demo")),
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    quiet: arguments.Quiet = False,
) -> None:
    """Train a small net on scikit-learn's digits, then convert, explain, intervene, evaluate and report it.

    Example: protonmf demo protonmf-demo
    """
    from protonmf_cli.cli.app import main

    shown = Shown(quiet=quiet)
    with jobs.machine.threads_of(Machine(threads=threads)), shown.progress() as bars:
        prepared = jobs.demo.prepare_demo(output, seed, bars)
    shown.text(demo_lines(prepared))
    folder = output.path
    data, model, picture, page = (
        str(folder / name) for name in ("data", "prototypes.safetensors", "explanation.png", "report.html")
    )
    model_words = ["--model", model]
    common = ["--device", "cpu", *(["--threads", str(threads)] if threads else []), *(["--quiet"] if quiet else [])]
    replaced = ["--force"] if output.force else []

    def run(*words: str, more: list[str]) -> None:
        shown.out.print(f"\n$ protonmf {shlex.join(words)}", style="bold", markup=False)
        if code := main([*words, *common, *more]):
            raise typer.Exit(code)

    run("convert", prepared.network, "--data", data, "-o", model, more=[*replaced, "--seed", str(seed)])
    run("explain", prepared.image, *model_words, "--figure", picture, more=replaced)
    number = jobs.demo.strongest_prototype(Path(model), "three")
    run("intervene", "--zero", str(number), *model_words, more=[])
    run("evaluate", "--data", data, *model_words, more=[])
    run("report", "--data", data, *model_words, "-o", page, more=replaced)
    shown.out.print(
        f"\nOpen {page} in a browser, look at {picture}; the images, the network and the prototype model are beside them.",
        markup=False,
    )
