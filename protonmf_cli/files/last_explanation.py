"""What the last `explain` of each model was, so that `intervene --zero 2` can go on from there."""

import contextlib
import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import platformdirs

from protonmf_cli.files.atomic import write_atomically


@dataclass(frozen=True, kw_only=True)
class LastExplanation:
    """Image and class of an explanation."""

    image: str
    """Absolute path."""
    class_index: int


def remember(model: Path, last: LastExplanation) -> None:
    """Note the last explanation of a model; silently not, where the state folder cannot be written."""
    path = _path(model)
    with contextlib.suppress(Exception):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps({"model": str(model.resolve()), **asdict(last)}).encode())


def recall(model: Path) -> LastExplanation | None:
    """The last explanation of a model, None when there is none."""
    try:
        value = json.loads(_path(model).read_text(encoding="utf-8"))
        return LastExplanation(image=str(value["image"]), class_index=int(value["class_index"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _path(model: Path) -> Path:
    key = hashlib.sha256(str(model.resolve()).encode()).hexdigest()[:20]
    return platformdirs.user_state_path("protonmf", appauthor=False) / f"{key}.json"
