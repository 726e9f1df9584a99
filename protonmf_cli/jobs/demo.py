"""What the demonstration starts from: real images, and a small network trained on them."""

from dataclasses import dataclass
from pathlib import Path

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.digits import save_network, untrained_network, write_digits
from protonmf_cli.files.store import load_model
from protonmf_cli.files.work.locks import claim
from protonmf_cli.options import Output
from protonmf_cli.pipelines.demo_training import accuracy, train_classifier
from protonmf_cli.pipelines.progress import Progress

EPOCHS = 8


@dataclass(frozen=True, kw_only=True)
class PreparedDemo:
    """A trained network, and images that it has not seen."""

    network: str
    """Its name, local-dir:FOLDER."""
    image: str
    """A validation image to explain."""
    weights: int
    """Numbers of the network."""
    train: int
    """Images it was trained on."""
    val: int
    """Others."""
    accuracy: float
    """On the others."""


def prepare_demo(output: Output, seed: int, progress: Progress) -> PreparedDemo:
    """Write scikit-learn's digits as images, train a small network on them, and save it.

    Raises:
        InputError: the folder holds something already.
    """
    folder = output.path
    claim(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not output.force:
        raise InputError(f"{folder} exists already and is not empty. Give another folder, or --force to write into it.")
    progress.stage("writing images")
    train, val = write_digits(folder / "data")
    network = untrained_network(seed)
    train_classifier(network, train.pixels, train.labels, epochs=EPOCHS, seed=seed, progress=progress)
    save_network(folder / "network", network)
    return PreparedDemo(
        network=f"local-dir:{folder}/network",
        image=str(sorted((folder / "data" / "val" / "three").iterdir())[0]),
        weights=sum(weight.numel() for weight in network.parameters()),
        train=len(train.labels),
        val=len(val.labels),
        accuracy=accuracy(network, val.pixels, val.labels),
    )


def strongest_prototype(path: Path, name: str) -> int:
    """Number of a class's own prototype of the largest weight."""
    model, _ = load_model(path)
    c = model.find_class(name)
    weights = [float(model.weights.value[entry]) for entry in model.entries(c)[: len(model.own(c))]]
    return weights.index(max(weights)) + 1
