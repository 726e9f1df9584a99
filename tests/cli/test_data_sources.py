"""Commands over the same images in other forms."""

from dataclasses import replace

import pytest

import packed
import toys
from toys import run


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("protonmf_cli.files.images.sources.kept.default_folder", lambda: tmp_path / "cache")


@pytest.fixture(scope="module")
def files(toy) -> dict[str, bytes]:
    """SPLIT/CLASS/file -> content"""
    return {path.relative_to(toy.data).as_posix(): path.read_bytes() for path in toy.data.rglob("*.png")}


def of(files: dict[str, bytes], split: str) -> dict[str, bytes]:
    return {name.partition("/")[2]: content for name, content in files.items() if name.startswith(f"{split}/")}


@pytest.mark.parametrize("form", ["zip", "tar", "webdataset", "parquet", "memory"])
def test_a_conversion_is_the_same_from_every_form(toy, converted, files, tmp_path, form):
    data = packed.FORMS[form](tmp_path / "train", of(files, "train"))
    made = toys.convert(replace(toy, data=data), tmp_path / "made.safetensors")
    assert made.read_bytes() == converted.read_bytes()


@pytest.mark.parametrize("form", ["webdataset", "parquet", "memory"])
def test_commands_over_labelled_images(converted, files, tmp_path, form):
    data = packed.FORMS[form](tmp_path / "val", of(files, "val"))
    code, out, err = run("evaluate", "--data", data, "--model", converted, "--json", "-q")
    assert code == 0 and '"images": 18,' in out, err
    page = tmp_path / "page.html"
    code, _, err = run("report", "--data", data, "--per-class", 1, "--model", converted, "-o", page, "-q")
    assert code == 0 and page.is_file(), err


def test_refusals_have_their_exit_code(toy, converted, tmp_path):
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    for data, words in ((tmp_path / "x.tar.gz", "compressed as a whole"), ("nosuch://x", "no kind of store")):
        for command in (("convert", toy.name, "-o", tmp_path / "y"), ("evaluate", "--model", converted)):
            code, _, err = run(*command, "--data", data, "-q")
            assert code == 3 and words in " ".join(err.split()), err
