"""CUB-200-2011's text files, and points carried through a crop."""

import shutil
import zipfile

import pytest
import torch
from PIL import Image

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.part_annotations import points_in_crop, read_part_annotations
from protonmf_cli.files.networks.preprocessing import crop_of
from protonmf_cli.models.backbone import Preprocessing

CUB = "data/cub200_2011_annotations.zip"
FIRST = "001.Black_footed_Albatross/Black_Footed_Albatross_0046_18.jpg"


def test_the_real_files(shared, tmp_path):
    found = read_part_annotations(shared / CUB)
    assert len(found.points) == 11788
    assert (len(found.names), found.names[0], found.names[-1]) == (15, "back", "throat")
    with zipfile.ZipFile(shared / CUB) as archive:
        archive.extractall(tmp_path)
        lines = archive.read("part_locs.txt").decode().splitlines()
        image_lines = archive.read("images.txt").decode().split()
    number = image_lines[image_lines.index(FIRST) - 1]
    expected = {
        int(part) - 1: (float(x), float(y))
        for image, part, x, y, visible in map(str.split, lines)
        if image == number and visible == "1"
    }
    assert found.of(f"/somewhere/val/{FIRST}") == expected
    assert found.of("other/image.jpg") is None
    (tmp_path / "parts").mkdir()
    for name in ("parts.txt", "part_locs.txt"):
        shutil.move(tmp_path / name, tmp_path / "parts" / name)
    assert read_part_annotations(tmp_path) == found


def small(folder, images="1 a/b.jpg\n", parts="1 beak\n", places="1 1 3.0 4.0 1\n"):
    for name, text in (("images.txt", images), ("parts.txt", parts), ("part_locs.txt", places)):
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"places": "7 1 3.0 4.0 1\n"}, "do not belong together"),
        ({"places": "1 2 3.0 4.0 1\n"}, "do not belong together"),
        ({"places": "1 1 x 4.0 1\n"}, "line 1 of .* is not `image part x y visible`"),
        ({"places": "1 1 3.0\n"}, "line 1 of .*part_locs.txt is not as CUB-200-2011 writes it"),
        ({"images": "one a/b.jpg\n"}, "line 1 of .*images.txt is not as"),
    ],
)
def test_damaged_files(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        read_part_annotations(small(tmp_path, **change))


def test_missing_files(tmp_path):
    small(tmp_path)
    (tmp_path / "parts.txt").unlink()
    with pytest.raises(InputError, match=r"parts.txt cannot be read"):
        read_part_annotations(tmp_path)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        archive.writestr("images.txt", "1 a/b.jpg\n")
    with pytest.raises(InputError, match="has no parts.txt"):
        read_part_annotations(tmp_path / "some.zip")
    (tmp_path / "no.zip").write_text("nothing")
    with pytest.raises(InputError, match="cannot be read"):
        read_part_annotations(tmp_path / "no.zip")


@pytest.mark.parametrize("size", [(400, 260), (150, 333), (224, 224)])
@pytest.mark.parametrize(("mode", "share"), [("center", 0.875), ("squash", 1.0), ("border", 0.9)])
def test_a_point_is_found_where_the_crop_puts_it(size, mode, share):
    preprocessing = Preprocessing(
        input_size=(3, 96, 96), interpolation="bicubic", crop_pct=share, crop_mode=mode, mean=(0,) * 3, std=(1,) * 3
    )
    crop = crop_of(preprocessing)
    x, y = size[0] // 2 + 20, size[1] // 2 - 25
    picture = Image.new("RGB", size)
    picture.paste((255, 255, 255), (x - 4, y - 4, x + 5, y + 5))
    bright = crop(picture).float().mean(dim=0)
    row, column = (torch.stack(torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")) * bright).sum(
        dim=(1, 2)
    ) / bright.sum()
    found = points_in_crop(size, {0: (x, y), 1: (-50.0, y)}, crop)
    assert found.keys() == {0}
    assert found[0] == pytest.approx((float(column), float(row)), abs=2)


def test_a_point_outside_the_crop_is_left_out():
    preprocessing = Preprocessing(
        input_size=(3, 96, 96), interpolation="bicubic", crop_pct=0.875, crop_mode="center", mean=(0,) * 3, std=(1,) * 3
    )
    assert points_in_crop((400, 100), {0: (5.0, 50.0), 1: (200.0, 50.0)}, crop_of(preprocessing)).keys() == {1}
