"""What a command shows: data on stdout; progress, notes and warnings on stderr."""

import json
import os
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.segment import Segment

from protonmf_cli.errors import UNPRINTABLE, printable

if TYPE_CHECKING:
    from rich.progress import TaskID

WIDTH_OF_A_PIPE = 120
PLAIN_EVERY = 30.0
"""Seconds between lines of progress when stderr is not a terminal."""


class Stream(Console):
    """stdout or stderr: what a name brings along commands no terminal.

    Once its reader has gone, what is left to say is dropped, and the command goes on to its end.
    """

    gone = False

    def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
        """Colours and the like are the command's own, and come as such."""
        for segment in super().render(renderable, options):
            text, style, control = segment
            yield segment if control else Segment(printable(text, keep="\n"), style)

    def _check_buffer(self) -> None:
        """A disk that is full ends no job whose notes were to go there."""
        try:
            super()._check_buffer()
        except OSError:
            if not self.stderr:
                raise
            self.on_broken_pipe()

    def on_broken_pipe(self) -> None:
        """Rich's own leaves with exit code 1, and files may not be written yet."""
        self.gone = True
        del self._buffer[:]
        drop(self.file)


def drop(stream: IO[str]) -> None:
    """Nothing more can be written to a stream, also not when the interpreter exits."""
    with open(os.devnull, "w") as nothing, suppress(OSError):  # noqa: PTH123 (no path); one in memory has no number
        os.dup2(nothing.fileno(), stream.fileno())


def say(text: str) -> None:
    """A line on stderr, if anybody reads it."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        drop(sys.stderr)


def put(text: str) -> None:
    """A text on stdout as it is, if anybody reads it."""
    _takes_everything(sys.stdout)
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        drop(sys.stdout)


def _takes_everything(stream: Any) -> None:
    """What an encoding lacks is written in another way: a setting of the terminal must not end a command."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace" if _is_utf8(stream) else "replace")


def _is_utf8(stream: Any) -> bool:
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"


def _in_json(found: re.Match[str]) -> str:
    """What JSON leaves as it is, though terminals take it for a command and no text can hold it."""
    char = found[0]
    if char == "\n":  # between the lines of the object
        return char
    return f"\\u{ord(char):04x}" if ord(char) < 0x100 else json.dumps(printable(char))[1:-1]


class Shown:
    """stdout and stderr of one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        _takes_everything(sys.stdout)
        width = None if sys.stdout.isatty() else WIDTH_OF_A_PIPE
        self.out = Stream(highlight=False, emoji=False, width=width)
        self.err = Stream(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self.as_json = as_json
        self.quiet = quiet
        self.verbose = verbose

    def note(self, text: str) -> None:
        """Something good to know."""
        if not self.quiet:
            self.err.print(f"note: {printable(text)}", markup=False)

    def log(self, text: str) -> None:
        """One line of a long job's diary."""
        if not self.quiet:
            self.err.print(printable(text), markup=False)

    def lines(self, texts: Mapping[str, str]) -> None:
        """Names and what is said of them, in two columns on stdout."""
        for name, text in texts.items():
            wrapped = textwrap.wrap(text, self.out.width - 17, break_long_words=False, break_on_hyphens=False)
            self.out.print(f"{name:>15}  " + f"\n{'':17}".join(wrapped), markup=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Something for those who asked for more."""
        if self.verbose and not self.quiet:
            self.err.print(printable(text), markup=False)

    def warn(self, text: str) -> None:
        """Something that may be wrong; also shown when quiet."""
        self.err.print(f"warning: {printable(text)}", style="yellow", markup=False)

    def error(self, text: str) -> None:
        """Something that failed while other things went on."""
        self.err.print(f"error: {printable(text)}", markup=False)

    def json(self, value: Mapping[str, Any], *, indent: int | None = 2) -> None:
        """One JSON object on stdout, at once: the same one whatever encoding and buffer stdout has."""
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
        text = UNPRINTABLE.sub(_in_json, text)
        text = (
            text
            if _is_utf8(sys.stdout)
            else "".join(char if char.isascii() else json.dumps(char)[1:-1] for char in text)
        )
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self.out.on_broken_pipe()

    def result(self, record: Mapping[str, Any], lines: Callable[[Mapping[str, Any]], Sequence[str]]) -> None:
        """What a command found: the record as JSON where that is asked for, else as lines of text."""
        if self.as_json:
            self.json(record)
        else:
            self.text(lines(record))

    def text(self, lines: Sequence[str]) -> None:
        """Lines on stdout as they are."""
        for line in lines:
            self.out.print(printable(line), markup=False, soft_wrap=True)

    def progress(self) -> "Bars":
        """A listener for a long job; use as a context."""
        return Bars(self)


class Bars:
    """Progress of a job: bars on a terminal, a line now and then elsewhere."""

    def __init__(self, shown: Shown) -> None:
        import logging  # which no help needs, as the next

        from rich import progress

        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # of a home folder that cannot be written
        self._shown = shown
        self._plain = shown.quiet or not shown.err.is_terminal
        self._bars = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(),
            console=shown.err,
            transient=True,
            disable=self._plain,
        )
        self._task: TaskID | None = None
        self._name, self._done, self._said = "", 0, time.monotonic()
        self._total: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int | None = None) -> None:
        """A new stage begins; nothing is drawn before the first one."""
        self._bars.start()
        if self._task is not None:
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(name, total=total)
        self._name, self._done, self._total = name, 0, total

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Some steps are done."""
        self._done += steps
        if self._task is not None:
            self._bars.advance(self._task, steps)
        if self._plain and not self._shown.quiet and time.monotonic() - self._said > PLAIN_EVERY:
            self._said = time.monotonic()
            of = f" of {self._total}" if self._total else ""
            self._shown.err.print(f"{self._name}: {self._done}{of}", markup=False)

    def note(self, text: str) -> None:
        """Pass a note on."""
        self._shown.note(text)

    def warn(self, text: str) -> None:
        """Pass a warning on."""
        self._shown.warn(text)

    def log(self, text: str) -> None:
        """Pass a line of the diary on."""
        self._shown.log(text)

    def detail(self, text: str) -> None:
        """Pass a detail on."""
        self._shown.detail(text)
