"""Locks that keep processes apart which would write the same file: they go with their process, so none gets stale."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import filelock

from protonmf_cli.errors import InputError

NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What a file system says that has no locks."""


@dataclass(kw_only=True)
class _Claims:
    """What one command is to write, and nobody else meanwhile."""

    warn: Callable[[str], None]
    held: dict[Path, filelock.FileLock] = field(default_factory=dict)
    """By the path of the lock."""
    warned: bool = False


_claims: ContextVar[_Claims | None] = ContextVar("claims", default=None)


@contextmanager
def claiming(warn: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Within it, or within the outermost of several, what `claim` is given stays with this process.

    Args:
        warn: is told of disks that have no locks.
    """
    if _claims.get() is not None:
        yield
        return
    claims = _Claims(warn=warn)
    token = _claims.set(claims)
    try:
        yield
    finally:
        _claims.reset(token)
        for lock in claims.held.values():
            released(lock)


def claim(output: Path, option: str = "-o") -> bool:
    """Keep other processes from writing a file or folder until `claiming` ends; outside of it nothing is done.

    Where the disk has no locks or the folder cannot be written to, nobody is kept away.

    Args:
        output: to be written.
        option: that names it, for the message.

    Returns:
        Whether it was free and is now this process's alone; False where it was so before, too.

    Raises:
        InputError: another process is writing it.
    """
    claims, path = _claims.get(), lock_path(output)
    if claims is None or path in claims.held or _helps():
        return False
    lock = filelock.FileLock(path, fallback_to_soft=False)
    try:
        free = acquired(lock)
    except InputError as failure:
        if not claims.warned:
            claims.warn(f"{failure.words} Until then, commands that write the same file at once are not kept apart.")
        claims.warned = True
        return False
    except OSError:
        return False  # whoever writes there says why that fails
    if not free:
        raise InputError(f"another command is writing {output}. Wait for it, or give another name with {option}.")
    claims.held[path] = lock
    return True


def lock_path(output: Path) -> Path:
    """The lock of an output, beside it."""
    whole = Path(os.path.abspath(output))  # noqa: PTH100 (a link is replaced, not what it names)
    return whole.with_name(f".{whole.name}.lock") if whole.name else whole / ".lock"


def lock_at(path: Path) -> filelock.FileLock:
    """A lock that goes with its process, on whichever machine: no marker that would stay.

    It is the same one where this command has claimed it already.
    """
    claims = _claims.get()
    held = None if claims is None else claims.held.get(Path(os.path.abspath(path)))  # noqa: PTH100
    return filelock.FileLock(path, fallback_to_soft=False) if held is None else held


def acquired(lock: filelock.FileLock) -> bool:
    """Take a lock; False where another process has it.

    Raises:
        OSError: its folder is not there, or cannot be written.
        InputError: the file system has no locks.
    """
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return False
    except OSError as failure:
        if failure.errno not in NO_LOCKS:
            raise
        Path(lock.lock_file).unlink(missing_ok=True)
        raise InputError(
            f"the disk of {Path(lock.lock_file).parent.resolve()} has no file locks ({failure.strerror}), which keep "
            "processes apart. Mount it with locks (Lustre: -o flock), or give a folder on another disk."
        ) from failure
    return True


def released(lock: filelock.FileLock) -> None:
    """Give a lock back; its file goes with the last one who holds it."""
    if lock.lock_counter == 1:
        with suppress(PermissionError):  # Windows removes no open file
            Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()


def _helps() -> bool:
    """Whether this is a process of torchrun that leaves writing to the first one."""
    processes = os.environ.get("WORLD_SIZE", "")
    return processes.isdecimal() and int(processes) > 1 and os.environ.get("RANK", "0") != "0"
