"""Data sets inside zip archives."""

import zipfile
from dataclasses import replace

import pytest

from protonmf_cli.errors import InputError
from protonmf_cli.files.images.datasets import ClassMapping, class_folders, find_images
from protonmf_cli.files.images.reader import size_of
from protonmf_cli.files.images.sources import zip_archive
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.models.image_batches import Skipped
from toys import PREPROCESSING


def pack(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def listed(path, split="train"):
    classes = class_folders(path, split)
    return [file.name for c, files in find_images(path, split, classes, ClassMapping()).files.items() for file in files]


@pytest.mark.parametrize(
    ("names", "train", "val"),
    [
        (["a/1.png", "b/2.png"], ["a/1.png", "b/2.png"], ["a/1.png", "b/2.png"]),
        (["data/a/1.png", "data/b/2.png", "data/readme.txt"], ["a/1.png", "b/2.png"], ["a/1.png", "b/2.png"]),
        (["d/train/a/1.png", "d/train/b/2.png", "d/val/a/3.png"], ["a/1.png", "b/2.png"], ["a/3.png"]),
        (["a/x/1.png", "b/y/2.png"], ["a/x/1.png", "b/y/2.png"], ["a/x/1.png", "b/y/2.png"]),
        (["a/1.png"], ["a/1.png"], ["a/1.png"]),
        (["train/a/1.png", "val/a/2.png", "test/b/3.png"], ["a/1.png"], ["a/2.png"]),
        (["/a/1.png", "b/2.png"], ["a/1.png", "b/2.png"], ["a/1.png", "b/2.png"]),
        (["a/1.png", "__MACOSX/a/1.png", "b/.2.png", "b/2.png"], ["a/1.png", "b/2.png"], ["a/1.png", "b/2.png"]),
    ],
)
def test_class_folders_are_found_inside(tmp_path, names, train, val):
    path = pack(tmp_path / "data.zip", dict.fromkeys(names, b"x"))
    assert (listed(path, "train"), listed(path, "val")) == (train, val)


def test_an_archive_reads_like_its_folder(toy, tmp_path):
    folder = toy.data / "train"
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))}
    path = pack(tmp_path / "toy.zip", files)
    reader = image_reader(PREPROCESSING, batch_size=4, workers=2)
    found = []
    for data in (folder, path):
        images = find_images(data, "train", class_folders(data, "train"), ClassMapping())
        found.append(
            [(b.class_index, b.crops.sum().item(), b.sources) for b in reader.batches(images.of(images.files))]
        )
    assert found[0] == found[1] and len(found[0]) > 4
    one = images.of([0])[0]
    assert size_of(one.path) == size_of(folder / one.name)


def test_another_archive_of_the_same_name_is_read_anew(tmp_path):
    path = pack(tmp_path / "data.zip", {"a/1.png": b"x", "b/2.png": b"y"})
    assert listed(path) == ["a/1.png", "b/2.png"]
    pack(path, {"a/1.png": b"x", "b/2.png": b"y", "c/3.png": b"z"})
    assert listed(path) == ["a/1.png", "b/2.png", "c/3.png"]


def test_a_changed_member_changes_the_fingerprint(tmp_path):
    prints = []
    for number, content in enumerate((b"x", b"y")):
        path = pack(tmp_path / f"{number}.zip", {"a/1.png": content, "b/2.png": b"z"})
        prints.append(find_images(path, "train", class_folders(path, "train"), ClassMapping()).fingerprint())
    assert prints[0] != prints[1]


def test_members_that_are_encrypted_moved_or_too_large_are_not_read(tmp_path, monkeypatch):
    path = pack(tmp_path / "data.zip", {"a/1.png": b"x" * 99, "b/2.png": b"y"})
    file = find_images(path, "train", class_folders(path, "train"), ClassMapping()).files[0][0]
    for changed, words in (
        ({"flags": 1}, "encrypted"),
        ({"offset": 3}, "something else"),
        ({"unpacked": 2**30}, "MiB"),
    ):
        with pytest.raises(OSError, match=words):
            replace(file.path, **changed).read_bytes()
    monkeypatch.setattr(zip_archive, "SPARE", -10)  # a long extra field: the rest is read again
    assert file.read_bytes() == b"x" * 99


def test_damage_is_named(tmp_path, toy):
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and nothing")
    with pytest.raises(InputError, match=r"broken.zip is damaged or not a zip archive"):
        class_folders(broken, "train")
    with pytest.raises(InputError, match=r"empty.zip holds no images"):
        class_folders(pack(tmp_path / "empty.zip", {}), "train")
    with pytest.raises(InputError, match=r"images outside class folders \(1.png\)"):
        class_folders(pack(tmp_path / "loose.zip", {"1.png": b"x", "a/2.png": b"x"}), "train")
    with pytest.raises(InputError, match="has train but no val"):
        class_folders(pack(tmp_path / "half.zip", {"train/a/1.png": b"x", "train/b/2.png": b"x"}), "val")
    picture = toy.image().read_bytes()
    path = pack(tmp_path / "flipped.zip", {"a/1.png": picture, "b/2.png": picture})
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    flipped = find_images(path, "train", class_folders(path, "train"), ClassMapping()).files[0][0]
    with pytest.raises(OSError, match="CRC|decompress"):
        flipped.read_bytes()
    found = image_reader(PREPROCESSING, batch_size=4, workers=1).read(flipped)
    assert isinstance(found, Skipped) and "cannot be read" in found.reason
