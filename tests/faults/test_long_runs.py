"""A process that works for long holds no more than one that has just begun."""

import gc
import itertools
import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil
import pytest

FIRST, MORE = 50, 150
MOST = 12 * 2**20
"""Bytes that the later calls may add."""
KEPT = 2 * MOST // MORE
"""Bytes of a call that are noticed where they are kept."""


def growth(kind: str, model: Path, images: list[Path]) -> int:
    """Bytes that `MORE` calls, or images of one call, add to a process that made `FIRST`."""
    import protonmf_cli
    from protonmf_cli.jobs.explanation import explain
    from toys import run

    loaded, kept, endless = protonmf_cli.load(model), [], itertools.cycle(images)
    calls: dict[str, Callable[[], object]] = {
        "explain": lambda: loaded.explain(images[0]),
        "scale": lambda: loaded.scale("red things", {1: 0.0}),
        "explain --json": lambda: run("explain", images[0], "--model", model, "--json"),
        "inspect --json": lambda: run("inspect", model, "--json"),
        "what is kept": lambda: kept.append(bytearray(b"x") * KEPT),
    }

    def some(count: int) -> None:
        if kind == "many images":
            deque(explain(loaded, itertools.islice(endless, count)), maxlen=0)
        else:
            deque((calls[kind]() for _ in range(count)), maxlen=0)

    some(FIRST)
    gc.collect()
    before = psutil.Process().memory_info().rss
    some(MORE)
    gc.collect()
    return psutil.Process().memory_info().rss - before


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["explain", "scale", "explain --json", "inspect --json", "many images", "what is kept"]
)
def test_long_runs_leave_nothing_behind(toy, converted, kind):
    """In a process of its own, whose memory is not what other tests left free."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as alone:
        found = alone.submit(growth, kind, converted, [toy.image(c) for c in range(4)]).result()
    assert (found > MOST) == (kind == "what is kept"), found
