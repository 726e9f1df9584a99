"""A process that another one started to work on its conversion; what it is to do comes on standard input."""

import json
import os
import pickle
import sys
from threading import Thread

from protonmf_cli.errors import ProtonmfError
from protonmf_cli.files.work.finished_classes import FinishedElsewhere, Shards
from protonmf_cli.jobs.conversion.filling import convert_missing
from protonmf_cli.jobs.conversion.preparing import ConversionWords, prepare_conversion
from protonmf_cli.jobs.machine import threads_of
from protonmf_cli.pipelines.progress import SILENT, Silent


class _Told(Silent):
    """Hands warnings to the process that started this one."""

    def warn(self, text: str) -> None:
        _tell("warn", text)


def work_on(words: ConversionWords) -> None:
    """Convert classes that no other process is at until there are none."""
    with threads_of(words.machine):
        prepared = prepare_conversion(words, SILENT)
        with Shards(prepared.output, prepared.digest, leads=False, stays=False) as shards:
            convert_missing(prepared, shards, _Told())


def main() -> int:
    """Exit code: 0, or that of the error that was told."""
    words = pickle.load(sys.stdin.buffer)
    Thread(target=_leave_with_the_leader, daemon=True).start()
    try:
        work_on(words)
    except FinishedElsewhere:
        return 0
    except ProtonmfError as failure:
        _tell("lost", str(failure))
        return failure.exit_code
    except Exception as failure:
        _tell("lost", f"{type(failure).__name__}: {failure}")
        raise
    return 0


def _tell(kind: str, text: str) -> None:
    print(json.dumps([kind, text]), flush=True)


def _leave_with_the_leader() -> None:
    sys.stdin.buffer.read()  # which ends when the other process closes it, or ends
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
