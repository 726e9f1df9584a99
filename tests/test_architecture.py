"""Imports point one way: cli -> jobs -> pipelines, files, output -> models -> maths; errors, options, versions are leaves."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "protonmf_cli"
LEAVES = {"errors", "options", "versions", ""}
MAY_IMPORT = {
    "maths": {"maths"},
    "models": {"models", "maths"},
    "pipelines": {"pipelines", "models", "maths"},
    "files": {"files", "models"},
    "output": {"output", "models"},
    "jobs": {"jobs", "pipelines", "files", "output", "models"},
    "cli": {"cli", "jobs", "output"},
    "manual": set(),
    "__main__": {"cli"},
    "__init__": set(),
}
FOR_TYPES = {"output": {"jobs", "pipelines"}, "__init__": {"jobs", "models"}}
"""What may be named in annotations besides: the results that are shown, and what the package hands out."""
MAY_NOT_TOUCH = {
    "maths": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors"},
    "models": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors", "torch.optim"},
    "pipelines": {"timm", "PIL", "pathlib", "rich", "typer", "safetensors"},
    "files": {"rich", "typer", "pickle"},
    "jobs": {"rich", "typer", "timm"},
    "output/figures": {"torch", "timm", "pathlib", "rich", "typer"},
    "output": {"torch", "timm", "rich", "typer"},
    "cli": {"timm", "PIL"},
}
HEAVY = {"torch", "timm", "cvxpy", "scipy", "sklearn", "matplotlib", "PIL", "safetensors", "numpy"}
LIGHT = ("cli", "manual", "output/records", "output/text", "errors", "options", "versions", "__init__", "__main__")
"""What `protonmf --help` imports."""
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_FILES = 20
MOST_INNER_IMPORTS = 40
MOST_CLI_LINES = 3000
LONGEST_BODY, MEDIAN_BODY = 45, 6


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def imports(path: Path) -> list[tuple[str, bool, bool]]:
    """Imported modules, whether the import is for types alone, and whether it stands inside a function."""
    found: list[tuple[str, bool, bool]] = []

    def walk(node: ast.AST, typing: bool, inside: bool) -> None:
        for child in ast.iter_child_nodes(node):
            only = typing or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            if isinstance(child, ast.Import):
                found.extend((alias.name, typing, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"relative import in {path}"
                found.append((child.module or "", typing, inside))
            walk(child, only, inside or isinstance(child, ast.FunctionDef))

    walk(ast.parse(path.read_text()), False, False)
    return found


def own_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_floors():
    for path in FILES:
        own = own_of(path)
        for module, typing, _ in imports(path):
            if not module.startswith("protonmf_cli"):
                continue
            allowed = LEAVES | MAY_IMPORT.get(own, set()) | (FOR_TYPES.get(own, set()) if typing else set())
            assert room(module) in allowed, f"{name_of(path)} imports {module}"


def test_foreign_packages():
    for path in FILES:
        for place, forbidden in MAY_NOT_TOUCH.items():
            if not name_of(path).startswith(f"{place}/"):
                continue
            for module, typing, _ in imports(path):
                touched = [each for each in forbidden if module == each or module.startswith(f"{each}.")]
                assert typing or not touched, f"{name_of(path)} imports {module}"


def test_help_is_light():
    for path in FILES:
        if not name_of(path).startswith(LIGHT):
            continue
        for module, typing, inside in imports(path):
            assert typing or inside or module.split(".")[0] not in HEAVY, f"{name_of(path)} imports {module}"


def test_imports_inside_functions_are_few():
    inner = [f"{name_of(path)}: {module}" for path in FILES for module, _, inside in imports(path) if inside]
    assert len(inner) <= MOST_INNER_IMPORTS, inner


def test_folders_and_commands_are_small():
    for folder in (PACKAGE, *(each for each in PACKAGE.rglob("*") if each.is_dir() and each.name != "__pycache__")):
        files = [each.name for each in folder.iterdir() if each.is_file()]
        assert len(files) <= MOST_FILES, f"{folder}: {len(files)} files"
    lines = sum(len(path.read_text().splitlines()) for path in FILES if own_of(path) == "cli")
    assert lines <= MOST_CLI_LINES


def test_functions_are_short():
    lengths = []
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
                lengths.append(lines)
                assert lines <= LONGEST_BODY, f"{name_of(path)}: {node.name} has {lines} lines"
    assert sorted(lengths)[len(lengths) // 2] <= MEDIAN_BODY


def test_cvxpy_only_in_qp():
    users = {
        path.relative_to(PACKAGE).as_posix() for path in FILES for module, *_ in imports(path) if module == "cvxpy"
    }
    assert users == {"maths/qp.py"}


def test_no_global_randomness():
    for path in FILES:
        text = path.read_text()
        allowed = "fork_rng" in text
        assert allowed or "torch.manual_seed" not in text, path
        assert "np.random.seed" not in text, path
