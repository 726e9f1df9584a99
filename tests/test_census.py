"""The census of architectures, on a few small ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.census import table

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
DOCUMENT = (Path(__file__).parent / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
RESULTS = Path(__file__).parent / "benchmarks" / "census.jsonl"
SCRIPT = Path(__file__).parent / "benchmarks" / "census.py"


def census(*words: object) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
def test_results_are_kept_and_counted(tmp_path):
    results = tmp_path / "results.jsonl"
    out = census(results, "--only", "test_vit*")
    assert "[5/5] test_vit_relpos" in out
    assert "with a classifier: 5; exact 5, with maps 5, by image row 0, refused 0, failed 0, too large 0" in out
    found = {line["name"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert found["test_vit"]["kind"] == "token-writes"
    assert max(line["difference"] for line in found.values()) <= 1e-12

    again = census(results, "--only", "test_vit*")
    assert "[" not in again, "what is known is not run again"
    assert "[1/1] test_vit3" in census(results, "--only", "test_vit*", "--again", "attention-pool")
    assert len(results.read_text().splitlines()) == 6

    table = census(results, "--only", "test_[rv]*", "--table")
    assert "5 architectures" in table and "1 still missing" in table
    assert "| `scaled` | 3 | 3 |" in table


@pytest.mark.slow
def test_no_classifier_and_too_large_are_counted_apart(tmp_path):
    out = census(tmp_path / "results.jsonl", "--only", "qwen3_vit_88m*")
    assert out.count("no classifier") == 3 and "with a classifier: 0" in out
    out = census(tmp_path / "results.jsonl", "--only", "vit_base_patch16_224", "--memory", 2.5)
    assert "too large 1" in out


@pytest.mark.slow
def test_tables_that_torchvision_makes_in_float32_do_not_stand_in_the_way(tmp_path):
    out = census(tmp_path / "results.jsonl", "--library", "torchvision", "--only", "swin_v2_t")
    assert "swin_v2_t  28 M  exact  average  7x7" in out


def kept_of(library: str) -> list[dict]:
    return [seen for line in RESULTS.read_text(encoding="utf-8").splitlines() if library in (seen := json.loads(line))]


@pytest.mark.parametrize(("library", "least"), [("transformers", 20), ("torchvision", 60)])
def test_the_documents_tell_the_results_of_other_libraries(library, least):
    kept = kept_of(library)
    assert "\n".join(line for line in table(kept, library, missing=0).splitlines() if line.startswith("|")) in DOCUMENT
    exact = [seen for seen in kept if seen["outcome"] == "exact"]
    maps = [seen for seen in exact if seen["grid"]]
    assert len(exact) >= least
    assert len(maps) >= 0.8 * len(exact)
    assert max(seen["difference"] for seen in exact) <= 1e-12
    sentence = (
        f"{library} {kept[0][library]}: {len(exact)} of {len(kept)} are read exactly, {len(maps)} of them with maps"
    )
    assert sentence in " ".join(DOCUMENT.split())


def test_the_documents_tell_the_results_that_are_kept():
    kept = kept_of("timm")
    said = [line for line in table(kept, missing=0).splitlines() if line.startswith("|")]
    assert "\n".join(said) in DOCUMENT
    exact = [seen for seen in kept if seen["outcome"] == "exact"]
    maps = [seen for seen in exact if seen["grid"]]
    classifiers = [seen for seen in kept if seen["outcome"] != "no classifier"]
    for sentence in (
        f"Of the {len(kept):,} architectures of timm {kept[0]['timm']}, {len(classifiers):,} have a classifier.",
        f"{len(exact):,} of them are read exactly, {len(maps):,} with maps, none by\nthe image row alone; none is refused",
        f"The other {len(kept) - len(classifiers)} are encoders",
        f"in all {sum(seen['quadrants'] == 4 for seen in exact)}.",
    ):
        assert sentence in DOCUMENT
    headline = f"{len(exact):,} of {len(classifiers):,} architectures are read exactly, {len(maps):,} of them with maps"
    assert headline in " ".join(README.split())
    assert {seen["outcome"] for seen in kept} == {"exact", "too large", "no classifier"}
    assert not [seen for seen in exact if seen["kind"] == "image-row" or seen["difference"] > 1e-12]
