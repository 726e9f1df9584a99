"""A process that another one started to work on its conversion; what it is to do comes on standard input."""

import json
import os
import pickle
import sys
from threading import Thread
from typing import TextIO

from protonmf_cli.errors import ProtonmfError
from protonmf_cli.files.work.finished_classes import FinishedElsewhere, Shards
from protonmf_cli.jobs.conversion.filling import convert_missing
from protonmf_cli.jobs.conversion.preparing import ConversionWords, prepare_conversion
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.pipelines.progress import SILENT, Progress, Silent


class _Told(Silent):
    """Hands warnings to the process that started this one, line by line."""

    def __init__(self, channel: TextIO) -> None:
        self._channel = channel

    def warn(self, text: str) -> None:
        self._tell("warn", text)

    def lost(self, text: str) -> None:
        """This process ends, and why."""
        self._tell("lost", text)

    def _tell(self, kind: str, text: str) -> None:
        print(json.dumps([kind, text]), file=self._channel, flush=True)


def work_on(words: ConversionWords, progress: Progress = SILENT) -> None:
    """Convert classes that no other process is at until there are none; `progress` is told warnings."""
    with threads_of(words.machine):
        prepared = prepare_conversion(words, SILENT)
        with Shards(prepared.output, prepared.digest, leads=False, stays=False) as shards:
            convert_missing(prepared, shards, progress)


def main() -> int:
    """Exit code: 0, or that of the error that was told."""
    words, told = pickle.load(sys.stdin.buffer), _Told(_channel())
    Thread(target=_leave_with_the_leader, daemon=True).start()
    try:
        work_on(words, told)
    except FinishedElsewhere:
        return 0
    except ProtonmfError as failure:
        told.lost(str(failure))
        return failure.exit_code
    except Exception as failure:
        told.lost(f"{type(failure).__name__}: {failure}")
        raise
    return 0


def _channel() -> TextIO:
    """Standard output, for what is told alone: what a library prints goes to standard error from here on."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _leave_with_the_leader() -> None:
    sys.stdin.buffer.read()  # which ends when the other process closes it, or ends
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
