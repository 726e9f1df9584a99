"""A process that works for long holds no more than one that has just begun."""

import gc
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import protonmf_cli
from protonmf_cli.jobs.explanation import explain
from toys import run

FIRST, MORE = 50, 150
MOST = 12 * 2**20
"""Bytes that the later calls may add."""
KEPT = 2 * MOST // MORE
"""Bytes of a call that are noticed where they are kept."""


def resident() -> int:
    gc.collect()
    return psutil.Process().memory_info().rss


def check_no_growth(call: Callable[[], object]) -> None:
    for _ in range(FIRST):
        call()
    before = resident()
    for _ in range(MORE):
        call()
    assert resident() - before < MOST


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["explain", "scale", "explain --json", "inspect --json"])
def test_calls_leave_nothing_behind(toy, converted, kind):
    loaded = protonmf_cli.load(converted)
    calls = {
        "explain": lambda: loaded.explain(toy.image()),
        "scale": lambda: loaded.scale("red things", {1: 0.0}),
        "explain --json": lambda: run("explain", toy.image(), "--model", converted, "--json"),
        "inspect --json": lambda: run("inspect", converted, "--json"),
    }
    check_no_growth(calls[kind])


@pytest.mark.slow
def test_many_images_are_explained_in_the_memory_of_a_few(toy, converted):
    images = itertools.cycle([toy.image(c) for c in range(4)])

    def some(count: int) -> Iterator[Path]:
        return itertools.islice(images, count)

    loaded = protonmf_cli.load(converted)
    deque(explain(loaded, some(FIRST)), maxlen=0)
    before = resident()
    deque(explain(loaded, some(MORE)), maxlen=0)
    assert resident() - before < MOST


@pytest.mark.slow
def test_what_is_kept_would_be_noticed():
    kept = []
    with pytest.raises(AssertionError):
        check_no_growth(lambda: kept.append(bytearray(b"x") * KEPT))
