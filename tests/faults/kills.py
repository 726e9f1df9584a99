"""Commands in processes of their own that end at a chosen moment: a server that has loaded everything forks each."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHANGES = frozenset(
    {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "tempfile.mkstemp", "tempfile.mkdtemp"}
)
"""What Python's audit hooks tell of that changes folders; of `open` those that write."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; of a process that a signal ended its negative number."""
    changes: int
    """Of files and folders that it began; 0 where it was ended before it could tell."""
    seconds: float
    said: str


class Server:
    """Use as a context: a process that loads the package once and starts every command as its own child."""

    def __enter__(self) -> "Server":
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def run(
        self,
        words: Sequence[object],
        folder: Path,
        *,
        at: int | None = None,
        after: float | None = None,
        number: int = signal.SIGKILL,
        most_bytes: int | None = None,
    ) -> Ended:
        """One command.

        Args:
            words: of the command line.
            folder: it runs in.
            at: ended before so many changes of files and folders, from 1.
            after: ended after so many seconds.
            number: the signal that ends it.
            most_bytes: that any file may have.
        """
        asked = {
            "words": [str(word) for word in words], "folder": str(folder), "at": at, "after": after, "number": number,
            "most_bytes": most_bytes,
        }  # fmt: skip
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Ended(**json.loads(self.process.stdout.readline()))


def _counting(at: int | None, number: int, told: int) -> None:
    """Write one byte for every change that begins, and end this process before one of them."""
    count, within = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count, within
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if within or not (writes or event in CHANGES) or str(arguments[0]).startswith("/dev/"):
            return
        within = True
        count += 1
        os.write(told, b".")
        if count == at:
            os.kill(os.getpid(), number)
        within = False

    sys.addaudithook(hook)


def _child(asked: dict, told: int, log: int) -> None:
    from protonmf_cli.__main__ import run

    os.setsid()
    os.chdir(asked["folder"])
    for stream in (1, 2):
        os.dup2(log, stream)
    if asked["most_bytes"] is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["most_bytes"],) * 2)
    sys.argv[:] = ["protonmf", *asked["words"]]
    _counting(asked["at"], asked["number"], told)
    code = 70  # of a bug
    try:
        code = run()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        os._exit(code)


def _started(asked: dict) -> dict:
    import tempfile

    reader, told = os.pipe()
    log = tempfile.TemporaryFile()  # noqa: SIM115
    began = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(asked, told, log.fileno())
    os.close(told)
    if asked["after"] is not None:
        threading.Timer(asked["after"], _end, (process, asked["number"])).start()
    with os.fdopen(reader, "rb") as changes:
        count = len(changes.read())
    _, status = os.waitpid(process, 0)
    ENDED.add(process)
    log.seek(0)
    return {
        "code": os.waitstatus_to_exitcode(status), "changes": count, "seconds": time.monotonic() - began,
        "said": log.read().decode(errors="replace"),
    }  # fmt: skip


ENDED: set[int] = set()


def _end(process: int, number: int) -> None:
    if process not in ENDED:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, number)


def _serve() -> None:
    import matplotlib.pyplot  # noqa: F401
    import timm  # noqa: F401
    import torch

    from protonmf_cli import jobs
    from protonmf_cli.cli import app  # noqa: F401

    for name in jobs.__all__:
        getattr(jobs, name)
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(_started(json.loads(line))), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _serve()
