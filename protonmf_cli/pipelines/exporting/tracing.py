"""From a module to a graph of ONNX, for any number of images."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

import torch

from protonmf_cli.errors import NotExactError
from protonmf_cli.models.backbone import Backbone
from protonmf_cli.pipelines.exporting.graph import PrototypeGraph

IMAGE = "image"
"""Name of the input."""
OPERATOR = re.compile(r"\baten[.:]+[a-z]\w*(?:\.\w+)?|\bprims\.\w+|\btorchvision\.\w+")


def traced(graph: PrototypeGraph, backbone: Backbone, outputs: list[str]) -> Any:
    """The graph of a module, a `torch.onnx.ONNXProgram`.

    Args:
        graph: on the CPU, in float32.
        backbone: of the module.
        outputs: names of what it gives, in order.

    Raises:
        NotExactError: it decides by the numbers of an image, or has an operator that ONNX lacks.
    """
    generator = torch.Generator().manual_seed(17)
    pixels = torch.randn(2, *backbone.preprocessing.input_size, generator=generator)
    try:
        with torch.no_grad(), _quiet():
            shapes = ({0: torch.export.Dim("batch")},)
            program = torch.export.export(graph.eval(), (pixels,), dynamic_shapes=shapes, strict=False)
            return torch.onnx.export(
                program, input_names=[IMAGE], output_names=outputs, dynamo=True, external_data=False, verbose=False
            )
    except Exception as failure:  # tracing runs the code of any network, and each step of it has errors of its own
        raise NotExactError(
            f"{backbone.source.name} (readout {backbone.readout.kind}) cannot be written as a graph: "
            f"{_reason(failure)}. `--format timm` writes it as a checkpoint."
        ) from failure


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings and logs; torch writes a whole graph to stderr where it cannot go on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(failure: Exception) -> str:
    """The innermost cause in a line, with the operator where one is named."""
    chain: list[BaseException] = []
    cause: BaseException | None = failure
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any("data-dependent" in str(each) for each in chain):
        return "what it computes depends on the numbers of an image"
    for each in reversed(chain):
        if found := OPERATOR.search(str(each)):
            return f"the operator {found[0]} ({_line(each)})"
    return _line(chain[-1])


def _line(failure: BaseException) -> str:
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return (lines[0][:160].rstrip(".") if lines else "") or type(failure).__name__
