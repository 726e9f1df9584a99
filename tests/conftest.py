"""Fixtures: a toy classifier with its data, and the trained networks and real images where they are at hand."""

import gc
import os
import signal
from pathlib import Path
from typing import NoReturn

import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # before torch is imported: small networks are quicker so, and workers share cores

import toys  # noqa: E402

gc.collect()
gc.freeze()  # what torch and timm made stays, and is not looked through again for circles
gc.set_threshold(10_000, *gc.get_threshold()[1:])

collect_ignore = ["benchmarks"]  # their peers are not installed

SHARED = Path(__file__).resolve().parents[2] / "shared"


def missing(what: str) -> NoReturn:
    """Skip for want of something; in CI, where everything must be there, fail."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PROTONMF_MODEL", raising=False)


@pytest.fixture(autouse=True)
def _own_process():
    """A command's --threads and what it does with SIGTERM do not outlive its test."""
    import torch

    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGTERM)
    yield
    torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of trained networks and real images."""
    if not (SHARED / "models").is_dir():
        missing(f"no trained networks and real images at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> toys.Toy:
    """A small trained network as a timm folder, and colourful images in class folders."""
    return toys.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def converted(toy) -> Path:
    """The toy, converted by the command line."""
    return toys.convert(toy, toy.folder / "prototypes.safetensors")


@pytest.fixture(scope="session")
def paper(toy) -> Path:
    """The toy as ProtoNMF was printed, projections on its own prototypes and a residual that nobody takes up."""
    words = ("--near", 0, "--recipe", "paper", "--augment", "none")
    return toys.convert(toy, toy.folder / "paper.safetensors", *words)


@pytest.fixture(scope="session")
def vit(toy) -> Path:
    """A small ViT with rows without a place, converted."""
    return toys.convert(toys.make_vit(toy), toy.folder / "vit.safetensors")


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium: one of the system, or else Playwright's own."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("the report's tests need playwright: pip install 'protonmf[test]'")
    from pages import browser_path

    with sync_playwright() as play:
        path = browser_path() or play.chromium.executable_path
        if not Path(path).is_file():
            missing(
                "the report's tests need a Chromium: apt-get install chromium (Debian), "
                "or python -m playwright install chromium (elsewhere)"
            )
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
