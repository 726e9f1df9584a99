"""What is left where a process was killed while it wrote a file, and is removed by whoever writes there next."""

import re
import shutil
import time
from contextlib import suppress
from pathlib import Path

PART = ".part"
"""Ends the name of a file or folder that is being written."""


def sweep(folder: Path, name: str = "", age: float = 0.0, *, any_suffix: bool = False) -> None:
    """Remove what `write_atomically` and `write_folder` left where their process was killed.

    Args:
        folder: where it wrote.
        name: final name of the file; of any if empty.
        age: seconds for which nobody touched it.
        any_suffix: the name lacks its suffix.
    """
    suffix = r"\.\w+" if any_suffix else ""
    ours = re.compile(rf"\.{re.escape(name) or '.+'}{suffix}\.[a-z0-9_]{{8}}{re.escape(PART)}")
    with suppress(OSError):
        for path in [each for each in folder.iterdir() if ours.fullmatch(each.name)]:
            with suppress(OSError):
                if time.time() - path.stat().st_mtime < age:
                    continue
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
