"""Images cut to their bounding boxes, as in ProtoPNet's experiments on CUB-200-2011."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.cub_text import numbered_lines, numbered_names
from protonmf_cli.files.images.datasets import ClassMapping, LabelledImages, find_images
from protonmf_cli.files.images.reader import Box
from protonmf_cli.files.images.sources.opening import Data
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.card import Card

NEEDED = "images.txt and bounding_boxes.txt"


def find_boxed_images(
    data: Data, split: str, classes: tuple[ClassName, ...], mapping: ClassMapping, boxes: Path | None
) -> LabelledImages:
    """The labelled images of a split (see `find_images`), cut to their boxes where a source of boxes is given."""
    found = find_images(data, split, classes, mapping)
    return found if boxes is None else cut_to_boxes(found, read_boxes(boxes))


def images_for(card: Card, data: Data, split: str, mapping: ClassMapping, boxes: Path | None) -> LabelledImages:
    """Labelled images of a model's classes, with a note where it was trained on cut images and these are not."""
    mapping = replace(mapping, multi_label=card.source.multi_label)
    found = find_boxed_images(data, split, card.classes, mapping, boxes)
    if boxes is not None or not card.data.boxes:
        return found
    note = "the model was trained on images cut to bounding boxes, and these are not cut: give --boxes."
    return replace(found, notes=(*found.notes, note))


def read_boxes(source: Path) -> dict[str, Box]:
    """Read images.txt and bounding_boxes.txt (`image x y width height`) from a folder, a zip archive or beside a file.

    Returns:
        `class folder/file name` -> left, top, right, bottom in pixels of the original picture.

    Raises:
        InputError: a file is missing or a line is not as CUB-200-2011 writes it.
    """
    images = numbered_names(source, "images.txt", NEEDED)
    boxes = {}
    for line, (image, words) in enumerate(numbered_lines(source, "bounding_boxes.txt", 5, NEEDED), start=1):
        try:
            left, top, width, height = (float(word) for word in words[:4])
        except ValueError as failure:
            raise InputError(
                f"line {line} of bounding_boxes.txt in {source} is not `image x y width height`."
            ) from failure
        if not all(map(math.isfinite, (left, top, width, height))):
            raise InputError(f"line {line} of {source}/bounding_boxes.txt holds a number that is not finite.")
        if image not in images:
            raise InputError(
                f"line {line} of bounding_boxes.txt in {source} names image {image}, which images.txt has not."
            )
        boxes[images[image]] = (left, top, left + width, top + height)
    return boxes


def cut_to_boxes(images: LabelledImages, boxes: Mapping[str, Box]) -> LabelledImages:
    """The same images, each cut to its box.

    Raises:
        InputError: an image has no box.
    """
    files = {}
    for c, found in images.files.items():
        cut = []
        for file in found:
            box = boxes.get(file.in_class)
            if box is None:
                raise InputError(
                    f"{file.path} has no bounding box: boxes are matched by class folder and file name. "
                    "Leave out --boxes, or give boxes for all images."
                )
            cut.append(replace(file, box=box))
        files[c] = tuple(cut)
    return replace(images, files=files)
