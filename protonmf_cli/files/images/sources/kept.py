"""What is kept about a data set in the user's cache folder; everything in it is made again when it is missing."""

import hashlib
from pathlib import Path

from protonmf_cli.files.images.sources.source import File
from protonmf_cli.files.work.cached_features import default_folder


def kept_path(kind: str, file: File, version: str) -> Path:
    """Where something about a file is kept: under a name that changes with its address and when it is replaced.

    Args:
        kind: folder, and what the name ends with.
        file: that it is about.
        version: of the file, and whatever else it depends on.
    """
    address = str(file if file.local is None else file.local.absolute())
    digest = hashlib.sha256(f"{address}\0{version}".encode(errors="surrogateescape")).hexdigest()
    return default_folder() / kind / f"{digest[:32]}.{kind}"
