"""A conversion on a Ray cluster: classes go out as tasks, finished ones come back as the files they are kept in."""

import re
import socket
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from protonmf_cli.errors import InputError, ProtonmfError, UsageError
from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.jobs.conversion.filling import converted
from protonmf_cli.jobs.conversion.preparing import ConversionWords, PreparedConversion, prepare_conversion
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.options import Distribution
from protonmf_cli.pipelines.conversion.classes import groups_of
from protonmf_cli.pipelines.progress import SILENT, Progress

try:
    import ray
    import ray.exceptions
except ImportError as missing:
    raise UsageError("--ray needs Ray: pip install 'protonmf[ray]'.") from missing

ROUNDS = 8
"""Tasks that each worker is given in the course of a conversion, if there are classes enough."""
PATIENCE = 10.0
"""Seconds that an address has to answer."""
LOOK_EVERY = 0.5
"""Seconds between looks at what came back."""

Chunk = Sequence[Sequence[int]]
"""Groups of classes that go out together."""


class Converter:
    """What a worker holds: network and list of images, loaded once."""

    def __init__(self, asked: tuple[ConversionWords, Mapping[str, Any]]) -> None:
        words, facts = asked
        with threads_of(words.machine):
            self._words, self._prepared = words, prepare_conversion(words, SILENT, writes=False)
        own = self._prepared.facts
        if different := [name for name, value in facts.items() if own.get(name) != value]:
            raise InputError(
                f"it has other {', '.join(different)} ({own[different[0]]} instead of {facts[different[0]]})"
            )

    def ready(self) -> bool:
        """Once the network is loaded."""
        return True

    def convert(self, classes: Sequence[int], group: int) -> dict[int, bytes]:
        """class -> the file of a finished one."""
        with threads_of(self._words.machine), tempfile.TemporaryDirectory() as folder:
            return converted(self._prepared, classes, group, Path(folder))


class Cluster:
    """Workers on Ray. One that is lost is replaced where there is room, and what it was at is done again."""

    def __init__(self, words: ConversionWords, distribution: Distribution) -> None:
        assert distribution.ray is not None
        self.machine, self._words = words.machine, words
        self._address, self._cpus = distribution.ray, distribution.ray_cpus

    def __enter__(self) -> Self:
        try:
            _reach(self._address)
            ray.init(address=self._address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except Exception as failure:  # of Ray's own many kinds
            raise InputError(
                f"no Ray cluster answers at {self._address}: {_first_line(failure)}. `ray status` there says whether it runs; "
                "--ray local starts one on this machine."
            ) from failure
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        ray.shutdown()

    def convert(self, prepared: PreparedConversion, shards: Shards, progress: Progress) -> Mapping[str, float]:
        """Hand out what is free and store what comes back."""
        clock = time.monotonic()
        counts = prepared.images.counts
        missing = shards.missing(groups_of(counts, prepared.options.group))
        progress.stage("reading and factorising", sum(counts[c] for group in missing for c in group))
        crew = _Crew(self._start(prepared), self._room(), progress)
        size = max(1, len(missing) // (ROUNDS * crew.size))
        while missing:
            for chunk, files in crew.results(_chunks(shards.free(missing), size), prepared.options.group):
                for c, content in files.items():
                    shards.put(c, content)
                for group in chunk:
                    shards.done(group)
                progress.advance(sum(counts[c] for c in files))
            if (left := shards.missing(missing)) == missing:  # others are at them
                shards.wait()
            missing = left
        return {"extract": time.monotonic() - clock, "factorise": 0.0}

    def _room(self) -> int:
        """Workers that the cluster has room for."""
        total = ray.cluster_resources()
        return max(1, int(total["GPU"]) if total.get("GPU") else int(total.get("CPU", 1)) // self._cpus)

    def _start(self, prepared: PreparedConversion) -> Callable[[], Any]:
        """What starts a worker."""
        gpus = bool(ray.cluster_resources().get("GPU"))
        machine = self._words.machine if gpus else replace(self.machine, threads=self.machine.threads or self._cpus)
        needs = {"num_gpus": 1} if gpus else {"num_cpus": self._cpus}
        words = ray.put((replace(self._words, machine=machine), prepared.facts))
        return lambda: ray.remote(**needs, max_restarts=0)(Converter).remote(words)


class _Crew:
    """Workers, and what each is at."""

    def __init__(self, start: Callable[[], Any], size: int, progress: Progress) -> None:
        self.size, self._start, self._progress = size, start, progress
        self._busy: dict[Any, tuple[Any, Chunk | None]] = {}
        self._idle: list[Any] = []
        self._again: deque[Chunk] = deque()
        for _ in range(size):
            self._hire()

    def results(self, tasks: Iterator[Chunk], group: int) -> Iterator[tuple[Chunk, dict[int, bytes]]]:
        """What was done, as it comes back; a task of a worker that is lost goes to another one.

        Raises:
            InputError: no worker is left; with the last one's reason.
        """
        while self._hand_out(tasks, group) or any(chunk for _, chunk in self._busy.values()):
            for answer in ray.wait(list(self._busy), timeout=LOOK_EVERY)[0]:
                worker, chunk = self._busy.pop(answer)
                try:
                    files = ray.get(answer)
                except ray.exceptions.RayError as failure:
                    self._lost(failure, chunk)
                    continue
                self._idle.append(worker)
                if chunk is not None:
                    yield chunk, files

    def _hand_out(self, tasks: Iterator[Chunk], group: int) -> bool:
        """A task for everybody who has none; False once there are none left and all have time."""
        while self._idle:
            chunk = self._again.popleft() if self._again else next(tasks, None)
            if chunk is None:
                return False
            worker = self._idle.pop()
            self._busy[worker.convert.remote([c for each in chunk for c in each], group)] = worker, chunk
        return True

    def _hire(self) -> None:
        worker = self._start()
        self._busy[worker.ready.remote()] = worker, None

    def _lost(self, failure: Exception, chunk: Chunk | None) -> None:
        """Put its task back, and look for another worker where it is not known to fail as well."""
        if chunk is not None:
            self._again.append(chunk)
        reason = _reason(failure)
        self._progress.warn(f"a worker on Ray was lost ({reason}); the others do what it was to do")
        if chunk is not None and not isinstance(failure, ray.exceptions.RayTaskError):
            self._hire()
        if not self._busy and not self._idle:
            raise InputError(f"no worker on the Ray cluster is left: {reason}.")


def _chunks(groups: Iterator[Sequence[int]], size: int) -> Iterator[Chunk]:
    while chunk := list(islice(groups, size)):
        yield chunk


def _reach(address: str) -> None:
    """Connect where an address names host and port; Ray itself tries for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _reason(failure: Exception) -> str:
    """What a worker failed with, in one line; Ray hands it on with its whole traceback."""
    own = re.findall(rf"{re.escape(ProtonmfError.__module__)}\.\w+: (.+)", str(failure))
    if own:
        return str(own[-1]).rstrip(".")
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return (lines[-1] if "Traceback" in str(failure) or "ray::" in lines[0] else lines[0]).rstrip(".")


def _first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines()
    return (lines[0] if lines else type(failure).__name__).rstrip(".")
