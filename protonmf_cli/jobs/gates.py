"""Thresholds for batch jobs: what was measured against them, and a JUnit report of all."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from protonmf_cli.errors import GateError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.models.results import Scores
from protonmf_cli.options import GateOptions


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One threshold and what was measured against it."""

    name: str
    """The option without dashes, e.g. "min-accuracy"."""
    limit: float
    value: float | None
    """None: not defined for these images, which does not meet any threshold."""

    @property
    def met(self) -> bool:
        """Whether the measured value is on the right side; equal is."""
        if self.value is None:
            return False
        return self.value >= self.limit if self.name.startswith("min-") else self.value <= self.limit

    @property
    def said(self) -> str:
        """In words."""
        what = self.name.partition("-")[2].replace("-", " ")
        value = "not defined" if self.value is None else f"{self.value:.4f}"
        side = ("is not below" if self.met else "is below") if self.name.startswith("min-") else (
            "is not above" if self.met else "is above"
        )  # fmt: skip
        return f"{what} {value} {side} --{self.name} {self.limit:g}"


def gates_of(options: GateOptions, scores: Scores, *, skipped: int, max_skipped: float) -> tuple[Gate, ...]:
    """The thresholds that were given, with what was measured; the one of skipped images always counts."""
    measured = {
        "min-accuracy": (options.min_accuracy, scores.accuracy["prototype_model"]),
        "min-agreement": (options.min_agreement, scores.agreement.get("prototype_model")),
        "max-residual-share": (
            options.max_residual_share,
            None if scores.logit_share is None else 1 - scores.logit_share,
        ),
        "max-skipped": (max_skipped, skipped / (scores.images + skipped)),
    }
    return tuple(Gate(name=n, limit=limit, value=value) for n, (limit, value) in measured.items() if limit is not None)


def check_gates(gates: Sequence[Gate]) -> None:
    """Pass or stop.

    Raises:
        GateError: naming every threshold that was not met.
    """
    if failed := [gate.said for gate in gates if not gate.met]:
        raise GateError("; ".join(failed) + ".")


def write_junit(path: Path, gates: Sequence[Gate], seconds: float) -> None:
    """Every gate as a test case, as CI servers read them.

    Raises:
        InputError: the file cannot be written.
    """
    failures = sum(not gate.met for gate in gates)
    suite = ET.Element(
        "testsuite", name="protonmf evaluate", tests=str(len(gates)), failures=str(failures), errors="0",
        time=f"{seconds:.3f}",
    )  # fmt: skip
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname="protonmf.evaluate", name=gate.name, time="0")
        if gate.met:
            ET.SubElement(case, "system-out").text = gate.said
        else:
            ET.SubElement(case, "failure", message=gate.said, type="GateError").text = gate.said
    root = ET.Element("testsuites", tests=suite.get("tests", ""), failures=str(failures))
    root.append(suite)
    ET.indent(root)
    write_atomically(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))
