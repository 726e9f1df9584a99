"""The same images in every form, what is refused of each, and sources that vanish."""

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import packed
from protonmf_cli.errors import InputError
from protonmf_cli.files.images.datasets import ClassMapping, LabelledImages, class_folders, find_images
from protonmf_cli.files.images.reader import ImageFile
from protonmf_cli.files.images.sources import parquet, remote
from protonmf_cli.files.images.sources.opening import check_there, list_images, splits_of
from protonmf_cli.files.images.sources.source import SourceError
from protonmf_cli.jobs.loaded import image_reader
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.image_batches import Skipped
from protonmf_cli.options import ImageWords
from toys import PREPROCESSING

CLASSES = tuple(ClassName(label=label) for label in ("ant", "bee", "cat"))


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    """What is kept about tars and tables is kept per test; nothing stays in memory's store, and nothing is waited for."""
    monkeypatch.setattr("protonmf_cli.files.images.sources.kept.default_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(remote, "WAITS", (0, 0))
    yield
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def pictures() -> dict[str, bytes]:
    """Seven small pictures; one name occurs in two classes, one class has a folder's worth of odd names."""
    generator, files = np.random.default_rng(0), {}
    for name in ("ant/1.png", "ant/2.jpg", "bee/1.png", "bee/B.JPEG", "bee/a-b.png", "cat/x y.webp", "cat/z.png"):
        content = io.BytesIO()
        kind = {"jpg": "JPEG", "jpeg": "JPEG"}.get(name.rpartition(".")[2].lower(), name.rpartition(".")[2].upper())
        Image.fromarray(generator.integers(0, 255, (9, 12, 3), dtype=np.uint8)).save(content, kind)
        files[name] = content.getvalue()
    return files


def found_in(data, split="train") -> LabelledImages:
    return find_images(data, split, CLASSES, ClassMapping())


def named(images: LabelledImages) -> list[tuple[int, str]]:
    return [(file.class_index, file.name) for file in images.of(images.files)]


@pytest.mark.parametrize("form", packed.FORMS)
def test_every_form_gives_the_same_files_names_order_and_bytes(tmp_path, form):
    files = pictures()
    data = packed.FORMS[form](tmp_path / "images", files)
    found = found_in(data)
    names = ["ant/1.png", "ant/2.jpg", "bee/1.png", "bee/B.JPEG", "bee/a-b.png", "cat/x y.webp", "cat/z.png"]
    assert named(found) == list(zip([0, 0, 1, 1, 1, 2, 2], names, strict=True))
    assert [file.read_bytes() for file in found.of(found.files)] == [files[name] for name in names]
    assert [file.in_class for file in found.of(found.files)] == names
    assert (found.split, len(found.notes)) == ("images", form == "parquet")
    assert class_folders(data, "train") == CLASSES
    assert pickle.loads(pickle.dumps(found)) == found


@pytest.mark.parametrize("form", packed.FORMS)
def test_names_are_sorted_by_folders_before_files(tmp_path, form):
    files = {f"ant/{name}.png": name.encode() for name in ("b/1", "b-1", "a", "c/2")}
    if form in ("webdataset", "parquet"):
        pytest.skip("has no folders below a class")
    found = found_in(packed.FORMS[form](tmp_path / "images", files))
    assert [name for _, name in named(found)] == ["ant/a.png", "ant/b/1.png", "ant/b-1.png", "ant/c/2.png"]


def test_fingerprints_know_names_sizes_and_samples_but_no_times_and_places(tmp_path):
    files = pictures()
    prints = {form: found_in(make(tmp_path / form, files)).fingerprint() for form, make in packed.FORMS.items()}
    first = prints["folder"]
    assert {form for form, found in prints.items() if found == first} == {
        "folder", "tar", "webdataset", "memory", "memory-tar",
    }  # fmt: skip
    copy = packed.folder(tmp_path / "copy", files)
    os.utime(copy / "ant/1.png", (1, 1))
    assert found_in(copy).fingerprint() == first
    (copy / "ant/1.png").write_bytes(bytes(len(files["ant/1.png"])))
    assert found_in(copy).fingerprint() != first  # one of the sample
    packed.folder(copy, files)
    with (copy / "ant/1.png").open("ab") as file:
        file.write(b"\0")
    assert found_in(copy).fingerprint() != first
    (copy / "ant/1.png").unlink()
    images = found_in(packed.folder(tmp_path / "gone", files))
    (tmp_path / "gone/ant/1.png").unlink()
    assert images.fingerprint() not in (first, found_in(copy).fingerprint())


def test_the_fingerprint_of_parquet_knows_its_footer(tmp_path):
    prints = []
    for content in (b"1", b"1", b"2"):
        pq.write_table(packed.table([("ant/1.png", content)]), tmp_path / "x.parquet")
        prints.append(found_in(tmp_path / "x.parquet").fingerprint())
    assert prints[0] == prints[1] != prints[2]


def test_a_folder_is_listed_without_a_look_at_single_files(tmp_path, monkeypatch):
    data = packed.folder(tmp_path / "images", pictures())
    looked = []
    for name in ("stat", "lstat"):
        before = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *a, _f=before, **k: (looked.append(str(path)), _f(path, *a, **k))[1])
    images = found_in(data)
    assert len(images.of(images.files)) == 7 and [path for path in looked if Path(path).suffix] == []
    images.fingerprint()
    images.fingerprint()
    assert len([path for path in looked if Path(path).suffix]) == 7


def test_a_store_is_listed_in_one_request(tmp_path, monkeypatch):
    data = packed.memory(tmp_path / "images", pictures())
    asked = []
    for name in ("find", "info", "cat_file"):
        before = getattr(MemoryFileSystem, name)
        monkeypatch.setattr(
            MemoryFileSystem,
            name,
            lambda self, path, *a, _n=name, _f=before, **k: (asked.append(_n), _f(self, path, *a, **k))[1],
        )
    images = found_in(data)
    assert asked.count("find") == 1 and "cat_file" not in asked
    asked.clear()
    sizes = [file.state() for file in images.of(images.files)]
    assert asked == []
    assert sizes == [str(len(content)) for content in (file.read_bytes() for file in images.of(images.files))]
    assert asked.count("cat_file") == 7


# what is kept


def single_parquet(path, files) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(packed.table(list(files.items())), path)
    return path


@pytest.mark.parametrize("versions", [remote.VERSIONS, ()])
@pytest.mark.parametrize("make", [packed.zipped, packed.tar, single_parquet])
def test_nothing_kept_is_used_for_another_file_of_the_same_size(tmp_path, monkeypatch, make, versions):
    monkeypatch.setattr(remote, "VERSIONS", versions)
    sizes = set()
    for files in ({"ant/1.png": b"1"}, {"bee/1.png": b"1"}, {"bee/1.png": b"2"}):
        data = packed.behind_url(make(tmp_path / "x", files))
        found = found_in(data)
        sizes.add(fsspec.filesystem("memory").size(data.removeprefix("memory:/")))
        assert {file.name: file.read_bytes() for file in found.of(found.files)} == files
    assert len(sizes) == 1
    assert len(list((tmp_path / "cache").rglob("*.tar-index"))) == (3 if make is packed.tar and versions else 0)


# splits


@pytest.mark.parametrize("make", [packed.folder, packed.zipped, packed.tar, packed.memory])
@pytest.mark.parametrize("word", ["val", "validation"])
def test_splits_above_class_folders(tmp_path, make, word):
    data = make(tmp_path / "images", {"train/ant/1.png": b"1", f"{word}/ant/2.png": b"2", "test/bee/3.png": b"3"})
    assert splits_of(data) == ["train", "val"]
    for split, name in (("train", "ant/1.png"), ("val", "ant/2.png"), ("test", "bee/3.png")):
        found = found_in(data, split)
        assert ([shown for _, shown in named(found)], found.split) == ([name], split)


def shards(folder, kind, *names) -> Path:
    folder.mkdir(parents=True)
    for n, name in enumerate(names):
        images = [(f"ant/{n}.png", str(n).encode()), (f"bee/{n}.png", str(n).encode())]
        if kind == "tar":
            packed.tarred(folder / f"{name}.tar", packed.samples(images))
        else:
            pq.write_table(packed.table(images), folder / f"{name}.parquet")
    return folder


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_splits_in_the_names_of_shards(tmp_path, kind):
    data = shards(tmp_path / "d", kind, "x-train-0", "x-train-1", "validation-00000-of-00001", "x-test-0")
    assert splits_of(data) == ["train", "val"]
    for split, numbers in (("train", "01"), ("val", "2"), ("test", "3")):
        found = found_in(data, split)
        assert named(found) == [(c, f"{label}/{n}.png") for c, label in ((0, "ant"), (1, "bee")) for n in numbers]
        assert found.split == split
    (data / f"validation-00000-of-00001.{kind}").unlink()
    with pytest.raises(InputError, match="d has train and test but no val. Give split train"):
        found_in(data, "val")


@pytest.mark.parametrize("name", ["birds_train_val", "ab-test", "val"])
@pytest.mark.parametrize("in_folder", [False, True])
def test_splits_inside_a_single_tar_come_before_its_name(tmp_path, name, in_folder):
    data = packed.tar(tmp_path / name, {"train/ant/1.png": b"1", "val/ant/2.png": b"2"})
    (tmp_path / ".cache").mkdir()
    data = data.parent if in_folder else data
    assert splits_of(data) == ["train", "val"]
    for split, shown in (("train", "ant/1.png"), ("val", "ant/2.png")):
        assert (named(found_in(data, split)), found_in(data, split).split) == ([(0, shown)], split)


def test_the_name_of_a_single_tar_speaks_where_its_folders_do_not(tmp_path):
    data = packed.tar(tmp_path / "val", {"ant/1.png": b"1"})
    assert (splits_of(data), found_in(data, "val").split) == (["val"], "val")
    refused("has val but no train. Give split val", data, "train")


@pytest.mark.parametrize("make", [packed.zipped, packed.tar])
def test_an_image_beside_the_folders_of_splits_makes_no_class_of_what_holds_them(tmp_path, make):
    data = make(tmp_path / "x", {"tiny/logo.png": b"0", "tiny/train/ant/1.png": b"1", "tiny/val/ant/2.png": b"2"})
    assert splits_of(data) == ["train", "val"]
    assert named(found_in(data)) == [(0, "ant/1.png")]


def test_shards_of_no_split_and_of_another_kind_are_named_and_hidden_ones_are_none(tmp_path):
    data = shards(tmp_path / "d", "tar", "train-0", "extra")
    (data / "._train-0.tar").write_bytes(b"\0\5\26\7")
    (data / "more.parquet").write_bytes(b"x")
    found = found_in(data)
    assert (found.counts, splits_of(data)) == ({0: 1, 1: 1}, ["train"])
    assert found.notes == (
        "files whose names speak of no split left out: extra.tar",
        "files beside the .tar files left out: more.parquet",
    )
    (data / "train-0.tar").unlink()
    assert found_in(data).notes == ("files beside the .tar files left out: more.parquet",)


def test_ranges_are_as_many_names_as_all_of_them_together(tmp_path):
    refused(r"\{0..999\} in .*-\{0..1000\}.tar does not rise, or there are more than 1,000,000 names with it",
            tmp_path / "x-{0..999}-{0..1000}.tar")  # fmt: skip
    for n in range(2):
        shards(tmp_path / "d" / f"{n}", "tar", "s")
    found = found_in(tmp_path / "d/{0..1}/s.tar")
    assert named(found)[:2] == [(0, "ant/2-s-000-0.png"), (0, "ant/s-000-0.png")]


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_shards_in_folders_of_splits_and_ranges_of_names(tmp_path, kind):
    shards(tmp_path / "d/train", kind, "08", "09", "10")
    shards(tmp_path / "d/val", kind, "0")
    assert splits_of(tmp_path / "d") == ["train", "val"]
    assert [found_in(tmp_path / "d", split).counts[0] for split in ("train", "val")] == [3, 1]
    assert found_in(tmp_path / "d/train" / f"{{08..10}}.{kind}").counts == {0: 3, 1: 3}
    assert splits_of(tmp_path / "d/train" / f"{{08..10}}.{kind}") == []
    with pytest.raises(InputError, match=r"1 of the 4 files .*\{08..11\}.* do not exist: .*11"):
        check_there(tmp_path / "d/train" / f"{{08..11}}.{kind}")
    for name in ("1.csv", "2.csv"):
        (tmp_path / name).write_text("a.png ant")
    with pytest.raises(InputError, match=r"names 2 files: ranges are of .zip, .tar, .parquet files"):
        found_in(tmp_path / "{1..2}.csv")
    with pytest.raises(InputError, match=r"range \{9..8\}"):
        check_there(tmp_path / f"{{9..8}}.{kind}")


def test_class_folders_come_before_shards_beside_them(tmp_path):
    data = shards(tmp_path / "d", "tar", "ant", "bee")
    packed.folder(data, {"ant/0.png": b"x"})
    found = found_in(data)
    assert named(found) == [(0, "ant/0.png")]
    assert found.notes == ("files beside the class folders left out: ant.tar, bee.tar",)


def test_a_folder_above_the_shards_says_where_they_are(tmp_path):
    shards(tmp_path / "d/data", "parquet", "train-0")
    with pytest.raises(InputError, match=r"holds no class folder.*d/data holds .parquet files: give that folder"):
        found_in(tmp_path / "d")
    packed.zipped(tmp_path / "e", {"ant/1.png": b"x"})
    with pytest.raises(InputError, match=r"It holds e.zip: give that file"):
        found_in(packed.folder(tmp_path, {"notes.txt": b"x"}) and tmp_path)


# WebDataset


def test_labels_of_samples(tmp_path):
    entries = [
        ("a/1.cls", b"2\n"), ("a/1.jpg", b"1"), ("a/1.mask.png", b"mask"), ("2.png", b"2"), ("2.cls", b"bee"),
        ("3.json", b'{"label": 0, "width": 7}'), ("3.jpg", b"3"), ("v1.5.png", b"4"), ("v1.5.cls", b"1"),
        ("5.json", b'{"class_name": "cat"}'), ("5.webp", b"5"), ("5.txt", b"a photograph of an ant"),
    ]  # fmt: skip
    found = found_in(packed.tarred(tmp_path / "x.tar", entries))
    assert named(found) == [(0, "0/3.jpg"), (1, "1/v1.5.png"), (1, "bee/2.png"), (2, "2/1.jpg"), (2, "cat/5.webp")]
    assert [file.read_bytes() for file in found.of(found.files)] == [b"3", b"4", b"2", b"1", b"5"]


def test_number_labels_are_in_the_order_of_numbers(tmp_path):
    entries = packed.samples([(f"{n}/{n}.png", b"x") for n in (10, 9, 1, 0)])
    path = packed.tarred(tmp_path / "x.tar", entries)
    assert [name.label for name in class_folders(path, "train")] == ["0", "1", "9", "10"]


def test_samples_of_the_same_key_in_several_shards_stay_apart(tmp_path):
    data = shards(tmp_path / "d", "tar", "a", "b")
    for shard in ("a", "b"):
        packed.tarred(data / f"{shard}.tar", packed.samples([("ant/0.png", shard.encode())]))
    found = found_in(data)
    assert {file.name: file.read_bytes() for file in found.files[0]} == {
        "ant/a-000-0.png": b"a", "ant/b-000-0.png": b"b",
    }  # fmt: skip


def test_keys_of_several_folders_stay_apart(tmp_path):
    entries = [(f"{key}/0.{ending}", content) for key in "ab" for ending, content in (("png", b"1"), ("cls", b"ant"))]
    assert named(found_in(packed.tarred(tmp_path / "x.tar", entries))) == [(0, "ant/x-a-0.png"), (0, "ant/x-b-0.png")]


def test_a_picture_that_is_called_otherwise_is_labelled_where_it_is_the_only_one(tmp_path):
    entries = [("k.image.jpg", b"1"), ("k.cls", b"bee"), ("1.jpg", b"2"), ("1.mask.png", b"3"), ("1.cls", b"ant")]
    assert named(found_in(packed.tarred(tmp_path / "x.tar", entries))) == [(0, "ant/1.jpg"), (1, "bee/k.image.jpg")]


@pytest.mark.parametrize("names", [("0.jpg", "0.png"), ("0.image.jpg", "0.mask.png")])
def test_two_pictures_of_one_label_are_refused(tmp_path, names):
    path = packed.tarred(tmp_path / "x.tar", [(name, b"1") for name in names] + [("0.cls", b"ant")])
    refused(f"x.tar has two pictures of one sample, {names[0]} and {names[1]}, and which is its image", path)


def linked(path, links) -> Path:
    """A tar of two images and links between files."""
    packed.tarred(path, [("ant/1.png", b"1"), ("bee/2.png", b"22")])
    with packed.tarfile.open(path, "a") as archive:
        for name, kind, target in links:
            entry = packed.tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)
    return path


def test_links_in_a_tar_are_what_they_lead_to(tmp_path):
    symbolic, hard = packed.tarfile.SYMTYPE, packed.tarfile.LNKTYPE
    links = [
        ("cat/3.png", symbolic, "../ant/9.png"),
        ("ant/9.png", hard, "./bee/2.png"),
        ("cat/4.png", symbolic, "3.png"),
    ]
    found = found_in(linked(tmp_path / "x.tar", links))
    assert {file.name: file.read_bytes() for file in found.of(found.files)} == {
        "ant/1.png": b"1", "bee/2.png": b"22", "cat/3.png": b"22", "ant/9.png": b"22", "cat/4.png": b"22",
    }  # fmt: skip
    path = packed.tarred(tmp_path / "y.tar", [("1.cls", b"ant"), ("1.png", b"1"), ("2.png", b"2")])
    with packed.tarfile.open(path, "a") as archive:
        for name, target in (("2.cls", "1.cls"), ("about.json", "/outside.json")):
            entry = packed.tarfile.TarInfo(name)
            entry.type, entry.linkname = symbolic, target
            archive.addfile(entry)
    assert named(found_in(path)) == [(0, "ant/1.png"), (0, "ant/2.png")]


@pytest.mark.parametrize("target", ["gone.png", "../../outside.png", "3.png"])
def test_links_in_a_tar_that_lead_nowhere(tmp_path, target):
    path = linked(tmp_path / "x.tar", [("cat/3.png", packed.tarfile.SYMTYPE, target)])
    refused("1 images in .*x.tar are links that lead to no file in it, e.g. cat/3.png", path)


def test_an_index_is_read_once_until_the_shard_is_another(tmp_path, monkeypatch):
    path = packed.tarred(tmp_path / "x.tar", packed.samples([("ant/1.png", b"1")]))
    assert named(found_in(path)) == [(0, "ant/1.png")]
    opened = []
    real = packed.tarfile.open
    monkeypatch.setattr("tarfile.open", lambda *a, **k: (opened.append(a), real(*a, **k))[1])
    assert named(found_in(path)) == [(0, "ant/1.png")] and opened == []
    for kept in (tmp_path / "cache").rglob("*.tar-index"):
        kept.write_bytes(b"{")
    assert named(found_in(path)) == [(0, "ant/1.png")] and len(opened) == 1
    packed.tarred(path, packed.samples([("bee/1.png", b"12")]))
    assert named(found_in(path)) == [(1, "bee/1.png")]


# parquet


def table_of(target, **columns) -> Path:
    pq.write_table(pa.table(columns), target)
    return target


def test_columns_of_bytes_with_numbers_or_names(tmp_path):
    path = table_of(tmp_path / "x.parquet", jpg=[b"1", b"2", b"3"], cls=[2, 0, 2], width=[1, 2, 3])
    found = found_in(path)
    assert named(found) == [(0, "0/x-000001"), (2, "2/x-000000"), (2, "2/x-000002")]
    assert [file.read_bytes() for file in found.of(found.files)] == [b"2", b"1", b"3"]
    path = table_of(tmp_path / "y.parquet", image=[b"1", b"2"], label=pa.array(["bee", "ant"]).dictionary_encode())
    assert named(found_in(path)) == [(0, "ant/y-000001"), (1, "bee/y-000000")]


def test_names_that_occur_twice_and_rows_without_bytes(tmp_path):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [
        {"bytes": b"1", "path": "train/i.png"},
        {"bytes": b"2", "path": "i.png"},
        None,
        {"bytes": None, "path": "j.png"},
    ]
    found = found_in(table_of(tmp_path / "x.parquet", image=pa.array(rows, kind), label=["ant"] * 4))
    files = found.files[0]
    assert [file.name for file in files] == ["ant/j.png", "ant/x-000000-i.png", "ant/x-000001-i.png", "ant/x-000002"]
    assert [file.read_bytes() for file in files[1:3]] == [b"1", b"2"]
    for file in (files[0], files[3]):
        with pytest.raises(OSError, match="no bytes of an image"):
            file.read_bytes()


def test_classes_are_in_the_order_of_the_data_set_s_own_features(tmp_path):
    names = ["zebra", "ant", "unseen", "bee"]
    pq.write_table(
        packed.table([("zebra/1.png", b"1"), ("bee/2.png", b"2"), ("ant/3.png", b"3")], names), tmp_path / "x.parquet"
    )
    assert [name.label for name in class_folders(tmp_path / "x.parquet", "train")] == ["zebra", "ant", "bee"]
    four = tuple(ClassName(label=label) for label in "abcd")
    found = find_images(tmp_path / "x.parquet", "train", four, ClassMapping(by_order=True))
    assert named(found) == [(0, "zebra/1.png"), (1, "ant/3.png"), (3, "bee/2.png")]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, -2, -1], "2 of 3 images in .* have no label, e.g. row 1 of .*x.parquet"),
        (
            [0, 2, 1],
            r"x.parquet has a row of class 2, but its features name 2 classes only, counted from 0 \(ant, bee\)",
        ),
    ],
)
def test_numbers_that_name_no_class(tmp_path, labels, words):
    table = packed.table([("ant/1.png", b"x")] * 3, ["ant", "bee"]).set_column(1, "label", pa.array(labels))
    pq.write_table(table, tmp_path / "x.parquet")
    refused(words, tmp_path / "x.parquet")


@pytest.mark.parametrize("ending", ["cls", "json"])
def test_numbers_below_zero_are_no_label_of_a_sample(tmp_path, ending):
    content = b"-2" if ending == "cls" else b'{"label": -2}'
    entries = [("0.png", b"x"), (f"0.{ending}", content), ("1.png", b"x"), ("1.cls", b"ant")]
    refused("1 of 2 images in .* have no label, e.g. 0.png", packed.tarred(tmp_path / "x.tar", entries))


def test_what_a_copy_left_that_was_ended_by_force_is_removed(tmp_path):
    found = found_in(packed.parquet(tmp_path / "images", pictures()))
    path = parquet._copy_of(found.files[0][0].path.table)
    path.parent.mkdir(parents=True)
    for name in (path.name, "other.images"):
        (path.parent / f".{name}.abcdefgh.part").write_bytes(b"x")
    found.files[0][0].read_bytes()
    assert [each.name for each in path.parent.glob(".*.part")] == [".other.images.abcdefgh.part"]


def test_the_images_of_a_table_are_copied_once_and_again_when_the_cache_was_emptied(tmp_path, monkeypatch):
    copied = []
    real = parquet._copy
    monkeypatch.setattr(
        parquet, "_copy", lambda table, target: (copied.append(str(table.file)), real(table, target))[1]
    )
    files = pictures()
    for _ in range(2):
        found = found_in(packed.parquet(tmp_path / f"images{_}", files))
        again = found_in(tmp_path / f"images{_}")
        assert found.notes == again.notes and "images in parquet (0.0 GiB) are copied to" in found.notes[0]
        assert copied[2 * _ :] == []
        reader = image_reader(PREPROCESSING, batch_size=4, workers=3)
        for images in (found, again):
            assert sum(len(batch.crops) for batch in reader.batches(images.of(images.files))) == 7
        assert len(copied) == 2 * _ + 2
        assert found_in(tmp_path / f"images{_}").notes == ()
    shutil.rmtree(tmp_path / "cache")
    assert [file.read_bytes() for file in found.of(found.files)] == [files[file.name] for file in found.of(found.files)]


def test_a_full_disk_is_said_before_images_are_copied(tmp_path, monkeypatch):
    found = found_in(packed.parquet(tmp_path / "images", pictures()))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(SourceError, match=r"part-0000\d.*cannot be copied.*0.0 GiB are needed in .*cache"):
        image_reader(PREPROCESSING, batch_size=4, workers=1).read(found.files[0][0])
    assert not list((tmp_path / "cache").rglob("*.images"))


def test_a_table_that_is_damaged_behind_its_labels(tmp_path):
    path = packed.parquet(tmp_path / "images", {f"ant/{n}.png": bytes(1000) for n in range(4)})
    for each in path.iterdir():
        content = bytearray(each.read_bytes())
        content[4:60] = bytes(56)
        each.write_bytes(content)
    found = found_in(path)
    with pytest.raises(SourceError, match="part-.* cannot be copied"):
        found.files[0][0].read_bytes()


# refusals


def refused(match, data, split="train"):
    def asked():
        check_there(data)
        found_in(data, split)

    with pytest.raises(InputError, match=match) as caught:
        asked()
    assert str(caught.value).count("\n") == 0
    return caught.value


def test_what_is_no_labelled_data_is_refused_by_a_sentence(tmp_path, monkeypatch):
    png = pictures()["ant/1.png"]
    for name, content, words in (
        ("x.tar.gz", b"x", r"x.tar.gz is compressed as a whole \(.tar.gz\)"),
        ("x.tgz", b"x", r"compressed as a whole"),
        ("x.tfrecord", b"\0\1", r"x.tfrecord is of no kind that is read. Labelled images are read from .*parquet"),
        ("x.h5", b"\x89HDF\r\n\xff", r"is of no kind that is read"),
        ("x.png", png, r"is of no kind that is read"),
        ("x.parquet", b"PAR1 and nothing PAR1", r"x.parquet (is damaged or not parquet|cannot be read)"),
        ("y.parquet", b"", r"y.parquet is damaged or not parquet"),
        ("x.tar", b"no tar", r"x.tar is cut short, damaged or no tar archive"),
        ("x.html", b"<!DOCTYPE html><p>", r"x.html is a web page, and no list"),
    ):
        (tmp_path / name).write_bytes(content)
        refused(words, tmp_path / name)
    refused(r"1 images in .* have neither a label nor a class folder, e.g. 1.png. Expected `key.jpg` with `key.cls`",
            packed.tarred(tmp_path / "a.tar", [("1.png", b"x"), ("ant/2.png", b"x")]))  # fmt: skip
    refused(r"1 of 2 images in .* have no label, e.g. 2.png",
            packed.tarred(tmp_path / "b.tar", [("1.png", b"x"), ("1.cls", b"ant"), ("2.png", b"x"), ("2.cls", b"")]))  # fmt: skip
    refused(r"holds no images", packed.tarred(tmp_path / "c.tar", [("readme", b"x")]))
    refused(r"x has no column of images .*its columns are label, path. Give it one that is called image".replace("x has", "i.parquet has"),
            table_of(tmp_path / "i.parquet", label=[1], path=["a.png"]))  # fmt: skip
    refused(r"has no column of classes .*its columns are image, size. Give it one that is called label",
            table_of(tmp_path / "l.parquet", image=[b"x"], size=[1]))  # fmt: skip
    refused(r"2 of 3 images in .* have no label, e.g. row 1 of .*n.parquet",
            table_of(tmp_path / "n.parquet", image=[b"x"] * 3, label=pa.array([1, None, -1])))  # fmt: skip
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named_only = pa.array([{"bytes": None, "path": "/a/1.png"}] * 2, kind)
    path = table_of(tmp_path / "e.parquet", image=named_only, label=[1, 2])
    refused(r"e.parquet names the files of its images but does not hold them: give the folder", path)
    path = table_of(tmp_path / "p.parquet", image=[b"x"], label=[1])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(
        r"p.parquet is parquet, which is read by pyarrow: install it with `pip install 'protonmf\[parquet\]'`", path
    )


@pytest.mark.parametrize("cut", [1000, 700, 515, 100])
def test_a_tar_that_was_cut_short(tmp_path, cut):
    path = packed.tarred(tmp_path / "x.tar", [("ant/1.png", bytes(600)), ("ant/2.png", bytes(600))])
    content = path.read_bytes()[: 512 + 1024 + cut]
    path.write_bytes(content)
    refused("x.tar is cut short", path)


def test_urls_that_lead_nowhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    refused(r"s3://bucket/train is opened by s3fs: install it with `pip install s3fs`", "s3://bucket/train")
    refused(r"nosuch://x: nosuch:// is no kind of store that is known; s3://", "nosuch://x")
    refused(r"memory://nothing does not exist", "memory://nothing")
    refused(r"memory://nothing.zip does not exist", "memory://nothing.zip")
    refused(
        r"https://example.org/page is no file that is read: behind https:// there are no folders",
        "https://example.org/page",
    )
    refused(r"x.tar.gz is compressed as a whole", "https://example.org/x.tar.gz?download=1")


def test_a_package_that_is_missing_is_said_at_once(monkeypatch):
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    file = ImageFile(path=remote.RemoteFile(remote.Store("s3://bucket"), "ant/1.png"), name="ant/1.png", class_index=0)
    with pytest.raises(SourceError, match=r"s3://bucket is opened by s3fs: install it with `pip install s3fs`"):
        image_reader(PREPROCESSING, batch_size=1, workers=1).read(file)
    assert waited == []


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_names_that_are_no_text_are_escaped_and_their_files_read(tmp_path, form):
    files = {"ant/1.png": b"1", os.fsdecode(b"bee/\xff\x1b.png"): b"2"}
    found = found_in(packed.FORMS[form](tmp_path / "images", files)).files[1][0]
    assert (found.name, found.read_bytes()) == (r"bee/\377\033.png", b"2")


def test_what_is_left_out_is_named_also_where_its_name_is_no_text(tmp_path):
    data = packed.folder(tmp_path / "images", {"ant/1.png": b"1", os.fsdecode(b".\xff/1.png"): b"2"})
    assert found_in(data).notes == (r"hidden folders left out: .\377",)


def test_the_line_of_a_list_without_a_label_is_the_line_of_the_file(tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n# a comment\n\na.png,ant\nb.png\n")
    refused(r"list.csv: line 5 \('b.png'\) has no label", tmp_path / "list.csv")


class Refusing(MemoryFileSystem):
    protocol = "refusing"
    asked = 0

    def ls(self, path, detail=True, **kwargs):
        Refusing.asked += 1
        raise self.failure


@pytest.mark.parametrize(
    ("failure", "words", "tries"),
    [
        (PermissionError("Access Denied"), r"may not be read: Access Denied. Set the credentials of refusing://", 1),
        (RuntimeError("Unable to locate credentials"), r"may not be read: Unable to locate credentials. Set", 1),
        (OSError("no route to host\nand more"), r"refusing://x cannot be reached: no route to host\.$", 3),
        (OSError("502, url='https://h/x?token=1'"), r"refusing://x cannot be reached: 502, url='https://h/x'\.$", 3),
    ],
)
def test_stores_that_refuse(monkeypatch, failure, words, tries):
    monkeypatch.setattr(Refusing, "failure", failure, raising=False)
    monkeypatch.setattr(Refusing, "asked", 0)
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    refused(words, "refusing://x")
    assert Refusing.asked == tries


def test_messages_have_no_secrets_of_urls():
    for url in ("memory://me:word@nothing", "memory://nothing.tar?token=1", "https://x.org/a.tar.gz?token=1"):
        words = str(refused("nothing|compressed", url))
        assert "token" not in words and "word" not in words
    file = remote.RemoteFile(remote.Store("https://me:word@x.org"), "a.tar?token=1")
    assert str(file) == "https://x.org/a.tar"


# sources that fail while they are read


class Flaky(MemoryFileSystem):
    """Fails every image a few times, and never keeps a connection open."""

    protocol = "flaky"
    failures = 2
    tried: ClassVar[dict[str, int]] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("flaky://", "memory://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
        self.tried[path] = self.tried.get(path, 0) + 1
        if self.tried[path] <= self.failures:
            raise ConnectionResetError("no answer of https://x.org/1.png?token=1")
        return super().cat_file(path, start=start, end=end, **kwargs)

    def _open(self, path, *words, **kwargs):
        raise ConnectionResetError("connection reset")


@pytest.fixture
def flaky(tmp_path, monkeypatch):
    monkeypatch.setattr(Flaky, "tried", {})
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    return packed.memory(tmp_path / "images", pictures()).replace("memory:", "flaky:")


@pytest.mark.parametrize("failures", [2, 3])
def test_failures_that_pass_are_waited_for_and_others_are_counted(flaky, monkeypatch, failures):
    monkeypatch.setattr(Flaky, "failures", failures)
    images = found_in(flaky)
    found = [image_reader(PREPROCESSING, batch_size=4, workers=2).read(file) for file in images.of(images.files)]
    assert set(Flaky.tried.values()) == {3}
    assert sum(isinstance(each, Skipped) for each in found) == (0 if failures == 2 else 7)
    if failures == 3:
        assert found[0] == Skipped(path="ant/1.png", reason="cannot be read: no answer of https://x.org/1.png")


@pytest.mark.parametrize("make", [packed.zipped, packed.tar, single_parquet])
def test_reading_what_holds_images_waits_for_failures_to_pass(flaky, tmp_path, make):
    files = pictures()
    path = make(tmp_path / "x", files)
    packed.behind_url(path)
    found = found_in(f"flaky:/{path}")
    assert {file.name: file.read_bytes() for file in found.of(found.files)} == files


def fails_twice(monkeypatch, name):
    failed, real = [], getattr(MemoryFileSystem, name)

    def asked(self, *words, **kwargs):
        if len(failed) < 2:
            failed.append(name)
            raise ConnectionResetError("connection reset")
        return real(self, *words, **kwargs)

    monkeypatch.setattr(Flaky, name, asked)


def test_listing_a_store_waits_for_failures_to_pass(flaky, monkeypatch):
    fails_twice(monkeypatch, "ls")
    assert len(list_images(flaky, "train").groups) == 3


def test_looking_for_a_store_waits_for_failures_to_pass(flaky, monkeypatch, tmp_path):
    images = found_in(flaky)
    fsspec.filesystem("memory").rm_file(f"{tmp_path}/images/ant/1.png")
    fails_twice(monkeypatch, "info")
    assert isinstance(image_reader(PREPROCESSING, batch_size=4, workers=2).read(images.files[0][0]), Skipped)


def test_a_store_without_parts_of_files_gives_no_wrong_image(flaky, monkeypatch, tmp_path):
    monkeypatch.setattr(Flaky, "cat_file", lambda self, path, **parts: MemoryFileSystem.cat_file(self, path))
    packed.behind_url(packed.tar(tmp_path / "x", pictures()))
    images = found_in(f"flaky:/{tmp_path}/x.tar")
    with pytest.raises(SourceError, match=r"x.tar is given as a whole only"):
        image_reader(PREPROCESSING, batch_size=4, workers=1).read(images.files[2][0])
    packed.behind_url(packed.zipped(tmp_path / "x", pictures()))
    refused(r"x.zip is given as a whole only", f"flaky:/{tmp_path}/x.zip")


def remove(data, form):
    """All of it, as a lost mount does."""
    if isinstance(data, str):
        MemoryFileSystem.store.clear()
    elif form == "list":
        shutil.rmtree(data.parent / "mount/images")
        (data.parent / "mount/images").mkdir()
    elif data.is_dir() and form == "folder":
        shutil.rmtree(data)
        data.mkdir()  # the place where it was mounted
    elif data.is_dir():
        shutil.rmtree(data)
    else:
        data.unlink()


def list_of_absolute_paths(path, files) -> Path:
    folder = packed.folder(path.parent / "mount/images", {name.replace("/", "-"): files[name] for name in files})
    lines = (f"{folder / name.replace('/', '-')},{name.partition('/')[0]}\n" for name in files)
    path.with_suffix(".csv").write_text("".join(lines))
    return path.with_suffix(".csv")


@pytest.mark.parametrize("form", [*packed.FORMS, "list"])
def test_a_source_that_vanishes_ends_the_job_instead_of_skipping_its_images(tmp_path, monkeypatch, form):
    data = {**packed.FORMS, "list": list_of_absolute_paths}[form](tmp_path / "images", pictures())
    images = found_in(data)
    remove(data, form)
    reader = image_reader(PREPROCESSING, batch_size=2, workers=2)
    with pytest.raises(SourceError, match=r"images.* (is not there any more|cannot be (reached any more|copied))"):
        list(reader.batches(images.of(images.files)))


@pytest.mark.parametrize("form", ["folder", "memory"])
def test_a_single_image_that_vanishes_is_skipped(tmp_path, form):
    data = packed.FORMS[form](tmp_path / "images", pictures())
    images = found_in(data)
    if form == "folder":
        (data / "ant/1.png").unlink()
    else:
        fsspec.filesystem("memory").rm_file(f"{tmp_path}/images/ant/1.png")
    found = image_reader(PREPROCESSING, batch_size=2, workers=2).read(images.files[0][0])
    assert isinstance(found, Skipped) and "cannot be read" in found.reason


# words


def test_a_url_stays_what_it_is_and_a_path_becomes_one():
    for words in ("s3://bucket//x", "hf://datasets/a/b"):
        assert ImageWords(data=words).data == ImageWords.of(words, "val").data == words
        assert ImageWords(data=words).named == ("--data", words)
    for words in ("https://me:word@x.org/a.tar?token=1", "http://token@x.org/a.tar"):
        assert ImageWords(data=words).data == words
        assert ImageWords(data=words).named == ("--data", f"{words.partition(':')[0]}://x.org/a.tar")
    for path in ("a/b", Path("a/b"), "a//b"):
        assert ImageWords(data=path).data == ImageWords.of(path, "val").data == Path("a/b")


def test_a_list_behind_a_url_names_images_beside_it(tmp_path):
    files = pictures()
    packed.memory(tmp_path / "d", files)
    lines = "".join(f"{name},{name.partition('/')[0]}\n" for name in reversed(files))
    fsspec.filesystem("memory").pipe_file(f"{tmp_path}/d/list.csv", f"path,label\n{lines}".encode())
    found = found_in(f"memory:/{tmp_path}/d/list.csv")
    assert {file.name: file.read_bytes() for file in found.of(found.files)} == files
    assert list_images(f"memory:/{tmp_path}/d/list.csv", "train").split == "list"


def test_a_hidden_folder_is_left_out_of_every_form(tmp_path):
    files = {"ant/1.png": b"1", "ant/.thumbs/1.png": b"2", ".git/2.png": b"3", "bee/3.png": b"4"}
    for form in ("folder", "zip", "tar", "memory"):
        found = found_in(packed.FORMS[form](tmp_path / form, files))
        assert named(found) == [(0, "ant/1.png"), (1, "bee/3.png")], form


def test_features_that_are_not_hugging_face_s_own_are_passed_over(tmp_path):
    for about in (b"{", b"[]", json.dumps({"info": {"features": [1]}}).encode()):
        kind = pa.table({"image": [b"x"], "label": ["ant"]}).replace_schema_metadata({"huggingface": about})
        pq.write_table(kind, tmp_path / "x.parquet")
        assert named(found_in(tmp_path / "x.parquet")) == [(0, "ant/x-000000")]
