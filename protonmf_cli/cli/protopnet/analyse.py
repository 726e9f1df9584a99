"""protonmf protopnet local, evaluate: what an image is like, what a prototype is like, how good it all is."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli import jobs
from protonmf_cli.cli import arguments
from protonmf_cli.cli.blocks import show_blocks
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.groups import Group
from protonmf_cli.cli.protopnet.edit import DEFAULT_MODEL, MACHINE, File, images_of_file
from protonmf_cli.options import ImageWords, Machine
from protonmf_cli.output.records.protopnet import evaluation_json, local_json
from protonmf_cli.output.text.protopnet import evaluation_facts, local_blocks, path_lines


def local(
    image: Annotated[Path, typer.Argument(help="Image file.")],
    model: arguments.Model = DEFAULT_MODEL,
    top: Annotated[int, typer.Option("--top", min=1, help="Most similar prototypes of all classes.")] = 10,
    classes: Annotated[int, typer.Option("--classes", min=1, help="Best classes, shown one by one.")] = 3,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for a picture of the most similar prototypes and of each class.")] = None,
    machine: Annotated[Machine, Group(Machine, device=arguments.Device, threads=arguments.Threads)] = Machine(),
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Local analysis: the prototypes most similar to an image, and its evidence class by class.

    Example: protonmf protopnet local img.jpg --figures like
    """
    jobs.early.check(model=model, images=[str(image)])
    with shown.progress() as bars:
        found = jobs.protopnet.analyses.local_analysis(
            model, image, top=top, classes=classes, figures=figures, machine=machine, progress=bars
        )
    if shown.as_json:
        shown.json(local_json(str(image), found))
    else:
        show_blocks(local_blocks(found), shown)


def evaluate(
    images: Annotated[ImageWords, images_of_file(split="val")],
    file: File = None,
    model: arguments.Model = DEFAULT_MODEL,
    parts: Annotated[Path | None, typer.Option("--parts", help="Part annotations (folder or zip of CUB-200-2011's text files), for consistency and stability.")] = None,
    figures: Annotated[Path | None, typer.Option("--figures", help="Folder for the global analysis: a picture per class with each prototype's nearest patches.")] = None,
    l1_path: Annotated[bool, typer.Option("--l1-path", help="Fit the last layer for several weights of the L1 term: how sparse, how right.")] = False,
    machine: Annotated[Machine, MACHINE] = Machine(),
    seed: arguments.Seed = 0,
    *,
    shown: Annotated[Shown, arguments.SHOWN],
) -> None:  # fmt: skip
    """Accuracy, sparsity, unique prototypes and consistency; the global analysis as pictures.

    Example: protonmf protopnet evaluate protopnet.safetensors --data birds
    """
    jobs.early.check(model=file or model, data=[images])
    with shown.progress() as bars:
        found = jobs.protopnet.analyses.evaluate_protopnet(
            file or model,
            images,
            parts=parts,
            figures=figures,
            l1_path=l1_path,
            seed=seed,
            machine=machine,
            progress=bars,
        )
    if shown.as_json:
        shown.json(evaluation_json(found))
    else:
        shown.lines(evaluation_facts(found))
        shown.text(path_lines(found))
