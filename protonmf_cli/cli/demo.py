"""protonmf demo: the whole main job on an embedded real data set, without a network."""

from pathlib import Path
from typing import Annotated

import typer

from protonmf_cli.cli import arguments
from protonmf_cli.cli.console import Shown
from protonmf_cli.cli.convert import convert
from protonmf_cli.cli.evaluate import evaluate
from protonmf_cli.cli.explain import explain
from protonmf_cli.cli.intervene import intervene
from protonmf_cli.cli.report import report
from protonmf_cli.errors import InputError

EPOCHS = 8


def demo(
    folder: Annotated[Path, typer.Argument(help="Folder to write to; it is made.")] = Path("protonmf-demo"),
    threads: arguments.Threads = None,
    seed: arguments.Seed = 0,
    force: arguments.Force = False,
    quiet: arguments.Quiet = False,
) -> None:
    """Train a small net on scikit-learn's digits, then convert, explain, intervene, evaluate and report it."""
    shown = Shown(quiet=quiet)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not force:
        raise InputError(f"{folder} exists already and is not empty. Give another folder, or --force to write into it.")
    from protonmf_cli.cli.machine import set_threads

    set_threads(threads)
    image = _prepare(folder, seed, shown)
    model, data = folder / "prototypes.safetensors", folder / "data"
    shown.out.print(f"\n[bold]$ protonmf convert local-dir:{folder}/network --data {data} -o {model}[/bold]")
    convert(f"local-dir:{folder}/network", data, output=model, device="cpu", seed=seed, force=force, quiet=quiet)
    picture = folder / "explanation.png"
    shown.out.print(f"\n[bold]$ protonmf explain {image} --model {model} --png {picture}[/bold]")
    explain([str(image)], model=model, png=picture, device="cpu", force=force, quiet=quiet)
    number = _strongest(model, "three")
    shown.out.print(f"\n[bold]$ protonmf intervene --zero {number} --model {model}[/bold]")
    intervene(zero=[str(number)], model=model, device="cpu", quiet=quiet)
    shown.out.print(f"\n[bold]$ protonmf evaluate --data {data} --model {model}[/bold]")
    evaluate(data, model=model, device="cpu", quiet=quiet)
    page = folder / "report.html"
    shown.out.print(f"\n[bold]$ protonmf report --data {data} --model {model} -o {page}[/bold]")
    report(page, model=model, data=data, device="cpu", force=force, quiet=quiet)
    shown.out.print(
        f"\nOpen {page} in a browser, look at {picture}; the images, the network and the prototype model are beside them."
    )


def _strongest(path: Path, name: str) -> int:
    """Number of a class's own prototype of the largest weight."""
    from protonmf_cli.files.store import load_model

    model, _ = load_model(path)
    c = model.find_class(name)
    weights = [float(model.weights.value[entry]) for entry in model.entries(c)[: len(model.own(c))]]
    return weights.index(max(weights)) + 1


def _prepare(folder: Path, seed: int, shown: Shown) -> Path:
    """Write the images, train and save the network; returns an image to explain."""
    with shown.progress() as bars:
        bars.stage("writing images")
        from protonmf_cli.files.images.digits import save_network, untrained_network, write_digits
        from protonmf_cli.pipelines.demo_training import accuracy, train_classifier

        train, val = write_digits(folder / "data")
        network = untrained_network(seed)
        train_classifier(network, train.pixels, train.labels, epochs=EPOCHS, seed=seed, progress=bars)
        save_network(folder / "network", network)
    shown.out.print(
        f"a network of {sum(p.numel() for p in network.parameters()):,} weights, trained on {len(train.labels)} "
        f"handwritten digits: {accuracy(network, val.pixels, val.labels):.1%} right on {len(val.labels)} others"
    )
    return sorted((folder / "data" / "val" / "three").iterdir())[0]
