"""Pictures, archives, tables, lists and model files with damaged bytes are read or refused, and nothing else."""

import random

import pytest
from byte_targets import ENDS, changed, more_seeds, seeds, targets, tried

from toys import slow

FEW, MANY = 40, 1500
NAMES = (*ENDS, "picture", "model", "header")


@pytest.fixture(scope="module")
def content(toy, converted, tmp_path_factory):
    return seeds(toy, tmp_path_factory.mktemp("packed")) | more_seeds(converted)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *((name, FEW) for name in NAMES),
        *(slow(name, MANY) for name in NAMES if name != "parquet"),
    ],  # see `manual security`
)
def test_damaged_bytes_are_read_or_refused(content, converted, tmp_path, monkeypatch, name, count):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    target = targets(tmp_path, converted)[name]
    assert tried(target, content[name]), "without damage it is read"
    answers = []
    for seed in range(count):
        try:
            answers.append(tried(target, changed(content[name], random.Random(seed))))
        except Exception as failure:
            raise AssertionError(f"{name}, seed {seed}") from failure
    assert not all(answers), "some are refused"
