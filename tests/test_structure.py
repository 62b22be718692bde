"""The library stays thin: rooms that import one way, short files and functions, unique names, examples that run."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "cirlib"
ROOMS = ("study", "losses", "figures", "benchmarks", "models", "retrieval", "training", "analysis", "app")
IMPORTS = {  # room → the rooms that it may import
    "study": set(),
    "losses": set(),
    "figures": {"study"},
    "benchmarks": {"study"},
    "models": {"study", "benchmarks"},
    "retrieval": {"study", "benchmarks"},
    "training": {"study", "losses", "benchmarks", "models", "retrieval"},
    "analysis": {"study", "losses", "figures", "benchmarks", "models", "retrieval", "training"},
    "app": set(ROOMS) - {"app"},
}
FILES = sorted(LIBRARY.rglob("*.py"))
MANY_PARAMETERS = {"mine_hard_negatives"}  # keeps the signature of sentence-transformers' function


def name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def imports(source: str, file: str = "") -> Iterator[str]:
    """Every module of cirlib, or name in one, that the ``source`` of ``file`` imports, also inside functions."""
    package = file.split("/")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names if module.split(".")[0] == "cirlib")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("cirlib."))


def functions(file: Path) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef))


def test_the_top_level_has_the_rooms_and_four_modules_for_users():
    assert {path.name for path in LIBRARY.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(ROOMS)
    assert {path.stem for path in LIBRARY.glob("*.py")} == {"__init__", "convert", "evaluation", "metrics", "mining"}


@pytest.mark.parametrize("of", ROOMS)
def test_rooms_import_one_way(of):
    wrong = {
        f"{name(file)} imports {module}"
        for file in (LIBRARY / of).rglob("*.py")
        for module in imports(file.read_text(), name(file))
        if module.split(".")[1] not in {of, *IMPORTS[of]}
    }
    assert wrong == set()


def test_no_file_is_long():
    assert {name(file): lines for file in FILES if (lines := len(file.read_text().splitlines())) > 300} == {}


def test_no_function_is_long():
    def lines(function: ast.FunctionDef) -> int:
        documented = ast.get_docstring(function) is not None
        start = function.body[0].end_lineno if documented else function.lineno - 1
        return function.end_lineno - start

    long = {f"{name(file)}: {f.name}": lines(f) for file in FILES for f in functions(file) if lines(f) > 40}
    assert long == {}


def test_no_public_function_has_many_parameters():
    many = {
        f"{name(file)}: {f.name}": count
        for file in FILES
        for f in functions(file)
        if not f.name.startswith("_") and f.name not in MANY_PARAMETERS
        if (count := len([a for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs) if a.arg != "self"])) > 9
    }
    assert many == {}


def test_no_two_modules_have_one_name():
    names = Counter(file.name for file in FILES if file.name != "__init__.py")
    assert [file for file, count in names.items() if count > 1] == []


@pytest.mark.parametrize("of", ROOMS)
def test_every_public_function_shows_an_example(of):
    without = [
        f"{name(file)}: {node.name}"
        for file in (LIBRARY / of).rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and node.name != "main"
        if ">>> " not in (ast.get_docstring(node) or "")
    ]
    assert without == []
