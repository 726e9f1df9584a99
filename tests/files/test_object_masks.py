"""Where objects are: masks and boxes as the network's crop sees them, groups, and what is refused."""

import numpy as np
import pytest
import torch
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.object_masks import boxed_objects, masked_objects, read_groups
from protonmf_cli.files.images.reader import ImageFile
from protonmf_cli.files.networks.preprocessing import crop_of
from toys import PREPROCESSING

CROP = crop_of(PREPROCESSING)


@pytest.fixture
def files(tmp_path):
    """Two pictures of 100 x 80 pixels."""
    found = []
    for name in ("tick/1.png", "tick/2.png"):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (100, 80)).save(path)
        found.append(ImageFile(path=path, name=name, class_index=0))
    return found


def mask(tmp_path, name, pixels):
    path = tmp_path / "masks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def half(value=1):
    pixels = np.zeros((80, 100))
    pixels[:, :50] = value
    return pixels


def test_a_mask_is_cropped_as_its_image(tmp_path, files):
    for n, name in enumerate(("tick/1.jpg.png", "tick/2.png")):
        mask(tmp_path, name.replace(".jpg", ""), half(1 + 254 * n))  # not black is enough
    objects = masked_objects(tmp_path / "masks", files, CROP, 3)
    for file in files:
        found = objects(file.name)
        assert found.shape == (64, 64) and found.dtype == torch.bool
        assert found[:, :31].all() and not found[:, 33:].any()  # the middle of the picture is that of the crop


def test_a_box_is_cropped_as_its_image(tmp_path, files):
    (tmp_path / "images.txt").write_text("1 tick/1.png\n2 tick/2.png\n")
    (tmp_path / "bounding_boxes.txt").write_text("1 0 0 50 80\n2 0 40 100 40\n")
    objects = boxed_objects(tmp_path, files, CROP, 3)
    first, second = (objects(file.name) for file in files)
    assert first[:, :31].all() and not first[:, 33:].any()
    assert second[33:].all() and not second[:31].any()


def test_an_object_that_the_crop_cuts_away_says_nothing(tmp_path, files):
    pixels = np.zeros((80, 100))
    pixels[:, :3] = 255  # the crop begins further right
    for name in ("tick/1.png", "tick/2.png"):
        mask(tmp_path, name, pixels)
    assert masked_objects(tmp_path / "masks", files, CROP, 3)("tick/1.png").all()


@pytest.mark.parametrize(
    ("pixels", "sentence"),
    [
        (np.zeros((80, 100)), r"1\.png marks nothing: what is not black is the object"),
        (np.ones((100, 80)), r"1\.png is 80 x 100 pixels and its image tick/1\.png 100 x 80\. Give masks as large"),
    ],
)
def test_bad_masks_are_refused_by_name(tmp_path, files, pixels, sentence):
    mask(tmp_path, "tick/1.png", pixels)
    objects = masked_objects(tmp_path / "masks", files[:1], CROP, 3)
    with pytest.raises(InputError, match=sentence):
        objects("tick/1.png")


def test_a_mask_that_is_no_image_is_refused(tmp_path, files):
    path = mask(tmp_path, "tick/1.png", half())
    path.write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"the mask .*1\.png is not an image"):
        masked_objects(tmp_path / "masks", files[:1], CROP, 3)("tick/1.png")


def test_missing_masks_boxes_and_folders_are_refused(tmp_path, files):
    with pytest.raises(InputError, match="the folder of masks .* does not exist"):
        masked_objects(tmp_path / "masks", files, CROP, 3)
    mask(tmp_path, "tick/1.png", half())
    with pytest.raises(InputError, match=r"1 of 2 images have no mask in .*, e\.g\. tick/2\.png"):
        masked_objects(tmp_path / "masks", files, CROP, 3)
    (tmp_path / "images.txt").write_text("1 tick/1.png\n")
    (tmp_path / "bounding_boxes.txt").write_text("1 0 0 50 80\n")
    with pytest.raises(InputError, match=r"1 of 2 images have no bounding box in .*, e\.g\. tick/2\.png"):
        boxed_objects(tmp_path, files, CROP, 3)


def test_groups_are_matched_by_folder_and_file(tmp_path):
    names = ["val/tick/1.png", "val/tick/2.png"]
    file = tmp_path / "groups.csv"
    assert read_groups(file, names, [("tick/1.png", "day"), ("data/val/tick/2.png", "night")]) == {
        "val/tick/1.png": "day",
        "val/tick/2.png": "night",
    }
    for pairs, sentence in (
        ([("tick/3.png", "day")], r"names tick/3\.png, which is none of the 2 images"),
        ([("tick/1.png", "")], r"tick/1\.png has no group"),
        (
            [("tick/1.png", "day"), ("tick/1.png", "night")],
            r"tick/1\.png is in day and in night\. An image is of one group",
        ),
        ([], "holds no line `path,group`"),
    ):
        with pytest.raises(InputError, match=sentence):
            read_groups(file, names, pairs)
