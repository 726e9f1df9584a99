"""Files that are whole or not there, also after the power went."""

import errno
import os
import stat
from pathlib import Path

import pytest

from protonmf_cli.files.atomic import write_atomically
from protonmf_cli.files.page_folder import INDEX, write_folder


@pytest.fixture
def flushed(monkeypatch):
    """What was flushed to disk, folders by the names they held then."""
    found, fsync = [], os.fsync

    def noted(handle):
        place = Path(f"/proc/self/fd/{handle}").readlink()
        found.append(
            sorted(each.name for each in place.iterdir()) if stat.S_ISDIR(os.fstat(handle).st_mode) else "file"
        )
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return found


def test_the_file_is_flushed_before_its_name_and_the_name_too(tmp_path, flushed):
    write_atomically(tmp_path / "a", b"content")
    assert flushed == ["file", ["a"]]


def test_a_folder_that_cannot_be_flushed_is_written_to(tmp_path, monkeypatch):
    fsync = os.fsync

    def files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    write_atomically(tmp_path / "a", b"content")
    write_folder(tmp_path / "r", {INDEX: b"page", "pictures/1.jpg": b"one"})
    assert (tmp_path / "a").read_bytes() == b"content" and (tmp_path / "r" / INDEX).read_bytes() == b"page"


def test_a_new_page_comes_after_its_pictures_and_the_old_ones_go_after_it(tmp_path, flushed):
    folder = tmp_path / "r"
    write_folder(folder, {INDEX: b"old", "pictures/1.jpg": b"one", "pictures/2.jpg": b"two"})
    assert flushed[-1] == ["r"]
    del flushed[:]
    write_folder(folder, {INDEX: b"new", "pictures/2.jpg": b"two", "pictures/3.jpg": b"three"})
    pictures, page = flushed[-2:]
    assert pictures == ["1.jpg", "2.jpg", "3.jpg"] and page == [INDEX, "pictures"]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["2.jpg", "3.jpg"]
    assert (folder / INDEX).read_bytes() == b"new" and [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_page_that_cannot_be_put_in_place_leaves_the_old_report(tmp_path, monkeypatch):
    folder, replace = tmp_path / "r", Path.replace
    write_folder(folder, {INDEX: b"old", "pictures/1.jpg": b"one"})

    def full(self, target):
        if Path(target).name == INDEX:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(Exception, match="could not be written: No space left on device. Nothing was changed"):
        write_folder(folder, {INDEX: b"new", "pictures/3.jpg": b"three"})
    assert sorted(path.name for path in folder.rglob("*")) == ["1.jpg", INDEX, "pictures"]
    assert (folder / INDEX).read_bytes() == b"old" and [path.name for path in tmp_path.iterdir()] == ["r"]
