import itertools

import pytest

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.models.class_names import find_class, words_for

CLASSES = tuple(ClassName(label=label) for label in ("ant", "bee", "cat"))


def tree(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def test_class_folders_sorted_with_notes(tmp_path):
    tree(
        tmp_path,
        "bee/2.jpg",
        "bee/1.PNG",
        "bee/deep/3.webp",
        "bee/notes.txt",
        "ant/a.jpeg",
        ".git/x.jpg",
        "bee/.hidden.jpg",
    )
    (tmp_path / "cat").mkdir()
    found = find_images(tmp_path, "train", CLASSES, ClassMapping())
    assert [f.name for f in found.of(found.files)] == ["ant/a.jpeg", "bee/1.PNG", "bee/2.jpg", "bee/deep/3.webp"]
    assert found.counts == {0: 1, 1: 3}
    assert found.notes == ("hidden folders left out: .git", "folders without images left out: cat")


def test_splits(tmp_path):
    tree(tmp_path, "train/ant/1.jpg", "val/ant/2.jpg")
    names = [find_images(tmp_path, split, CLASSES, ClassMapping()).files[0][0].name for split in ("train", "val")]
    assert names == ["ant/1.jpg", "ant/2.jpg"]
    with pytest.raises(InputError, match="has train and val but no test. Give split train"):
        find_images(tmp_path, "test", CLASSES, ClassMapping())


@pytest.mark.parametrize("form", ["folder", "list"])
def test_a_split_that_is_not_there_is_refused_with_what_is(tmp_path, form):
    data = tree(tmp_path / "data", "ant/1.jpg", "bee/2.jpg")
    if form == "list":
        data = tmp_path / "list.csv"
        data.write_text("x/1.jpg,ant\nx/2.jpg,bee\n")
    with pytest.raises(InputError, match="has no split 'tset': it holds the classes ant, bee, in no split"):
        find_images(data, "tset", CLASSES, ClassMapping())
    assert {find_images(data, split, CLASSES, ClassMapping()).counts[1] for split in ("train", "val")} == {1}


def test_folders_that_are_taken_for_numbers_of_classes_are_said(tmp_path):
    tree(tmp_path / "two", "0/1.jpg", "2/1.jpg", "bee/1.jpg")
    tree(tmp_path / "all", "0/1.jpg", "1/1.jpg", "2/1.jpg")
    tree(tmp_path / "named", "7/1.jpg")
    (tmp_path / "map.csv").write_text("0,ant\n2,1\n")
    found = find_images(tmp_path / "two", "train", CLASSES, ClassMapping())
    assert found.counts == {0: 1, 1: 1, 2: 1}
    classes = (*CLASSES, ClassName(label="dog"))
    (note,) = find_images(tmp_path / "two", "train", classes, ClassMapping()).notes
    assert "named by numbers" in note and "0 is ant, 2 is cat. If not, give --class-map FILE" in note
    assert find_images(tmp_path / "all", "train", CLASSES, ClassMapping()).notes == ()
    mapped = ClassMapping(file=tmp_path / "map.csv")
    assert find_images(tmp_path / "two", "train", classes, mapped).notes == ()
    called = (ClassName(label="7"), *CLASSES)
    assert find_images(tmp_path / "named", "train", called, ClassMapping()).notes == ()


@pytest.mark.parametrize(
    "text", ["path,label\nx/1.jpg,ant\nx/2.jpg,bee\n", "x/1.jpg ant\nx/2.jpg bee\n", "x/1.jpg\tant\n\nx/2.jpg\tbee"]
)
def test_a_list_of_paths_and_labels(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    found = find_images(tmp_path / "list.csv", "train", CLASSES, ClassMapping())
    assert [(f.local, f.class_index) for f in found.of(found.files)] == [
        (tmp_path / "x/1.jpg", 0),
        (tmp_path / "x/2.jpg", 1),
    ]


def test_a_list_line_without_a_label_is_named(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg ant\nb.jpg\n")
    with pytest.raises(InputError, match=r"line 2 \('b.jpg'\) has no label"):
        find_images(tmp_path / "list.txt", "train", CLASSES, ClassMapping())


@pytest.mark.parametrize(
    ("name", "text"), [("map.csv", "ameise,ant\nbiene,bee\n"), ("map.json", '{"ameise": "ant", "biene": 1}')]
)
def test_a_class_map(tmp_path, name, text):
    tree(tmp_path / "data", "ameise/1.jpg", "biene/1.jpg")
    (tmp_path / name).write_text(text)
    found = find_images(tmp_path / "data", "train", CLASSES, ClassMapping(file=tmp_path / name))
    assert found.counts == {0: 1, 1: 1}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("map.csv", "ameise;ant\nbiene;bee\n", "line 1 is not `first,second`: 'ameise;ant' stands alone"),
        ("map.csv", "ameise,\nbiene,bee\n", "line 1 is not `first,second`: 'ameise' stands alone"),
        (
            "map.csv",
            "ameise,ant\nbiene,bee\nameise,bee\n",
            "maps 'ameise' to 'ant' and to 'bee'. Leave one of them out",
        ),
        ("map.csv", "ameise,nothing\nbiene,bee\n", "ameise as 'nothing'"),
        ("map.json", "[1, 2]", "is no JSON object of pairs"),
    ],
)
def test_a_class_map_that_says_nothing_is_refused(tmp_path, name, text, sentence):
    tree(tmp_path / "data", "ameise/1.jpg", "biene/1.jpg")
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        find_images(tmp_path / "data", "train", CLASSES, ClassMapping(file=tmp_path / name))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("text", ["0;ant thing\n1;bee thing\n", "# none\n"])
def test_a_class_map_of_other_folders_is_noted(tmp_path, text):
    tree(tmp_path / "data", "0/1.jpg", "1/1.jpg")
    (tmp_path / "map.csv").write_text(text)
    (note,) = find_images(tmp_path / "data", "train", CLASSES, ClassMapping(file=tmp_path / "map.csv")).notes
    assert "none of these is there: the data have 0, 1. Its lines are `folder,class`" in note
    (tmp_path / "map.csv").write_text("0,bee\nelsewhere,ant\n")
    found = find_images(tmp_path / "data", "train", CLASSES, ClassMapping(file=tmp_path / "map.csv"))
    assert found.notes == () and found.counts == {1: 2}


NAMES = ("tick", "TICK", "-x", "0", "1", "2", "n02123045", "")


def test_how_a_class_is_called_never_means_another_one():
    for labels in itertools.product(NAMES, repeat=3):
        classes = tuple(ClassName(label=label) for label in labels)
        for c, word in enumerate(words_for(classes)):
            try:
                assert find_class(classes, word) == c, labels
            except InputError:  # one of several, or no name at all
                assert labels.count(labels[c]) > 1 or not labels[c] or str(c) in labels


def test_unmatched_folders_are_listed_with_the_nearest_names(tmp_path):
    tree(tmp_path, "ants/1.jpg", "bee/1.jpg", "zebra/1.jpg")
    with pytest.raises(InputError, match="2 of 3 classes") as caught:
        find_images(tmp_path, "train", CLASSES, ClassMapping())
    assert "ants (did you mean ant?)" in str(caught.value)
    assert "class_order" in str(caught.value)


def test_position_counts_only_when_asked_and_when_the_numbers_match(tmp_path):
    tree(tmp_path, "x/1.jpg", "y/1.jpg")
    with pytest.raises(UsageError, match="has 2, the model has 3"):
        find_images(tmp_path, "train", CLASSES, ClassMapping(by_order=True))
    tree(tmp_path, "z/1.jpg")
    assert find_images(tmp_path, "train", CLASSES, ClassMapping(by_order=True)).counts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.mkdir(), lambda path: (path / "ant").mkdir(parents=True)]
)
def test_missing_or_empty(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(InputError, match=r"does not exist|holds no class folder with images"):
        find_images(tmp_path / "data", "train", CLASSES, ClassMapping())


def test_a_class_beyond_memory_is_subsampled_with_the_seed(tmp_path):
    tree(tmp_path, *(f"ant/{n:02d}.jpg" for n in range(20)), "bee/1.jpg")
    images = find_images(tmp_path, "train", CLASSES, ClassMapping())
    first, again, other = (images.limited(7, seed) for seed in (0, 0, 1))
    assert first.counts == {0: 7, 1: 1}
    assert first.left_out == {0: 13}
    assert [f.name for f in first.files[0]] == sorted(f.name for f in first.files[0])
    assert first.files == again.files != other.files
    assert first.fingerprint() != images.fingerprint()
