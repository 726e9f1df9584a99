"""protonmf fewshot predict: the class of images, how sure it is, and what is near."""

from typing import Annotated, Any

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.fewshot.words import DEFAULT_MODEL, MACHINE_FOR_ONE
from protonmf_cli.errors import InputError, PartialError
from protonmf_cli.options import Machine
from protonmf_cli.output.records.fewshot import fewshot_prediction_json
from protonmf_cli.output.text.fewshot import prediction_lines


def predict(
    images: Annotated[list[str], typer.Argument(help="Image files; - reads their paths from standard input.")],
    model: arguments.Model = DEFAULT_MODEL,
    top: Annotated[int, typer.Option("--top", min=1, help="Classes, prototypes and neighbours shown.")] = 3,
    json_lines: Annotated[bool, typer.Option("--jsonl", help="One JSON object per image and line.")] = False,
    machine: Annotated[Machine, MACHINE_FOR_ONE] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:
    """Say what images are: classes, matching prototypes, ambiguity, nearest training images."""
    paths = arguments.paths_of(images)
    records: list[dict[str, Any]] = []
    with shown.progress() as bars:
        every = jobs.fewshot.prediction.predict(model, paths, neighbours=max(top, 5), machine=machine, progress=bars)
        for found in every:
            if not isinstance(found, jobs.fewshot.prediction.FewShotPrediction):
                shown.error(f"{found.path} {found.reason}")
                continue
            records.append(fewshot_prediction_json(found))
            if json_lines:
                shown.json(records[-1], indent=None)
            elif not shown.as_json:
                show_blocks(prediction_lines(records[-1], top), shown)
    if shown.as_json and not json_lines and records:
        several = {"schema": "protonmf.fewshot_predictions/1", "predictions": records}
        shown.json(records[0] if len(paths) == 1 else several)
    if not records:
        raise InputError(f"none of the {len(paths)} images could be read.")
    if len(records) < len(paths):
        raise PartialError(f"{len(paths) - len(records)} of {len(paths)} images could not be read; the others were.")
