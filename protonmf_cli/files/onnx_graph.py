"""Graphs of ONNX on disk, and what onnxruntime makes of them; all of it comes with the extra `onnx`."""

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from protonmf_cli.errors import InputError

KEY = "protonmf"
"""Of the model's metadata; the value is JSON."""
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
MOST_BYTES = 2**31 - 2**26
"""That one file may hold: 2 GiB, of which the graph itself takes some."""


def check_packages() -> None:
    """Refuse to go on without the extra.

    Raises:
        InputError: naming what is missing, and how it is installed.
    """
    for package in PACKAGES:
        try:
            import_module(package)
        except ImportError as failure:
            raise InputError(
                f"ONNX is written with {package}, which is not installed: pip install 'protonmf[onnx]'."
            ) from failure


def check_size(tensors: Iterable[Tensor]) -> None:
    """Refuse weights that do not fit into one file.

    Raises:
        InputError: saying how large they are.
    """
    size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
    if size > MOST_BYTES:
        raise InputError(
            f"the weights take {size / 2**30:.1f} GiB, and a file of ONNX holds 2 GiB. `--format timm` has no such "
            "limit."
        )


def save_graph(path: Path, program: Any, metadata: Mapping[str, Any]) -> None:
    """Write a `torch.onnx.ONNXProgram` with metadata, and without notes on the code that it was traced from."""
    model = program.model
    model.metadata_props.clear()
    model.metadata_props[KEY] = json.dumps(metadata, ensure_ascii=False, sort_keys=True, allow_nan=False)
    for graph in (model.graph, *model.functions.values()):
        for node in graph:
            node.metadata_props.clear()
            node.doc_string = None
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    program.save(str(path), external_data=False)


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save_graph` wrote."""
    found: dict[str, Any] = json.loads(_session(path).get_modelmeta().custom_metadata_map[KEY])
    return found


def run_graph(path: Path, batches: list[Tensor]) -> dict[str, Tensor]:
    """Outputs by name of batches of images (B, channels, H, W) in float32, one run for each, joined."""
    session = _session(path)
    (image,) = (each.name for each in session.get_inputs())
    names = [each.name for each in session.get_outputs()]
    runs = [session.run(None, {image: batch.numpy()}) for batch in batches]
    return {
        name: torch.cat([torch.from_numpy(part) for part in parts])
        for name, parts in zip(names, zip(*runs, strict=True), strict=True)
    }


def _session(path: Path) -> Any:
    onnxruntime = import_module("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
