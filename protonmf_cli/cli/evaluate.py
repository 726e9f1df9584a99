"""protonmf evaluate: is it still the classifier, and how much do the prototypes carry?"""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.errors import UsageError, is_whole
from protonmf_cli.options import GateOptions, ImageWords, Machine, Output, TableOptions
from protonmf_cli.output.records.evaluation import evaluation_json
from protonmf_cli.output.text.evaluation import bare_classes_note, evaluation_blocks

DEFAULTS = TableOptions()
BOXES = Annotated[Path | None, typer.Option("--boxes", help="Cut images to their bounding boxes: folder or zip of CUB-200-2011's text files.")]  # fmt: skip


def _table_options(
    counts: str = ",".join(map(str, DEFAULTS.counts)),
    limit: int = DEFAULTS.limit,
    protopnet: list[Path] | None = None,
    parts: Path | None = None,
    cache_features: Path | None = None,
    seed: int = DEFAULTS.seed,
) -> TableOptions:
    """Options of tables as they are given in words."""
    words = [word.strip() for word in counts.split(",")]
    if not all(is_whole(word) and int(word) for word in words):
        raise UsageError(f"--counts {counts!r} is not a list of numbers from 1, e.g. 1,3,5,10.")
    return TableOptions(
        counts=tuple(sorted({int(word) for word in words})), limit=limit, protopnet=tuple(protopnet or ()), parts=parts,
        cache=cache_features, seed=seed,
    )  # fmt: skip


TABLE_OPTIONS = Group(
    _table_options,
    counts=Annotated[str, typer.Option("--counts", help="Numbers of prototypes per class of the table parts.")],
    limit=Annotated[int, typer.Option("--images", min=1, help="Images of the table faithfulness, as many of each class.")],
    protopnet=Annotated[list[Path] | None, typer.Option("--protopnet", help="ProtoPNet model file for the table rival, e.g. one per training cycle. Repeatable.")],
    parts=Annotated[Path | None, typer.Option("--parts", help="Part annotations (folder or zip of CUB-200-2011's text files) for the table part-quality.")],
    cache_features=Annotated[Path | None, typer.Option("--cache-features", help="Folder for what the network gave for the training images.")],
    seed=arguments.Seed,
)  # fmt: skip
GATES = Group(
    GateOptions,
    min_accuracy=Annotated[float | None, typer.Option("--min-accuracy", min=0, max=1, help="Exit 5 when the prototype model is below.")],
    min_agreement=Annotated[float | None, typer.Option("--min-agreement", min=0, max=1, help="Exit 5 when it agrees less with the black box.")],
    max_residual_share=Annotated[float | None, typer.Option("--max-residual-share", min=-1e9, max=1, help="Exit 5 when the residual carries more.")],
    max_unlike=Annotated[float | None, typer.Option("--max-unlike", help="Exit 5 when more than one in twenty images are less usual for their predicted class (1: as one in twenty training images).")],
)  # fmt: skip


def evaluate(
    images: Annotated[ImageWords, arguments.images(split="val", boxes=BOXES)],
    model: arguments.Model = arguments.DEFAULT_MODEL,
    table: Annotated[list[str] | None, typer.Option("--table", help="A further table: parts, stability, cancellation, oracle, augmentation, faithfulness, part-quality, pictures, rival. Repeatable.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a figure of each table.")] = None,
    *,
    options: Annotated[TableOptions, TABLE_OPTIONS],
    gates: Annotated[GateOptions, GATES],
    junit_xml: Annotated[Path | None, typer.Option("--junit-xml", help="Write every gate as a JUnit test case.")] = None,
    machine: Annotated[Machine, arguments.MACHINE] = Machine(),
    force: arguments.Force = False,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Measure accuracy, agreement and exactness on labelled images in one pass; further tables on request.

    Example: protonmf evaluate --data imagenet --min-agreement 0.99
    """
    junit = None if junit_xml is None else Output(path=junit_xml, force=force, option="--junit-xml")
    jobs.early.check(model=model, data=[images], outputs=[junit])
    with shown.progress() as bars:
        found = jobs.evaluation.evaluate(
            model, images, tables=table or (), options=options, figures=figures, gates=gates, junit=junit,
            machine=machine, progress=bars,
        )  # fmt: skip
    if shown.as_json:
        shown.json(evaluation_json(found))
    else:
        show_blocks(evaluation_blocks(found), shown)
        if note := bare_classes_note(found):
            shown.note(note)
    jobs.gates.check_gates(found.gates)
