"""protonmf fewshot interpret: what the prototypes of a few-shot model are, in words and pictures."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.fewshot.words import DEFAULT_MODEL, MACHINE_FOR_ONE
from protonmf_cli.options import Machine, Output
from protonmf_cli.output.records.fewshot import interpretation_json
from protonmf_cli.output.text.fewshot import (
    attack_lines,
    interpretation_lines,
    prototype_table,
    virtual_note,
)


def interpret(
    file: Annotated[Path | None, typer.Argument(help="Few-shot model file. Default: as --model.")] = None,
    model: arguments.Model = DEFAULT_MODEL,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a card of every prototype and the plane of samples and prototypes.")] = None,
    virtual: Annotated[bool, typer.Option("--virtual", help="Also a picture that each prototype would like best, found through the network.")] = False,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of the search for it.")] = 96,
    fgsm: Annotated[bool, typer.Option("--fgsm", help="How small a change of the pixels changes the class of the pictures inside the file.")] = False,
    machine: Annotated[Machine, MACHINE_FOR_ONE] = Machine(),
    seed: arguments.Seed = 0,
    force: arguments.Force = False,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Pure, ambiguous and unused prototypes, scattered classes, singletons, and the images where classes meet.

    Example: protonmf fewshot interpret fewshot.safetensors --figures cards
    """
    folder = None if figures is None else Output(path=figures, force=force)
    jobs.early.check(model=file or model)
    with shown.progress() as bars:
        result = jobs.fewshot.interpretation.interpret_fewshot(
            file or model, figures=folder, virtual=virtual, steps=steps, fgsm=fgsm, seed=seed, machine=machine,
            progress=bars,
        )  # fmt: skip
    record = interpretation_json(result)
    if shown.as_json:
        shown.json(record)
        return
    show_blocks([prototype_table(result.found)], shown)
    shown.lines(interpretation_lines(result.found))
    if note := virtual_note(record):
        shown.note(note)
    shown.lines(attack_lines(record))
