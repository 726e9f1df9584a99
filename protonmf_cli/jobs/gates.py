"""Thresholds for batch jobs: what was measured against them, and a JUnit report of all."""

import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from protonmf_cli.errors import GateError, InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.images.sources.source import listed
from protonmf_cli.models.prototype import PrototypeModel
from protonmf_cli.models.results import Scores, Unlike
from protonmf_cli.options import GateOptions
from protonmf_cli.pipelines.explaining.unlikeness import Unlikeness


@dataclass(frozen=True, kw_only=True)
class Gate:
    """One threshold and what was measured against it."""

    name: str
    """The option without dashes, e.g. "min-accuracy"."""
    limit: float
    value: float | None
    """None: not defined for these images, which does not meet any threshold."""
    counted: tuple[str, ...] = ()
    """What the value counts, by name, if it counts."""

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
        value = "not defined" if self.value is None else f"{self.value:{'' if isinstance(self.value, int) else '.4f'}}"
        side = ("is not below" if self.met else "is below") if self.name.startswith("min-") else (
            "is not above" if self.met else "is above"
        )  # fmt: skip
        names = "" if self.met or not self.counted else f" ({listed(self.counted)})"
        return f"{what} {value}{names} {side} --{self.name} {self.limit:g}"


def gates_of(options: GateOptions, scores: Scores, *, skipped: int, max_skipped: float) -> tuple[Gate, ...]:
    """The thresholds that were given, with what was measured; the one of skipped images always counts."""
    measured = {
        "min-accuracy": (options.min_accuracy, scores.accuracy["prototype_model"]),
        "min-agreement": (options.min_agreement, scores.agreement.get("prototype_model")),
        "max-residual-share": (
            options.max_residual_share,
            None if scores.logit_share is None else 1 - scores.logit_share,
        ),
        "max-unlike": (options.max_unlike, None if scores.unlike is None else scores.unlike.quantiles.get("0.95")),
        "max-skipped": (max_skipped, skipped / (scores.images + skipped)),
    }
    return tuple(Gate(name=n, limit=limit, value=value) for n, (limit, value) in measured.items() if limit is not None)


def check_unlike(found: Mapping[str, Unlike | None], options: GateOptions) -> None:
    """Pass, or stop at images that are less usual for their predicted class than `max_unlike`.

    Args:
        found: image -> how unlike it is, of a model that says it, see `check_says_unlike`.
        options: equal passes; what is not known does not.

    Raises:
        GateError: naming every such image.
    """
    limit = options.max_unlike
    if limit is None:
        return
    failed = [
        f"{image} (unlike: {'not known' if unlike is None else unlike.said})"
        for image, unlike in found.items()
        if unlike is None or unlike.score is None or unlike.score > limit
    ]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(found)} images are not within --max-unlike {limit:g}: {'; '.join(failed)}."
        )


def check_says_unlike(model: PrototypeModel) -> None:
    """Refuse --max-unlike of a model that does not say what is usual.

    Raises:
        InputError: with the models that do.
    """
    if Unlikeness.of(model) is not None:
        return
    if model.amounts is None:
        why = f"this file holds a {model.card.method} model whose evidence is no amount"
        advice = "Give one of `protonmf convert` without --recipe paper."
    else:
        why = "this file does not say it: it is older, or no class had two different training images"
        advice = "Convert again."
    raise InputError(f"--max-unlike needs a model that says which images are usual, but {why}. {advice}")


def check_gates(gates: Sequence[Gate]) -> None:
    """Pass or stop.

    Raises:
        GateError: naming every threshold that was not met.
    """
    if failed := [gate.said for gate in gates if not gate.met]:
        raise GateError("; ".join(failed) + ".")


def write_junit(path: Path, gates: Sequence[Gate], seconds: float, command: str) -> None:
    """Every gate of a command as a test case, as CI servers read them.

    Raises:
        InputError: the file cannot be written.
    """
    failures = sum(not gate.met for gate in gates)
    suite = ET.Element(
        "testsuite", name=f"protonmf {command}", tests=str(len(gates)), failures=str(failures), errors="0",
        time=f"{seconds:.3f}",
    )  # fmt: skip
    for gate in gates:
        case = ET.SubElement(suite, "testcase", classname=f"protonmf.{command}", name=gate.name, time="0")
        if gate.met:
            ET.SubElement(case, "system-out").text = gate.said
        else:
            ET.SubElement(case, "failure", message=gate.said, type="GateError").text = gate.said
    root = ET.Element("testsuites", tests=suite.get("tests", ""), failures=str(failures))
    root.append(suite)
    ET.indent(root)
    write_atomically(path, ET.tostring(root, encoding="utf-8", xml_declaration=True))
