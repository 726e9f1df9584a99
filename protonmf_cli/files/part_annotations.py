"""Where the parts of birds are: the text files of CUB-200-2011, and points carried through a network's crop.

Reference: Wah, Branson, Welinder, Perona and Belongie 2011, The Caltech-UCSD Birds-200-2011 Dataset.
"""

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.files.images import Crop

Points = dict[int, tuple[float, float]]
"""Part -> x, y in pixels; only visible parts."""


@dataclass(frozen=True, kw_only=True)
class PartAnnotations:
    """Visible parts of every annotated image."""

    names: tuple[str, ...]
    """Of the parts; their numbers here start at 0."""
    points: dict[str, Points]
    """Path of an image, `class folder/file name` -> its parts, in pixels of the original image."""

    def of(self, path: str) -> Points | None:
        """Parts of an image by the last two components of its path; None where it is not annotated."""
        return self.points.get("/".join(Path(path).parts[-2:]))


def read_part_annotations(source: Path) -> PartAnnotations:
    """Read images.txt, parts.txt and part_locs.txt from a folder (parts may lie in parts/) or a zip archive.

    Raises:
        InputError: a file is missing or a line is not as CUB-200-2011 writes it; names file and line.
    """
    images = {number: words[0] for number, words in _lines(source, "images.txt", 2)}
    parts = {number: " ".join(words) for number, words in _lines(source, "parts.txt", 2)}
    order = {number: place for place, number in enumerate(sorted(parts))}
    points: dict[str, Points] = {path: {} for path in images.values()}
    for line, (image, words) in enumerate(_lines(source, "part_locs.txt", 5), start=1):
        try:
            part, x, y, visible = int(words[0]), float(words[1]), float(words[2]), int(words[3])
        except ValueError as failure:
            raise InputError(f"line {line} of {source}/part_locs.txt is not `image part x y visible`.") from failure
        if image not in images or part not in order:
            raise InputError(
                f"line {line} of {source}/part_locs.txt names image {image} and part {part}, "
                "which images.txt or parts.txt do not have: the files do not belong together."
            )
        if visible:
            points[images[image]][order[part]] = (x, y)
    return PartAnnotations(names=tuple(parts[number] for number in sorted(parts)), points=points)


def _lines(source: Path, name: str, words: int) -> Iterable[tuple[int, list[str]]]:
    """Number and further words of each line."""
    for place, line in enumerate(_text(source, name).splitlines(), start=1):
        found = line.split()
        if not found:
            continue
        if len(found) < words or not found[0].isdecimal():
            raise InputError(f"line {place} of {source}/{name} is not as CUB-200-2011 writes it: {line[:80]!r}.")
        yield int(found[0]), found[1:]


def _text(source: Path, name: str) -> str:
    try:
        if source.is_dir():
            path = next((p for p in (source / name, source / "parts" / name) if p.is_file()), source / name)
            return path.read_text(encoding="utf-8")
        with zipfile.ZipFile(source) as archive:
            inside = [entry for entry in archive.namelist() if entry.split("/")[-1] == name]
            if not inside:
                raise InputError(f"{source} has no {name}; images.txt, parts.txt and part_locs.txt are needed.")
            return archive.read(min(inside, key=len)).decode("utf-8")
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as failure:
        reason = getattr(failure, "strerror", None) or failure
        raise InputError(
            f"{source / name} cannot be read ({reason}). Give the folder or zip archive with images.txt, parts.txt and "
            "part_locs.txt of CUB-200-2011."
        ) from failure


def points_in_crop(size: tuple[int, int], points: Points, crop: Crop) -> Points:
    """Points of an original image in pixels of what the network sees; those cut off are left out.

    Two ramps, one along each axis, go through the same crop as the image; a point lies where they have its
    coordinates.

    Args:
        size: (width, height) of the original image.
        points: in its pixels.
        crop: the network's evaluation transform.
    """
    width, height = size
    across = np.broadcast_to(np.arange(width, dtype=np.float32), (height, width))
    down = np.broadcast_to(np.arange(height, dtype=np.float32)[:, None], (height, width))
    x_of, y_of = (np.asarray(crop(Image.fromarray(np.ascontiguousarray(ramp))))[0] for ramp in (across, down))
    columns, rows = x_of[len(x_of) // 2], y_of[:, y_of.shape[1] // 2]
    found: Points = {}
    for part, (x, y) in points.items():
        column, row = int(np.abs(columns - x).argmin()), int(np.abs(rows - y).argmin())
        step = max(1.0, float(np.abs(np.diff(columns)).max()), float(np.abs(np.diff(rows)).max()))
        if abs(columns[column] - x) <= step and abs(rows[row] - y) <= step:
            found[part] = (float(column), float(row))
    return found
