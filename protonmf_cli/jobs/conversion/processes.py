"""Further processes of this machine that work on a conversion."""

import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from threading import Thread
from types import TracebackType
from typing import IO, Protocol, Self

import torch

from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.jobs.conversion.filling import convert_missing
from protonmf_cli.jobs.conversion.preparing import ConversionWords, PreparedConversion
from protonmf_cli.jobs.machine import device_of
from protonmf_cli.options import Distribution, Machine
from protonmf_cli.pipelines.progress import Progress

WORKER = "protonmf_cli.jobs.conversion.worker"
PATIENCE = 10.0
"""Seconds that a process is given to end by itself once it is no longer needed."""


class Helpers(Protocol):
    """What works on a conversion besides this process; use as a context."""

    machine: Machine
    """Of this process."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def convert(self, prepared: PreparedConversion, shards: Shards, progress: Progress) -> Mapping[str, float | None]:
        """Fill the work folder; seconds as of `convert_missing`, None where they are not known."""


def helpers_of(words: ConversionWords, distribution: Distribution, progress: Progress) -> Helpers:
    """What was asked for; processes are started at once, so that they load the network while this one does."""
    if distribution.ray is not None:
        from protonmf_cli.jobs.conversion.cluster import Cluster

        cluster: Helpers = Cluster(words, distribution)
        return cluster
    return LocalProcesses(words, distribution.processes or _processes_for(words.machine), progress)


def _processes_for(machine: Machine) -> int:
    """One for each GPU where they are there for the taking."""
    return max(1, torch.cuda.device_count()) if machine.device == "auto" else 1


class LocalProcesses:
    """Processes of this machine, of which this one is the first."""

    def __init__(self, words: ConversionWords, count: int, progress: Progress) -> None:
        machines = _machines(words.machine, count)
        self.machine = machines[0]
        self._workers = [
            _Worker(number, replace(words, machine=machine), progress)
            for number, machine in enumerate(machines[1:], start=2)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        for worker in self._workers:
            worker.end()

    def convert(self, prepared: PreparedConversion, shards: Shards, progress: Progress) -> Mapping[str, float | None]:
        """What is free, and in the end what others were lost with."""
        return convert_missing(prepared, shards, progress)


def _machines(machine: Machine, count: int) -> list[Machine]:
    """One for each process: the GPUs in turn; the cores shared out where nobody said how many threads."""
    if count == 1:
        return [machine]
    gpus = torch.cuda.device_count() if device_of(machine).type == "cuda" and machine.device in ("auto", "cuda") else 0
    cores = os.cpu_count() or 1
    share = replace(
        machine, threads=machine.threads or max(1, cores // count), workers=machine.workers or max(1, cores // count)
    )
    return [replace(share, device=f"cuda:{n % gpus}") if gpus else share for n in range(count)]


class _Worker:
    """A process that was started, and what it says."""

    def __init__(self, number: int, words: ConversionWords, progress: Progress) -> None:
        self._number, self._progress = number, progress
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [sys.executable, "-m", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
            start_new_session=True,
        )  # fmt: skip
        self._wanted = True
        with suppress(BrokenPipeError):  # it could not even begin; what it said is told below
            pickle.dump(words, self._input)
            self._input.flush()
        self._listener = Thread(target=self._listen, daemon=True)
        self._listener.start()

    @property
    def _input(self) -> IO[bytes]:
        assert self._process.stdin is not None
        return self._process.stdin

    def end(self) -> None:
        """Let it go: it ends when nobody holds its standard input any more."""
        self._wanted = False
        with suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._listener.join()
        self._errors.close()

    def _listen(self) -> None:
        """Pass on what it says, and tell how it ended where that was not well."""
        assert self._process.stdout is not None
        told = False
        for line in self._process.stdout:
            try:
                kind, text = json.loads(line)
            except (ValueError, TypeError):  # printed by something that it imported
                continue
            if kind == "warn":
                self._progress.warn(text)
            elif self._wanted:
                self._lost(text)
                told = True
        status = self._process.wait()
        if status and self._wanted and not told:
            self._lost(self._reason(status))

    def _lost(self, reason: str) -> None:
        self._progress.warn(f"process {self._number} was lost ({reason}); the others do what it was to do")

    def _reason(self, status: int) -> str:
        if status < 0:
            return f"signal {-status}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {status}"
