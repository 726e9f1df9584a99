"""A prototype model for other programs: its head back in an ordinary checkpoint, or one graph of ONNX."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from protonmf_cli.errors import InputError, NotExactError, UsageError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_writable
from protonmf_cli.files.images.reader import crop_of_jpeg
from protonmf_cli.files.leftovers import sweep
from protonmf_cli.files.networks.checkpoints import save_checkpoint, save_weights
from protonmf_cli.files.networks.loading import TIMM
from protonmf_cli.files.onnx_graph import check_packages, check_size, run_graph, save_graph
from protonmf_cli.files.work.locks import claim
from protonmf_cli.jobs.loaded import Loaded, loaded_from
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.readouts.head_writing import write_head
from protonmf_cli.models.readouts.readout import relative_difference
from protonmf_cli.options import ExportFormat, Machine, Output
from protonmf_cli.output.records.graph import graph_metadata
from protonmf_cli.pipelines.exporting.graph import Outputs, expected_outputs, graph_of
from protonmf_cli.pipelines.exporting.tracing import traced
from protonmf_cli.pipelines.progress import LOGGED, Progress

ON_THE_CPU = Machine(device="cpu")
LIMIT = 1e-5
"""Of the difference between a graph's logits and the model's in float64, in units of their spread."""
ROUNDING = 2.0
"""Where float32 itself is no nearer than that: how many times torch's own difference a graph's may be."""
LIMIT_OF_PARTS = 1e-3
"""The same of amounts and maps, which are smaller differences of larger numbers."""
BATCHES = (1, 3)
"""Images in the runs that a graph is checked with."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written."""

    model: Path
    """Prototype model whose logits it gives."""
    format: ExportFormat
    path: Path
    """Folder of a checkpoint, or file of ONNX."""
    architecture: str
    library: str
    """That builds the network."""
    edits: int
    """Of the model, which it holds."""
    relative_difference: float
    """Between its logits and the model's in float64, in units of their spread; of a graph as onnxruntime computes it."""
    differences: Mapping[str, float]
    """The same of everything that a graph gives, by name; empty of a checkpoint."""
    rounding: float | None
    """The same of the logits as torch computes them in float32; None of a checkpoint."""


def export(
    model: Loaded | str | PathLike[str],
    output: str | PathLike[str] | Output,
    *,
    format: ExportFormat = "checkpoint",  # noqa: A002
    machine: Machine = ON_THE_CPU,
    progress: Progress = LOGGED,
) -> Export:
    """Write a (edited) model as a checkpoint of the network's own library, or as one graph of ONNX.

    Args:
        model: a file, or a model that is loaded, which stays as it is.
        output: folder for model.safetensors (and a config.json of timm or transformers), which is made, or file of ONNX.
        format: "checkpoint": the network's own library then gives the edited logits; "onnx": image -> logits, amounts of all prototypes
            and their maps, checked by onnxruntime on images of batches of one and three.
        machine: threads, and where a file is loaded to; what is written is made on the CPU.
        progress: is told stages, and if the file is older than amounts.

    Raises:
        UsageError: the output looks like one of the other format.
        ModelFileError: the network reads no images in the way that the file says.
        InputError: the output cannot be written or holds something already, or the model is a combination of several
            networks; for ONNX: a package is missing, or the model is too large for one file.
        NotExactError: the head is not one layer that the edit could be written into, or the graph cannot be written, or
            its outputs differ by more than `LIMIT` and `LIMIT_OF_PARTS`.
    """
    target = Output.of(output)
    if format == "onnx":
        check_packages()
        check_writable(target.path, target.force)
    else:
        _check_folder(target)
    with threads_of(machine):
        progress.stage("loading the model")
        loaded = loaded_from(model, machine, progress)
        _check_single(loaded)
        # moving and writing change a network in place
        own = deepcopy(loaded.backbone) if isinstance(model, Loaded) else loaded.backbone
        backbone = own.to(torch.device("cpu"), torch.float32)
        if format == "onnx":
            here = loaded.model.to(torch.device("cpu"), torch.float32)
            differences, rounding = _write_graph(target.path, here, backbone, progress)
            difference = differences["logits"]
        else:
            differences, rounding = {}, None
            difference = _write_checkpoint(target.path, loaded.model, backbone)
    card = loaded.model.card
    return Export(
        model=loaded.path, format=format, path=target.path, architecture=card.source.architecture,
        library=card.source.library, edits=len(card.edits), relative_difference=difference, differences=differences, rounding=rounding,
    )  # fmt: skip


def _check_single(loaded: Loaded) -> None:
    if members := len(loaded.model.card.members):
        raise InputError(
            f"{members} networks are combined in this model, each of which sees its own crop, and one is exported. "
            "Export their files one by one."
        )


def _write_checkpoint(folder: Path, model: PrototypeModel, backbone: Backbone) -> float:
    """The head inside the network; how far its logits are from the model's."""
    with backbone.reading():
        difference = write_head(backbone, model.head_vectors(), model.exact.bias)
    card = model.card
    if card.source.library != TIMM:
        save_weights(folder, backbone.network, card.source)
        return difference
    save_checkpoint(
        folder,
        backbone.network,
        architecture=card.source.architecture,
        model_args=card.source.model_args,
        preprocessing=card.preprocessing,
        classes=card.classes,
    )
    return difference


def _write_graph(
    path: Path, model: PrototypeModel, backbone: Backbone, progress: Progress
) -> tuple[dict[str, float], float]:
    """The graph, checked before it has its name; how far its outputs, and torch's logits, are from those in float64.

    Raises:
        InputError, NotExactError: nothing was written.
    """
    check_size(backbone.weights().values())
    crops = _crops(model, backbone)
    progress.stage("reading images in float64")
    expected = expected_outputs(backbone.to(backbone.device, torch.float64), model, crops)
    backbone = backbone.to(backbone.device, torch.float32)
    backbone.network.to(memory_format=torch.contiguous_format)
    rounding = relative_difference(expected_outputs(backbone, model, crops).logits, expected.logits)
    graph, names = graph_of(backbone, model), list(expected.given())
    progress.stage("tracing the network")
    program = traced(graph, backbone, names)
    found: dict[str, float] = {}

    def write(temporary: Path) -> None:
        save_graph(temporary, program, graph_metadata(model, names))
        progress.stage("checking the graph")
        outputs = run_graph(temporary, list(backbone.normalise(crops).split(BATCHES)))
        found.update(Outputs(**{"maps": None, **outputs}).differences(expected))  # type: ignore[arg-type]
        _check(found, rounding)

    write_atomically(path, write)
    return found, rounding


def _check(differences: Mapping[str, float], rounding: float) -> None:
    """Refuse a graph whose outputs are not the model's.

    Raises:
        NotExactError: naming the output.
    """
    for name, difference in differences.items():
        limit = max(LIMIT, ROUNDING * rounding) if name == "logits" else LIMIT_OF_PARTS
        if not difference <= limit:
            raise NotExactError(
                f"the {name} of the graph differ by {difference:.1e} of their spread from the model's, more than "
                f"{limit:.0e}; nothing was written. `--format checkpoint` writes the head itself."
            )


def _crops(model: PrototypeModel, backbone: Backbone) -> Tensor:
    """Images to check a graph with: training patches inside the file, and seeded pixels where there are too few."""
    channels, height, width = backbone.preprocessing.input_size
    count = sum(BATCHES)
    spans = {span: n for n, span in reversed(list(enumerate(map(tuple, model.examples.crop.tolist()))))}
    chosen = sorted(spans.values())[:: max(1, len(spans) // count)][:count]
    kept = [crop_of_jpeg(model.examples.picture(n), channels) for n in chosen]
    fitting = [crop for crop in kept if crop.shape == (channels, height, width)]
    generator = torch.Generator().manual_seed(23)
    drawn = torch.randint(
        256, (count - len(fitting), channels, height, width), generator=generator, dtype=torch.uint8
    )  # fmt: skip
    return torch.cat([torch.stack(fitting), drawn]) if fitting else drawn


def _check_folder(output: Output) -> None:
    """Refuse a folder that cannot be written to, before any work.

    Raises:
        UsageError, InputError: with what to do about it.
    """
    folder = output.path
    if folder.suffix == ".onnx":
        raise UsageError(f"-o {folder} looks like a file of ONNX: give --format onnx, or the name of a folder.")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; -o names a folder for config.json and model.safetensors.")
    if claim(folder) and folder.is_dir():
        sweep(folder)
    if folder.is_dir() and any(folder.iterdir()) and not output.force:
        raise InputError(f"the folder {folder} is not empty. Give --force to write into it, or another -o.")
