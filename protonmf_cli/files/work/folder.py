"""Where an unfinished job keeps what it has, beside its output: what makes it resumable."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock

from protonmf_cli.errors import InputError


def digest_of_facts(facts: Mapping[str, Any]) -> str:
    """sha256 of everything that decides a job's result, in any order."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class WorkFolder:
    """A folder beside the output, with one sub-folder per job. Use as a context: it holds a lock.

    A job is named by a digest of everything that decides its result; another job with the same output never
    touches it.
    """

    job = "job"
    """What it is, in messages."""

    def __init__(self, output: Path, digest: str) -> None:
        self.work = output.parent / f".{output.name}.work"
        self.folder = self.work / digest[:16]
        self._lock = filelock.FileLock(output.parent / f".{output.name}.lock")
        self._output = output

    def __enter__(self) -> Self:
        try:
            self._lock.acquire(timeout=0)
            self.folder.mkdir(parents=True, exist_ok=True)
        except filelock.Timeout as failure:
            raise InputError(
                f"another {self.job} into {self._output} is running. Wait for it, or give another -o."
            ) from failure
        except OSError as failure:
            self._lock.release()
            raise InputError(f"{self.work} cannot be made: {failure.strerror or failure}.") from failure
        for path in self.folder.glob("*.part"):  # left by a process that was killed while writing
            path.unlink(missing_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def discard(self) -> None:
        """Remove this job's files, once its result is safe."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.work.is_dir() and not any(self.work.iterdir()):
            self.work.rmdir()

    def others(self) -> list[Path]:
        """Folders of unfinished jobs with the same output and other options, data or weights."""
        return sorted(path for path in self.work.iterdir() if path != self.folder)
