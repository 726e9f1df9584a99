"""protonmf fewshot predict: the class of images, how sure it is, and what is near."""

from collections.abc import Iterator
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
    """Say what images are: classes, matching prototypes, ambiguity, nearest training images.

    Example: protonmf fewshot predict img.jpg
    """
    paths = arguments.paths_of(images)
    jobs.early.check(model=model, images=() if isinstance(paths, Iterator) else paths)
    records: list[dict[str, Any]] = []
    done = failed = 0
    with shown.progress() as bars:
        every = jobs.fewshot.prediction.predict(model, paths, neighbours=max(top, 5), machine=machine, progress=bars)
        for found in every:
            if not isinstance(found, jobs.fewshot.prediction.FewShotPrediction):
                failed += 1
                shown.error(f"{found.path} {found.reason}")
                continue
            done += 1
            record = fewshot_prediction_json(found)
            if json_lines:
                shown.json(record, indent=None)
            elif shown.as_json:
                records.append(record)
            else:
                show_blocks(prediction_lines(record, top), shown)
            if shown.out.gone:
                return
    if records:
        several = {"schema": "protonmf.fewshot_predictions/1", "predictions": records}
        shown.json(records[0] if done + failed == 1 else several)
    if not done:
        raise InputError(f"none of the {failed} images could be read.")
    if failed:
        raise PartialError(f"{failed} of {done + failed} images could not be read; the others were.")
