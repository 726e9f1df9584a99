"""Images that nobody can read, names that are no text, and entries of folders that are no files."""

import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors
from PIL import Image

from protonmf_cli.errors import InputError, UsageError
from protonmf_cli.files.images.datasets import ClassMapping, find_images
from protonmf_cli.files.images.reader import decode, read
from protonmf_cli.files.store import load_model
from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.models.backbone import ClassName
from protonmf_cli.options import ImageWords, Output
from toys import LABELS, run, slow

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
RAW = os.fsdecode(b"\xff\x1b[31m")
"""Of a name: a byte that is not UTF-8, and a terminal's command for red."""
SHOWN = r"\377\033[31m"


def copied(toy, tmp_path, change) -> Path:
    """The toy's images, of which some are changed: `change` takes the path of each of the class green things."""
    shutil.copytree(toy.data, tmp_path / "data")
    for split in ("train", "val"):
        for path in sorted((tmp_path / "data" / split / LABELS[1]).iterdir()):
            change(path)
    return tmp_path / "data"


def pointer(path: Path) -> None:
    path.write_bytes(LFS)


# classes without a readable image


def unreadable(kind, toy, tmp_path) -> Path:
    """Training images of which one class cannot be read: how the data holds it."""
    files = {path.relative_to(toy.data / "train").as_posix(): path.read_bytes() for path in toy.data.glob("train/*/*")}
    lost = [name for name in files if name.startswith(LABELS[1])]
    if kind == "pointers":
        return copied(toy, tmp_path, pointer)
    if kind == "list":
        lines = [f"{'gone' if name in lost else toy.data / 'train'}/{name}\t{name.partition('/')[0]}" for name in files]
        (tmp_path / "images.txt").write_text("\n".join(lines))
        return tmp_path / "images.txt"
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    raw = bytearray((tmp_path / "images.zip").read_bytes())
    for name in lost:
        entry = raw.rindex(name.encode()) - 46  # of the table of contents
        place, value = (8, 1) if kind == "encrypted" else (10, 97)
        raw[entry + place : entry + place + 2] = struct.pack("<H", value)
    (tmp_path / "images.zip").write_bytes(raw)
    return tmp_path / "images.zip"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("pointers", "is a pointer of git-lfs and not the image: fetch it with `git lfs pull`"),
        ("encrypted", "cannot be read: it is encrypted"),
        slow("compression", "cannot be read: That compression method is not supported"),
        ("list", "cannot be read: No such file or directory"),
    ],
)
def test_a_class_without_a_readable_image_is_skipped_and_said(toy, tmp_path, kind, reason):
    data, output = unreadable(kind, toy, tmp_path), tmp_path / "m.safetensors"
    words = ["convert", toy.name, "--data", data, "-o", output, "-p", 2, "--near", 1, "--no-stability"]
    for _ in range(2):  # also when it is run again
        code, _, err = run(*words)
        assert code == 5 and "7 of 30 images could not be read (23.3%, at most 1.0% is allowed)" in err
        assert f"image 0.png {reason}" in err and not output.exists()
    code, _, err = run(*words, "--max-skipped", 0.3)
    assert code == 0 and "no image of 1 classes could be read: green things. They have no prototypes" in err
    model, _ = load_model(output)
    assert model.active_classes.tolist() == [0, 2, 3] and len(model.card.data.skipped) == 7
    assert model.residual[1].any()


def test_a_class_that_was_repaired_is_read_again(toy, tmp_path):
    data, output = unreadable("encrypted", toy, tmp_path), tmp_path / "m.safetensors"
    words = [
        "convert",
        toy.name,
        "--data",
        data,
        "-o",
        output,
        "-p",
        2,
        "--near",
        1,
        "--cache-features",
        tmp_path / "c",
    ]
    assert run(*words)[0] == 5
    with zipfile.ZipFile(data, "w") as archive:  # names, sizes and checksums are the same
        for path in toy.data.glob("train/*/*"):
            archive.write(path, path.relative_to(toy.data / "train"))
    code, _, err = run(*words)
    assert code == 0 and "3 of 4 classes were finished before" in err
    assert not load_model(output)[0].card.data.skipped


def test_no_readable_image_at_all(toy, converted, tmp_path):
    data = copied(toy, tmp_path, pointer)
    for path in data.glob("*/*/*"):
        pointer(path)
    for words in (
        ["convert", toy.name, "-o", tmp_path / "m", "-p", 1],
        ["evaluate", "--model", converted],
        ["audit", "--model", converted],
    ):
        code, _, err = run(*words, "--data", data, "--max-skipped", 1)
        assert code == 3 and "images could be read, e.g. " in err and "is a pointer of git-lfs" in err


@pytest.mark.parametrize(
    ("words", "ends"),
    [
        (["protopnet", "train", "NETWORK", "-o", "OUT", "--epochs", 1], 3),
        (["fewshot", "fit", "NETWORK", "-o", "OUT"], 3),
        (["evaluate", "--model", "MODEL"], 0),
        slow(["audit", "--model", "MODEL"], 0),
        (["report", "--model", "MODEL", "-o", "OUT"], 6),
    ],
)
def test_other_commands_name_a_class_that_cannot_be_read(toy, converted, tmp_path, words, ends):
    named = {"NETWORK": toy.name, "MODEL": converted, "OUT": tmp_path / "out"}
    words = [named.get(word, word) for word in words] + ["--data", copied(toy, tmp_path, pointer)]
    code, _, err = run(*words, *([] if words[0] == "report" else ["--max-skipped", 0.5]))
    assert code == ends and "green things/image 0.png" in err and "is a pointer of git-lfs" in err
    if ends == 3:
        assert "green things" in err.splitlines()[-1] and err.splitlines()[-1].startswith("error: ")
    if words[0] != "report":
        assert run(*words)[0] == 5


def test_what_an_unreadable_file_is():
    for content, words in ((b"", "is empty"), (LFS, "is a pointer of git-lfs"), (b"GIF9", "is not an image in one of")):
        with pytest.raises(InputError, match=words):
            decode(content)


# names that are no text


@pytest.fixture(scope="module")
def renamed(toy, tmp_path_factory) -> Path:
    """The toy's images in a folder whose name is no text; so are the names of one image of each class."""
    data = tmp_path_factory.mktemp("names") / RAW
    shutil.copytree(toy.data, data)
    for folder in data.glob("*/*"):
        first = sorted(folder.iterdir())[0]
        first.rename(first.with_name(f"{RAW}.png"))
    return data


@pytest.fixture(scope="module")
def of_renamed(toy, renamed, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("model") / "m.safetensors"
    code, out, err = run(
        "convert", toy.name, "--data", renamed, "-o", output, "-p", 2, "--near", 1, "--no-stability"
    )  # fmt: skip
    assert code == 0, err
    assert (out + err).replace("\n", "").isprintable()
    return output


def test_a_model_file_holds_escaped_names_as_utf8(of_renamed):
    with safetensors.safe_open(of_renamed, framework="pt") as file:
        header = json.loads(file.metadata()["protonmf"])
    assert f"red things/{SHOWN}.png" in {source["path"] for source in header["sources"]}
    assert json.dumps(header, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "words",
    [
        ["evaluate", "--data", "DATA"],
        slow(["evaluate", "--data", "DATA", "--json", "--table", "faithfulness", "--figures", "OUT"]),
        slow(["audit", "--data", "DATA", "-o", "OUT.html"]),
        ["report", "--data", "DATA", "-o", "OUT.html", "--images", "IMAGE"],
        slow(["report", "--data", "DATA", "-o", "OUT", "--folder"]),
        ["explain", "IMAGE", "--json"],
        ["explain", "IMAGE", "IMAGE", "--png", "OUT", "--html", "OUT.html"],
        ["explain", "IMAGE", "--figure", "OUT.svg"],
        ["intervene", "IMAGE", "--zero", 1],
    ],
)
def test_commands_show_names_escaped(renamed, of_renamed, tmp_path, words):
    named = {
        "DATA": renamed, "IMAGE": renamed / "val" / LABELS[0] / f"{RAW}.png",
        **{f"OUT{end}": tmp_path / f"{RAW}{end}" for end in ("", ".html", ".svg")},
    }  # fmt: skip
    code, out, err = run(*[named.get(word, word) for word in words], "--model", of_renamed)
    assert code == 0, err
    assert (out + err).replace("\n", "").isprintable()
    if "--json" in words and "IMAGE" in words:
        assert json.loads(out)["image"].endswith(f"{SHOWN}.png")
    for path in tmp_path.rglob("*"):
        if path.suffix in (".html", ".svg", ".js", ".json"):
            text = path.read_bytes().decode()
            assert "\x1b" not in text and (path.suffix != ".html" or "377" in text)


@pytest.mark.parametrize("locale", ["C", slow("C.UTF-8"), slow("en_US.UTF-8")])
def test_paths_on_standard_input_may_hold_any_byte(renamed, of_renamed, locale):
    path = renamed / "val" / LABELS[0] / f"{RAW}.png"
    line = [sys.executable, "-m", "protonmf_cli", "explain", "-", "--model", of_renamed, "--jsonl", "-q"]
    done = subprocess.run(
        line, input=os.fsencode(path) + b"\n", env=os.environ | {"LC_ALL": locale}, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["image"].endswith(f"{SHOWN}.png")


@pytest.mark.slow
def test_other_models_of_images_whose_names_are_no_text(toy, renamed, tmp_path):
    image = renamed / "val" / LABELS[0] / f"{RAW}.png"
    for words in (
        ["fewshot", "fit", toy.name, "-o", tmp_path / "f.safetensors", "--figure", tmp_path / "f.png"],
        ["protopnet", "train", toy.name, "-o", tmp_path / "p.safetensors", "--epochs", 1, "-p", 1, "--cycles", 1],
    ):
        code, out, err = run(*words, "--data", renamed)
        assert code == 0, err
        assert (out + err).replace("\n", "").isprintable()
    code, out, _ = run("fewshot", "predict", image, "--model", tmp_path / "f.safetensors")
    assert code == 0 and SHOWN in out
    assert run("explain", image, "--model", tmp_path / "p.safetensors")[0] == 0


def test_a_class_folder_whose_name_is_no_text_is_named_in_a_class_map(tmp_path):
    (tmp_path / "data" / RAW).mkdir(parents=True)
    (tmp_path / "data" / RAW / "1.png").write_bytes(b"1")
    (tmp_path / "map.txt").write_text(f"{SHOWN},ant\n")
    found = find_images(
        tmp_path / "data", "train", (ClassName(label="ant"),), ClassMapping(file=tmp_path / "map.txt")
    )  # fmt: skip
    assert found.counts == {0: 1} and found.fingerprint()


def test_names_that_are_text_have_the_fingerprint_they_had(tmp_path):
    for name in ("ant/1 ä\\.png", "ant/'2'.png"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(name.encode())
    found = find_images(tmp_path / "data", "train", (ClassName(label="ant"),), ClassMapping())
    assert found.fingerprint() == "8ef210bf020659243abe8dbfe02c65fb0128d398bfd7e825cbabb43218a34e0f"


def test_a_model_at_a_path_that_is_no_text_is_refused_before_any_work(toy, converted, tmp_path):
    output = tmp_path / f"{RAW}.safetensors"
    shutil.copy(converted, output)
    for words in (
        ["convert", toy.name, "--data", toy.data, "-o", output, "--force"],
        ["explain", toy.image(), "--model", output],
        ["convert", toy.name, "--data", toy.data, "-o", tmp_path / "m", "--cache-features", tmp_path / RAW],
    ):
        code, _, err = run(*words)
        assert code == 3 and "has a name that is not UTF-8, and safetensors opens no such file" in err


# entries that are no files


@pytest.fixture
def odd(toy, tmp_path) -> Path:
    """The toy's images for validation, with pipes, sockets, devices and links to nothing among them."""
    data = tmp_path / "odd"
    shutil.copytree(toy.data / "val", data)
    red = data / LABELS[0]
    for pipe in (red / "pipe.png", red / "pipe", data / "a.tar"):
        os.mkfifo(pipe)
    (data / "class").symlink_to("nowhere")
    (red / "circle").symlink_to("circle")
    (red / "others").symlink_to(data / LABELS[1])
    with socket.socket(socket.AF_UNIX) as found, pytest.MonkeyPatch.context() as patch:
        patch.chdir(red)
        found.bind("socket.png")
    return data


def test_what_is_no_file_is_named_and_not_opened(converted, odd):
    code, _, err = run("evaluate", "--data", odd, "--model", converted)
    assert code == 0, err
    note = next(line for line in err.splitlines() if line.startswith("note: links to nothing or to folders, pipes,"))
    names = {
        "a.tar",
        "class",
        *(f"red things/{name}" for name in ("pipe", "pipe.png", "circle", "others", "socket.png")),
    }
    assert set(note.partition("left out: ")[2].split(", ")) == names


def test_links_to_images_that_are_gone_count_as_unreadable(converted, odd):
    (odd / LABELS[0] / "gone.png").symlink_to("nowhere.png")
    code, _, err = run("evaluate", "--data", odd, "--model", converted)
    assert code == 5 and "red things/gone.png cannot be read: No such file or directory" in err


def test_a_folder_of_nothing_else_says_so(converted, tmp_path):
    (tmp_path / "data").mkdir()
    os.mkfifo(tmp_path / "data" / "a.tar")
    code, _, err = run("evaluate", "--data", tmp_path / "data", "--model", converted)
    assert code == 3 and "pipes, sockets or devices left out: a.tar" in err


@pytest.mark.parametrize("name", ["pipe", "pipe.png", "pipe.tar", "pipe.txt"])
def test_a_pipe_is_refused_and_its_writer_not_woken(converted, tmp_path, name):
    pipe, woken = tmp_path / name, threading.Event()
    os.mkfifo(pipe)

    def write():
        with pipe.open("wb"):  # which waits for a reader
            woken.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for words in (
            ["explain", pipe],
            ["evaluate", "--data", pipe],
            ["evaluate", "--data", f"file://{pipe}"],
            ["report", "--images", pipe, "-o", tmp_path / "r.html"],
        ):
            code, _, err = run(*words, "--model", converted)
            assert code == 3 and ("it is not a file" in err or "neither a folder nor a file" in err)
        assert not woken.is_set()
    finally:
        os.close(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK))
        writer.join()


# lists and archives


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("a\0.png\tred things", "line 19 holds a zero byte"),
        ("/dev/zero\tred things", "/dev/zero cannot be read: it is not a file"),
        ("\x1b[31m.png\tred things", r"\033[31m.png cannot be read: No such file"),
        (f"{RAW}.png\tred things", f"{SHOWN}.png is not an image"),
    ],
)
def test_lines_of_a_list_that_lead_to_no_image(toy, converted, tmp_path, line, words):
    (tmp_path / f"{RAW}.png").write_bytes(b"x")
    lines = [f"{path}\t{path.parent.name}" for path in sorted(toy.data.glob("val/*/*"))]
    lines[-1:] = [lines[-1] + " " * 5000, line]
    (tmp_path / "list.txt").write_bytes(os.fsencode("\n".join(lines)))
    code, _, err = run("evaluate", "--data", tmp_path / "list.txt", "--model", converted)
    assert code in (3, 5) and words in err


def test_lists_of_no_images_and_of_absolute_and_other_folders(toy, tmp_path, converted):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    code, _, err = run("evaluate", "--data", tmp_path / "empty.txt", "--model", converted)
    assert code == 3 and "empty.txt lists no images" in err
    away = os.path.relpath(toy.data, tmp_path)
    lines = [f"{away}/val/{path.parent.name}/{path.name}\t{path.parent.name}" for path in toy.data.glob("val/*/*")]
    (tmp_path / "away.txt").write_text("\n".join(lines))
    assert run("evaluate", "--data", tmp_path / "away.txt", "--model", converted)[0] == 0


def test_no_more_of_an_archive_is_unpacked_than_it_claims(tmp_path):
    """64 MiB that claim to be 1000 bytes."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("ant/1.png", bytes(2**26))
    raw = bytearray((tmp_path / "bomb.zip").read_bytes())
    entry = raw.rindex(b"PK\1\2")
    raw[entry + 24 : entry + 28] = struct.pack("<I", 1000)
    (tmp_path / "bomb.zip").write_bytes(raw)
    found = find_images(tmp_path / "bomb.zip", "train", (ClassName(label="ant"),), ClassMapping())
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="cannot be read: Bad CRC-32"):
            read(found.files[0][0].path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_picture_of_too_many_pixels_is_not_decoded():
    content = io.BytesIO()
    Image.new("1", (20000, 20000)).save(content, "PNG")
    with pytest.raises(InputError, match="has too many pixels, at most 64,000,000 are read"):
        decode(content.getvalue())


def test_a_table_with_a_file_name_that_is_no_text(tmp_path, monkeypatch):
    monkeypatch.setattr("protonmf_cli.files.images.sources.kept.default_folder", lambda: tmp_path / "cache")
    raw = pa.array([b"1\xff.png"], pa.binary())
    path = pa.Array.from_buffers(pa.string(), 1, raw.buffers())
    image = pa.StructArray.from_arrays([pa.array([b"x"]), path], names=["bytes", "path"])
    pq.write_table(pa.table({"image": image, "label": pa.array(["ant"])}), tmp_path / "a.parquet")
    found = find_images(tmp_path / "a.parquet", "train", (ClassName(label="ant"),), ClassMapping()).files[0][0]
    assert (found.name, found.read_bytes()) == (r"ant/1\377.png", b"x")


# paths that name nothing


@pytest.mark.parametrize(
    "words",
    [
        ["convert", "NETWORK", "--data", ""],
        ["convert", "", "--data", "DATA"],
        ["convert", "NETWORK", "--data", "DATA", "-o", ""],
        ["convert", "NETWORK", "--data", "DATA", "--labels="],
        ["convert", "NETWORK", "--data", "DATA", "--class-map", ""],
        ["evaluate", "--data=", "--model", "MODEL"],
        ["explain", "", "--model", "MODEL"],
        ["explain", "IMAGE", "--model", ""],
        ["explain", "IMAGE", "--model", "MODEL", "--png", ""],
        ["intervene", "IMAGE", "--zero", "1", "--model", ""],
        ["inspect", ""],
        ["protopnet", "train", "NETWORK", "--data", ""],
        ["fewshot", "fit", "NETWORK", "--data", "DATA", "-o", ""],
        ["demo", ""],
    ],
)
def test_an_empty_word_names_no_folder(toy, converted, tmp_path, monkeypatch, words):
    monkeypatch.chdir(shutil.copytree(toy.data, tmp_path / "here"))
    named = {"NETWORK": toy.name, "DATA": toy.data, "MODEL": converted, "IMAGE": toy.image()}
    code, out, err = run(*[named.get(word, word) for word in words])
    assert (code, out) == (2, "") and err.count("\n") == 1 and "is empty: give a value, or leave it out" in err


@pytest.mark.parametrize("words", ["", b"data", "a\0b"])
def test_python_refuses_paths_that_name_nothing(words):
    for make in (lambda: ImageWords.of(words, split="val"), lambda: Output.of(words)):
        with pytest.raises(UsageError, match="is bytes: give text|names no file and no folder"):
            make()


# folders of networks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda file: file.unlink(), "holds no weights: put model.safetensors beside its config.json"),
        (lambda file: (file.unlink(), file.symlink_to("nowhere")), "are a link that leads to no file"),
        (lambda file: (file.unlink(), file.mkdir()), "are a folder"),
        (lambda file: file.write_bytes(LFS), "is a pointer of git-lfs and not the weights"),
    ],
)
def test_a_folder_without_weights_is_refused_in_one_sentence(toy, tmp_path, change, words):
    network = shutil.copytree(toy.network, tmp_path / "network")
    change(network / "model.safetensors")
    code, _, err = run("convert", f"local-dir:{network}", "--data", toy.data, "-o", tmp_path / "m")
    assert code == 3 and words in err and "Error" not in err


# a disk that forgets


def test_a_class_that_cannot_be_read_back_ends_the_conversion(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(Shards, "put", lambda *_: None)
    code, _, err = run("convert", toy.name, "--data", toy.data, "-o", tmp_path / "m", "-p", 1, "--no-stability", "-q")
    assert code == 3 and "cannot be read again, 3 times in a row" in err
