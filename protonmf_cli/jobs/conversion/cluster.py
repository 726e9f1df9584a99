"""A conversion on a Ray cluster: classes go out as tasks, finished ones come back as the files they are kept in."""

import re
import socket
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from protonmf_cli import errors
from protonmf_cli.errors import InputError, ProtonmfError, UsageError
from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.jobs.conversion.filling import converted
from protonmf_cli.jobs.conversion.preparing import ConversionWords, PreparedConversion, prepare_conversion
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.options import Distribution
from protonmf_cli.pipelines.conversion.classes import Waiting, groups_of, unfinished
from protonmf_cli.pipelines.progress import SILENT, Progress

try:
    import ray
    import ray.exceptions
except ImportError as missing:
    raise UsageError("--ray needs Ray: pip install 'protonmf[ray]'.") from missing

ROUNDS = 8
"""Tasks that each worker is given in the course of a conversion, if there are classes enough."""
MOST_GROUPS = 16
"""In one task: their files are in memory together."""
MOST_LOSSES = 3
"""Workers that a group of classes may cost."""
PATIENCE = 10.0
"""Seconds that an address has to answer."""
LOOK_EVERY = 0.5
"""Seconds between looks at what came back."""
LONG = 60.0
"""Seconds in which a worker should begin."""

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
        self._address, self._cpus, self._connected = distribution.ray, distribution.ray_cpus, False

    def __enter__(self) -> Self:
        if ray.is_initialized():  # by whoever called this
            return self
        try:
            _reach(self._address)
            ray.init(address=self._address, log_to_driver=False, configure_logging=False, include_dashboard=False)
        except Exception as failure:  # of Ray's own many kinds
            raise InputError(
                f"no Ray cluster answers at {self._address}: {_reason(failure)[0]}. `ray status` there says whether it runs; "
                "--ray local starts one on this machine."
            ) from failure
        self._connected = True
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._connected:
            ray.shutdown()

    def convert(self, prepared: PreparedConversion, shards: Shards, progress: Progress) -> Mapping[str, float | None]:
        """Hand out what is free and store what comes back; how long workers took for what is not known."""
        counts, waiting = prepared.images.counts, Waiting(prepared.backbone, progress)
        missing = unfinished(groups_of(counts, prepared.options.group), shards)
        progress.stage("reading and factorising", sum(counts[c] for group in missing for c in group))
        named = [name.shown for name in prepared.backbone.classes]
        crew = _Crew(self._start(prepared), self._room(), progress, named.__getitem__)
        size = min(MOST_GROUPS, max(1, len(missing) // (ROUNDS * crew.size)))
        while missing:
            for chunk, files in crew.results(_chunks(shards.free(missing), size), prepared.options.group):
                for c, content in files.items():
                    shards.put(c, content)
                for group in chunk:
                    shards.done(group)
                progress.advance(sum(counts[c] for c in files))
            left = unfinished(missing, shards)
            waiting.look(left, moved=left != missing)
            if left == missing:  # others are at them
                shards.wait()
            missing = left
        return {"extract": None, "factorise": None}

    def _room(self) -> int:
        """Workers that the cluster has room for, each on one node.

        Raises:
            InputError: none.
        """
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
            return gpus
        cores = [int(node.get("CPU", 0)) for node in nodes]
        if room := sum(each // self._cpus for each in cores):
            return room
        raise InputError(
            f"no node of the Ray cluster has {self._cpus} cores for a worker, at most {max(cores, default=0)}: give a "
            "smaller --ray-cpus."
        )

    def _start(self, prepared: PreparedConversion) -> Callable[[], Any]:
        """What starts a worker."""
        gpus = bool(ray.cluster_resources().get("GPU"))
        machine, cpus = self._words.machine, self._cpus
        if not gpus:
            machine = replace(machine, threads=machine.threads or cpus, workers=machine.workers or cpus)
        needs = {"num_gpus": 1} if gpus else {"num_cpus": self._cpus}
        words = ray.put((replace(self._words, machine=machine), prepared.facts))
        return lambda: ray.remote(**needs, max_restarts=0)(Converter).remote(words)


class _Crew:
    """Workers, and what each is at."""

    def __init__(
        self, start: Callable[[], Any], size: int, progress: Progress, named: Callable[[int], str] = str
    ) -> None:
        self.size, self._start, self._progress, self._named = size, start, progress, named
        self._busy: dict[Any, tuple[Any, Chunk | None]] = {}
        self._idle: list[Any] = []
        self._again: deque[Chunk] = deque()
        self._losses: Counter[int] = Counter()
        self._since, self._warned = time.monotonic(), False
        for _ in range(size):
            self._hire()

    def results(self, tasks: Iterator[Chunk], group: int) -> Iterator[tuple[Chunk, dict[int, bytes]]]:
        """What was done, as it comes back; a task of a worker that is lost goes to another one.

        Raises:
            ProtonmfError: no worker is left, or a group cost several; of the kind and with the reason of the last one's.
        """
        while self._hand_out(tasks, group) or any(chunk for _, chunk in self._busy.values()):
            self._look()
            for answer in ray.wait(list(self._busy), timeout=LOOK_EVERY)[0]:
                worker, chunk = self._busy.pop(answer)
                try:
                    files = ray.get(answer)
                except ray.exceptions.RayError as failure:
                    self._lost(failure, chunk)
                    continue
                self._idle.append(worker)
                self._warned = True  # some have begun
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

    def _look(self) -> None:
        """Say once that no worker begins."""
        if not self._warned and time.monotonic() - self._since >= LONG:
            self._warned = True
            self._progress.warn(
                f"none of {self.size} workers on Ray has begun after {LONG:.0f} s: they load the network, or others use "
                "the cluster; `ray status` says which"
            )

    def _lost(self, failure: Exception, chunk: Chunk | None) -> None:
        """Put its groups back one by one, and look for another worker where it is not known to fail as well."""
        reason, kind = _reason(failure)
        for group in chunk or ():
            self._losses[group[0]] += 1
            if self._losses[group[0]] == MOST_LOSSES:
                names = ", ".join(self._named(c) for c in group)
                raise kind(f"{MOST_LOSSES} workers on Ray were lost with {names}: {reason}.")
            self._again.append([group])
        self._progress.warn(f"a worker on Ray was lost ({reason}); the others do what it was to do")
        if chunk is not None and not isinstance(failure, ray.exceptions.RayTaskError):
            self._hire()
        if not self._busy and not self._idle:
            raise kind(f"no worker on the Ray cluster is left: {reason}.")


def _chunks(groups: Iterator[Sequence[int]], size: int) -> Iterator[Chunk]:
    while chunk := list(islice(groups, size)):
        yield chunk


def _reach(address: str) -> None:
    """Connect where an address names host and port; Ray itself tries for many minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()


def _reason(failure: Exception) -> tuple[str, type[ProtonmfError]]:
    """What a worker failed with, in one line, and its kind; Ray hands it on with its whole traceback."""
    own = re.findall(rf"\b{errors.__package__}(?:\.\w+)+\.(\w+): (.+)", str(failure))
    if own:
        return own[-1][1].rstrip("."), getattr(errors, own[-1][0], InputError)
    lines = str(failure).strip().splitlines() or [type(failure).__name__]
    return (lines[-1] if "Traceback" in str(failure) or "ray::" in lines[0] else lines[0]).rstrip("."), InputError
