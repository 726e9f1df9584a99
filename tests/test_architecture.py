"""Imports point one way: cli -> jobs -> pipelines, files, output -> models -> maths; errors, options, versions are leaves."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "protonmf_cli"
LEAVES = {"errors", "options", "versions", ""}
MAY_IMPORT = {
    "maths": {"maths"},
    "models": {"models", "maths"},
    "pipelines": {"pipelines", "models", "maths"},
    "files": {"files", "models"},
    "output": {"output", "models", "files", "pipelines", "cli", "jobs"},
    "jobs": {"jobs", "pipelines", "files", "output", "models", "cli"},
    "cli": {"cli", "jobs", "pipelines", "files", "output", "models"},
    "__main__": {"cli"},
    "__init__": set(),
}
MAY_NOT_TOUCH = {
    "maths": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors"},
    "models": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors", "torch.optim"},
    "pipelines": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors"},
    "files": {"rich", "typer", "pickle"},
    "output/figures": {"torch", "timm", "pathlib", "rich", "typer"},
    "cli": {"timm", "PIL"},
}
HEAVY = {"torch", "timm", "cvxpy", "scipy", "sklearn", "matplotlib", "PIL", "safetensors", "numpy"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported modules, and whether the import stands at the top level outside `if TYPE_CHECKING`."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found.append((node.module or "", id(node) in top))
    return found


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports(path):
    relative = path.relative_to(PACKAGE)
    own = relative.parts[0].removesuffix(".py")
    for module, top in imports(path):
        if module.startswith("protonmf_cli"):
            target = room(module)
            if own in LEAVES:
                pytest.fail(f"{relative} is a leaf and imports {module}")
            assert target in LEAVES | MAY_IMPORT[own], f"{relative} imports {module}"
        else:
            for forbidden in MAY_NOT_TOUCH.get(own, set()):
                assert module != forbidden and not module.startswith(forbidden + "."), f"{relative} imports {module}"
            if own in LEAVES - {""}:
                assert module.split(".")[0] not in HEAVY
            if own == "cli" and top and relative.name != "ledger.py":  # imported by commands once they run
                assert module.split(".")[0] not in HEAVY, f"{relative} imports {module} before a command runs"


def test_cvxpy_only_in_qp():
    users = {path.relative_to(PACKAGE).as_posix() for path in FILES for module, _ in imports(path) if module == "cvxpy"}
    assert users == {"maths/qp.py"}


def test_no_global_randomness():
    for path in FILES:
        text = path.read_text()
        allowed = "fork_rng" in text
        assert allowed or "torch.manual_seed" not in text, path
        assert "np.random.seed" not in text, path
