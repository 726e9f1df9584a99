"""What a process of the program asks of the system's libraries."""

import gc
from types import SimpleNamespace

import pytest

from protonmf_cli import __main__ as program
from protonmf_cli.jobs import machine


@pytest.fixture
def asked(monkeypatch):
    """(option, value) of each call of mallopt."""
    found = []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    library = SimpleNamespace(mallopt=lambda *words: found.append(words))
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: library if name is None else None)
    machine.keep_memory.cache_clear()
    yield found
    machine.keep_memory.cache_clear()


def test_glibc_keeps_what_layers_free(asked):
    with machine.threads_of(machine.Machine()), machine.threads_of(machine.Machine()):
        assert asked == [(-3, 2**25), (-1, 2**29)]  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD, once


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_environment_stand(asked, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    machine.keep_memory()
    assert asked == []


def test_another_library_is_left_alone(asked, monkeypatch):
    monkeypatch.setattr(machine.ctypes, "CDLL", lambda _: SimpleNamespace())
    machine.keep_memory()


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)],
)
def test_threads_that_wait_soon_sleep_unless_the_environment_says_otherwise(monkeypatch, given, expected):
    environment = dict(given)
    monkeypatch.setattr(program.os, "environ", environment)
    monkeypatch.setattr(program, "main", lambda: environment.get("GOMP_SPINCOUNT"))
    monkeypatch.setattr(program.atexit, "register", lambda _: None)
    before = gc.get_threshold()
    try:
        assert program.run() == expected
    finally:
        gc.set_threshold(*before)
