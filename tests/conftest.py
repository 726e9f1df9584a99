"""Fixtures: a toy classifier with its data, and the trained networks and real images where they are at hand."""

import os
from pathlib import Path

import pytest

import toys

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def _own_state_folder(tmp_path, monkeypatch):
    """No test reads or leaves anything in the user's state folder."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("PROTONMF_MODEL", raising=False)


@pytest.fixture(autouse=True)
def _own_threads():
    """A command's --threads does not outlive its test."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of trained networks and real images."""
    if not (SHARED / "models").is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{SHARED} must be beside the checkout in CI")
        pytest.skip(f"no trained networks and real images at {SHARED}")
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
    """Headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    from pages import browser_path

    path = browser_path()
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("a Chromium must be installed in CI")
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()
