"""protonmf fewshot benchmark: N-way accuracy from K images per class, against three baselines."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.fewshot.words import IMAGES, MACHINE, NETWORK, Layers, NormalisationOption, layers_of
from protonmf_cli.errors import UsageError, is_whole
from protonmf_cli.options import FewShotOptions, ImageWords, Machine, NetworkWords, Output
from protonmf_cli.output.records.fewshot import benchmark_json
from protonmf_cli.output.text.fewshot import benchmark_blocks

DEFAULTS = FewShotOptions()


def benchmark(
    network: Annotated[NetworkWords, NETWORK],
    images: Annotated[ImageWords, IMAGES],
    ways: Annotated[str, typer.Option("--ways", help="Numbers of classes N.")] = "2,5,20",
    shots: Annotated[int, typer.Option("--shots", min=1, help="Images per class K for everything that is fitted or chosen.")] = 5,
    subsets: Annotated[int, typer.Option("--subsets", min=1, help="Random sets of classes for each N.")] = 10,
    most: Annotated[int, typer.Option("--images", min=2, help="Most images of a class, half of them for each fold.")] = 100,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Of the cross-validation inside the K images.")] = DEFAULTS.folds,
    normalisation: NormalisationOption = DEFAULTS.normalisation,
    layers: Layers = "-1",
    cache: Annotated[Path | None, typer.Option("--cache-features", show_default="the user's cache folder", help="Folder for the features of each class.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the result as JSON.")] = None,
    machine: Annotated[Machine, MACHINE] = Machine(),
    seed: arguments.Seed = DEFAULTS.seed,
    force: arguments.Force = False,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Compare the few-shot model with class means, a linear softmax and nearest neighbours on random sets of classes.

    Example: protonmf fewshot benchmark resnet18.a1_in1k --data birds --ways 2,5
    """
    options = replace(DEFAULTS, normalisation=normalisation, folds=folds, seed=seed)
    target = None if output is None else Output(path=output, force=force)
    jobs.early.check(data=[images], outputs=[target])
    with shown.progress() as bars:
        found = jobs.fewshot.benchmark.benchmark_fewshot(
            network, images, options, ways=_ways(ways), shots=shots, subsets=subsets, images=most,
            layers=layers_of(layers), cache=cache, output=target, machine=machine, progress=bars,
        )  # fmt: skip
    record = benchmark_json(found)
    if shown.as_json:
        shown.json(record)
    else:
        show_blocks(benchmark_blocks(record), shown)


def _ways(words: str) -> list[int]:
    parts = [word.strip() for word in words.split(",")]
    if not all(is_whole(word) and int(word) > 1 for word in parts):
        raise UsageError(f"--ways {words!r} is not a list of numbers from 2, such as 2,5,20.")
    return sorted({int(word) for word in parts})
