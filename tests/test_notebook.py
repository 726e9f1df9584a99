"""The tour runs from its first cell to its last, and shows what it says."""

from pathlib import Path

import pytest

from conftest import missing

TOUR = Path(__file__).resolve().parents[1] / "examples" / "tour.ipynb"


def outputs(cell, kind: str) -> str:
    """Everything that a cell printed ("text"), or showed as a kind of content."""
    found = [each.get("text", "") if kind == "text" else each.get("data", {}).get(kind, "") for each in cell.outputs]
    return "".join(found)


def test_the_tour_is_kept_without_what_it_printed():
    nbformat = pytest.importorskip("nbformat")
    tour = nbformat.read(TOUR, 4)
    nbformat.validate(tour)
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in tour.cells)


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    kernels = pytest.importorskip("jupyter_client.kernelspec")
    tour = nbformat.read(TOUR, 4)
    client = nbclient.NotebookClient(
        tour, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    try:
        client.execute()
    except (kernels.NoSuchKernel, RuntimeError) as failure:  # RuntimeError: the kernel died, or cannot be reached
        missing(f"no notebook kernel can be started ({failure}): pip install 'protonmf[test]'")
    cells = {cell["id"]: cell for cell in tour.cells}
    assert "<script" not in (card := outputs(cells["explain"], "text/html")) and "logit of three" in card
    assert outputs(cells["figure"], "image/png")
    placed, evidence = outputs(cells["numbers"], "text").split()[2:4]
    assert float(placed) == pytest.approx(float(evidence), abs=1e-6)
    before, after = map(float, outputs(cells["edit"], "text").split())
    assert after < before
    assert "60 explained" in outputs(cells["batch"], "text")
    same, error = map(float, outputs(cells["module"], "text").split())
    assert same < 1e-5 and error < 1e-4
    assert list(tmp_path.iterdir()) == []
