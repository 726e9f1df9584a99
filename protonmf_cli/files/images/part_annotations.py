"""Where the parts of birds are: the text files of CUB-200-2011, and points carried through a network's crop.

Reference: Wah, Branson, Welinder, Perona and Belongie 2011, The Caltech-UCSD Birds-200-2011 Dataset.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.cub_text import numbered_lines, numbered_names
from protonmf_cli.files.images.reader import Crop

NEEDED = "images.txt, parts.txt and part_locs.txt"

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
    images = numbered_names(source, "images.txt", NEEDED)
    parts = numbered_names(source, "parts.txt", NEEDED)
    order = {number: place for place, number in enumerate(sorted(parts))}
    points: dict[str, Points] = {path: {} for path in images.values()}
    for line, (image, words) in enumerate(numbered_lines(source, "part_locs.txt", 5, NEEDED), start=1):
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


def points_in_crop(size: tuple[int, int], points: Points, crop: Crop) -> Points:
    """Points of an original image in pixels of what the network sees; those cut off are left out.

    A picture whose red grows to the right and whose green grows downwards goes through the same crop; a point
    lies where it has the point's colour. Colours have 255 steps, so this is good to a pixel or two.

    Args:
        size: (width, height) of the original image.
        points: in its pixels.
        crop: the network's evaluation transform.
    """
    width, height = size
    ramps = np.zeros((height, width, 3), dtype=np.uint8)
    ramps[..., 0] = np.linspace(1, 255, width).round()
    ramps[..., 1] = np.linspace(1, 255, height).round()[:, None]
    seen = np.asarray(crop(Image.fromarray(ramps)), dtype=np.float64)
    columns, rows = seen[0, seen.shape[1] // 2], seen[1, :, seen.shape[2] // 2]
    found: Points = {}
    for part, (x, y) in points.items():
        column = _place(columns, 1 + 254 * x / max(1, width - 1))
        row = _place(rows, 1 + 254 * y / max(1, height - 1))
        if column is not None and row is not None:
            found[part] = (column, row)
    return found


def _place(levels: np.ndarray, level: float) -> float | None:
    """Index at which rising levels have a value; None where they never come near it."""
    distance = np.abs(levels - level)
    step = max(1.0, float(np.median(np.abs(np.diff(levels)))))
    if distance.min() > step:
        return None
    return float(np.flatnonzero(distance <= distance.min() + 1e-9).mean())
