"""Where an unfinished job keeps what it has, beside its output: what makes it resumable."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from protonmf_cli.errors import InputError
from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.checks import check_name
from protonmf_cli.files.work.locks import acquired, lock_at, lock_path, released


def digest_of_facts(facts: Mapping[str, Any]) -> str:
    """sha256 of everything that decides a job's result, in any order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


SHOWN = 32
"""Longest value of a fact that is told; of digests and the like it is told that they differ."""


GONE = ".gone"
"""Of a folder that is being removed."""
FACTS = "facts.json"


class WorkFolder:
    """A folder beside the output, with one sub-folder per job. Use as a context: it holds a lock.

    A job is named by a digest of everything that decides its result; another job with the same output never
    touches it.
    """

    job = "job"
    """What it is, in messages."""

    def __init__(self, output: Path, digest: str) -> None:
        check_name(output)
        self.work = output.parent / f".{output.name}.work"
        self.folder = self.work / digest[:16]
        self._lock = lock_at(lock_path(output))
        self._output = output

    def __enter__(self) -> Self:
        if not self.take():
            raise InputError(f"another {self.job} into {self._output} is running. Wait for it, or give another -o.")
        for path in self.folder.glob("*.part"):  # left by a process that was killed while writing
            path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if self._lock.is_locked:
            for folder in (self.folder, self.work):  # where nothing was put there
                with suppress(OSError):
                    folder.rmdir()
            released(self._lock)

    def take(self) -> bool:
        """Take the right to write the output, and make the folder; False where another process has it.

        Raises:
            InputError: the folder cannot be made, or there are no locks on its disk.
        """
        try:
            if not acquired(self._lock):
                return False
        except OSError as failure:
            raise self._refusal(failure) from failure
        self.make()
        return True

    def make(self) -> None:
        """Make the folder.

        Raises:
            InputError: it cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as failure:
            self._lock.release()
            raise self._refusal(failure) from failure

    def _refusal(self, failure: OSError) -> InputError:
        return InputError(f"{self.work} cannot be made: {failure.strerror or failure}.")

    def describe(self, facts: Mapping[str, Any]) -> None:
        """Write down what decides the result, so that another run can tell what differs."""
        write_atomically(self.folder / FACTS, json.dumps(facts, indent=1, sort_keys=True).encode())

    def differences(self, facts: Mapping[str, Any]) -> dict[Path, list[str]]:
        """Other unfinished runs with this output, and what they were asked for instead."""
        found = {}
        for folder in self.others():
            try:
                theirs = json.loads((folder / FACTS).read_text())
            except (OSError, ValueError):
                continue
            ours = json.loads(json.dumps(facts))
            found[folder] = [
                f"{key} {theirs.get(key)} instead of {value}" if len(str(value)) <= SHOWN else f"other {key}"
                for key, value in ours.items()
                if theirs.get(key) != value
            ]
        return found

    def discard(self) -> None:
        """Remove this job's files, once its result is safe; for other processes all of them at once."""
        with suppress(OSError):
            self.folder.rename(Path(tempfile.mkdtemp(suffix=GONE, dir=self.work)) / self.folder.name)
        for gone in self.work.glob(f"*{GONE}"):
            shutil.rmtree(gone, ignore_errors=True)
        with suppress(OSError):
            self.work.rmdir()

    def others(self) -> list[Path]:
        """Folders of unfinished jobs with the same output and other options, data or weights."""
        return sorted(path for path in self.work.glob("*") if path != self.folder and path.suffix != GONE)
