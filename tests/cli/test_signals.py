"""Signals: a clean end at the next step, an end in any case after a grace, and exit codes as a shell has them."""

import signal
import subprocess
import threading
from itertools import count

import pytest

from protonmf_cli.files.images.ahead import ahead
from toys import run, start

HEARS = """
import signal
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
"""
"""Nothing of what the tests themselves were started to ignore, as nohup and a shell's & have it."""
BEGIN = """
import hashlib, signal, sys, time
from protonmf_cli.cli import app, signals
from protonmf_cli import jobs
signals.GRACE = {grace}
def busy(*_, **__):
    print("at it", flush=True)
    {work}
jobs.doctor.diagnose = busy
from protonmf_cli.__main__ import run
sys.argv[:] = ["protonmf", "doctor"]
sys.exit(run())
"""
IN_C = """import threading
    threading.Timer(0.5, print, ("in C",), {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)"""
"""Computes for minutes and never looks whether there is a signal."""
SWALLOWED = """try:
        time.sleep(300)
    except BaseException:
        raise SystemExit(0)"""
IN_PYTHON = "time.sleep(300)"


def ended(work, *signals, grace=300.0, program=HEARS + BEGIN):
    process = start(
        program=program.format(work=work, grace=grace), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "at it\n"
        assert work != IN_C or process.stdout.readline() == "in C\n"
        for number in signals:
            process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")],
)
def test_a_signal_ends_a_command_at_its_next_step(number, code, said):
    assert ended(IN_PYTHON, number) == (code, f"{said}\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_cannot_hear_is_ended_after_a_grace(number, code):
    found, err = ended(IN_C, number, grace=0.2)
    assert found == code and err.endswith("did not end within 0 seconds and was cut off\n") and err.count("\n") == 1


def test_a_signal_that_something_swallows_still_decides_how_the_command_ends():
    assert ended(SWALLOWED, signal.SIGTERM) == (143, "terminated\n")


def test_a_signal_that_comes_twice_at_once_ends_a_command_once():
    code, err = ended(IN_PYTHON, signal.SIGTERM, signal.SIGTERM)
    assert code in (143, -signal.SIGTERM) and err == "terminated\n"  # the second may meet the interpreter's own end


def test_what_a_process_was_started_to_ignore_it_ignores():
    program = HEARS + "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + BEGIN
    assert ended(IN_PYTHON, signal.SIGHUP, signal.SIGINT, program=program) == (130, "interrupted\n")


def test_python_gets_its_own_handlers_back(converted):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert run("inspect", converted)[0] == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_a_command_runs_in_any_thread(converted):
    codes = []
    thread = threading.Thread(target=lambda: codes.append(run("inspect", converted)[0]))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_signal_of_a_forked_child_is_not_the_parents():
    work = """import os
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.write(writer, b".")
        time.sleep(300)
    os.read(reader, 1)
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    time.sleep(1)
    raise SystemExit(7)"""
    assert ended(work, grace=0.1)[0] == 7


def test_whoever_reads_ahead_and_stops_does_not_wait_for_the_readers():
    go_on, began, finished = threading.Event(), threading.Event(), []

    def read(number):
        if number:
            began.set()
            go_on.wait(60)
        finished.append(number)
        return number

    results = ahead(read, count(), workers=1, window=2)
    assert next(results) == 0
    began.wait(60)
    results.close()
    assert finished == [0]
    go_on.set()
