"""The tests notice when the package is wrong: each mutant of `mutants.py` makes one of its tests fail."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import protonmf_cli
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path(protonmf_cli.__file__).parent
NAMES = [mutant.name for mutant in MUTANTS]


@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_a_mutant_changes_the_package_as_it_is(mutant):
    assert mutant.file_in(PACKAGE).is_file()
    assert mutant.right != mutant.wrong


@pytest.fixture
def copied(tmp_path) -> Path:
    """A folder with a copy of the package, to import it from."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, tmp_path / "copy" / PACKAGE.name, ignore=ignored)
    return tmp_path / "copy"


def outcome_of(folder: Path, *tests: str) -> subprocess.CompletedProcess:
    """Tests of this folder, run on the package in another one."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(  # -P: not the package in the current folder
        [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", "-x", "-n", "0", "-m", "", *tests,
         f"--basetemp={folder / 'tmp'}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.slow
def test_the_package_as_it_is_passes(copied):
    done = outcome_of(copied, *sorted({test for mutant in MUTANTS for test in mutant.tests}))
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=NAMES)
def test_a_mutant_is_noticed(mutant, copied):
    file = mutant.file_in(copied / PACKAGE.name)
    file.write_text(file.read_text().replace(mutant.right, mutant.wrong))
    done = outcome_of(copied, *mutant.tests)
    assert done.returncode != 0, f"mutant {mutant.name} survives {', '.join(mutant.tests)}"
    assert done.returncode == 1 and "\nFAILED " in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]
