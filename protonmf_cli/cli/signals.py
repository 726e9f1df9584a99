"""Signals that end a command: between two steps of Python, or after a grace wherever it is."""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

GRACE = 5.0
"""Seconds after which a command that has not ended is ended: code of a library may compute or wait for longer."""
AGAIN = 1.0
"""Seconds for which a second signal is taken for an echo of the first one, as schedulers send both."""
ENDS = {
    getattr(signal, name): said
    for name, said in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)
}


class Stopped(KeyboardInterrupt):
    """A signal asked the command to end."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.number = number

    @property
    def exit_code(self) -> int:
        """As a shell has it of a process that the signal ended."""
        return 128 + self.number

    @property
    def said(self) -> str:
        """For people."""
        return ENDS[signal.Signals(self.number)]


class _Heard:
    """What this process has heard; one object, as signals are of the process."""

    heeding = False
    number: int | None = None
    at = 0.0

    def hear(self, number: int) -> None:
        """Keep the first one."""
        if self.number is None:
            self.number, self.at = number, time.monotonic()


_heard = _Heard()


@contextmanager
def heeded() -> Iterator[None]:
    """Within it a signal raises `Stopped` in the main thread, and at its end once more where something swallowed that."""
    outermost = not _heard.heeding and threading.current_thread() is threading.main_thread()
    before = _heed() if outermost else {}
    try:
        yield
    finally:
        number = _heard.number
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
        if outermost:
            _heard.heeding, _heard.number = False, None
        if number is not None:
            raise Stopped(number)


def heed_to_the_end() -> None:
    """As `heeded`, for a process whose only purpose is a command: it has ended `GRACE` seconds after a signal."""
    _heed()
    if not hasattr(os, "register_at_fork"):  # Windows, where signals are no way to end a process
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _tell(writer)
    # a child's signals are its own
    os.register_at_fork(
        before=lambda: _tell(-1), after_in_parent=lambda: _tell(writer), after_in_child=lambda: _tell(-1)
    )
    threading.Thread(target=_watch, args=(reader,), daemon=True, name="signals").start()


def exit_code(code: int) -> int:
    """Of a process that ends with a code, unless a signal asked for it."""
    return code if _heard.number is None else Stopped(_heard.number).exit_code


def _heed() -> dict[int, Any]:
    """Set the handlers; returns what was set before. What a process was started to ignore it ignores."""
    before = {number: signal.getsignal(number) for number in ENDS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, _stop)
    _heard.heeding = True
    return before


def _tell(writer: int) -> None:
    """Where signals are written to as they come; -1: nowhere. Threads other than the main one may not say it."""
    if threading.current_thread() is threading.main_thread():
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)


def _stop(number: int, _: FrameType | None) -> None:
    if _heard.number is None or time.monotonic() - _heard.at > AGAIN:
        _heard.hear(number)
        raise Stopped(_heard.number or number)


def _watch(reader: int) -> NoReturn:
    """End the process where it does not do so itself; the pipe is written to whatever the main thread is at."""
    while (number := os.read(reader, 1)[0]) not in ENDS:
        pass
    time.sleep(GRACE)
    stopped = Stopped(number)
    text = f"{stopped.said}: what was being computed or read did not end within {GRACE:.0f} seconds and was cut off\n"
    with suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:  # somebody takes it
            os.write(2, text.encode())
    os._exit(stopped.exit_code)
