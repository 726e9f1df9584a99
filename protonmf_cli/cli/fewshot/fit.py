"""protonmf fewshot fit: from a network and a handful of images per class to a few-shot model."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.fewshot.words import (
    DEFAULT_MODEL,
    IMAGES,
    MACHINE,
    NETWORK,
    Layers,
    NormalisationOption,
    layers_of,
)
from protonmf_cli.options import (
    FewShotOptions,
    FineTuned,
    FineTuneOptions,
    ImageWords,
    Machine,
    NetworkWords,
    Output,
    TrainingMode,
    WeightNorm,
)
from protonmf_cli.output.records.fewshot import fit_json
from protonmf_cli.output.text.fewshot import fit_lines

DEFAULTS = FewShotOptions()
TUNING = FineTuneOptions()


def fit(
    network: Annotated[NetworkWords, NETWORK],
    images: Annotated[ImageWords, IMAGES],
    output: Annotated[Output, arguments.output("Prototype model to write.")] = Output(path=DEFAULT_MODEL),
    shots: Annotated[int | None, typer.Option("--shots", min=1, show_default="all", help="Images per class, drawn with the seed.")] = None,
    norm: Annotated[WeightNorm, typer.Option("--norm", help="Of the class weights; l1 leaves few of them.")] = DEFAULTS.norm,
    prototypes: Annotated[int | None, typer.Option("--prototypes", "-p", min=1, show_default="by the data", help="Per class.")] = None,
    normalisation: NormalisationOption = DEFAULTS.normalisation,
    anchor: Annotated[float | None, typer.Option("--anchor", min=0, show_default="by cross-validation", help="Pull of prototypes to the means of their images: 1 keeps them there, 1e-5 lets them move far.")] = None,
    layers: Layers = "-1",
    finetune: Annotated[FineTuned, typer.Option("--finetune", help="Readjust the network: its last stage, or all of it.")] = TUNING.stages,
    mode: Annotated[TrainingMode, typer.Option("--mode", help="Fine-tune on batches with the model's own loss, or in episodes.")] = TUNING.mode,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Passes over the images while fine-tuning.")] = TUNING.epochs,
    rate: Annotated[float, typer.Option("--rate", min=0, help="Learning rate of the network while fine-tuning.")] = TUNING.rate,
    pull: Annotated[float, typer.Option("--pull", min=0, help="Weight of the term that draws prototypes of one class together and others apart.")] = TUNING.pull,
    figure: Annotated[Path | None, typer.Option("--figure", "--png", help="Figure (.png, .svg or .pdf) of samples and prototypes on their two principal axes.")] = None,
    embed: Annotated[bool, typer.Option("--embed-backbone/--no-embed-backbone", help="Keep the network's weights inside the file.")] = True,
    machine: Annotated[Machine, MACHINE] = Machine(),
    seed: arguments.Seed = DEFAULTS.seed,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Fit soft prototypes and class weights; scale, weights and number of prototypes are chosen inside the images.

    Example: protonmf fewshot fit resnet18.a1_in1k --data birds --shots 5
    """
    options = replace(DEFAULTS, norm=norm, prototypes=prototypes, normalisation=normalisation, seed=seed)
    if anchor is not None:
        options = replace(options, anchors=(anchor,), dense_anchors=(anchor,))
    tuning = FineTuneOptions(stages=finetune, mode=mode, epochs=epochs, rate=rate, pull=pull, seed=seed)
    drawn = None if figure is None else Output(path=figure, force=output.force, option="--figure")
    jobs.early.check(data=[images], outputs=[output], figures=[drawn])
    with shown.progress() as bars:
        found = jobs.fewshot.fitting.fit_fewshot(
            network, images, options, tuning, layers=layers_of(layers), shots=shots, output=output, figure=figure,
            embed=embed, machine=machine, progress=bars,
        )  # fmt: skip
    record = fit_json(found)
    if shown.as_json:
        shown.json(record)
    else:
        shown.lines(fit_lines(found, record))
