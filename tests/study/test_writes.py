"""Every file is written through `cirlib.study.files`: no call elsewhere leaves one half-written."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
WRITING = {"to_csv", "to_json", "to_excel", "write_text", "write_bytes", "savefig", "save_file", "dump"}
SAVING = {"torch", "np", "numpy", "image", "picture", "plt"}  # whose `save` writes a file
# Streams and folders that are whole by other means, and stand-ins for rehearsals: file → the function that writes.
OTHERWISE = {
    "cirlib/files.py": "*",
    "cirlib/training.py": "_save_state",  # called within replace_file
    "cirlib/qformer_training.py": "_save_array",
    "cirlib/rehearsal.py": "save_tiny_clip",
    "cirlib/encoders/store.py": "_allocate",  # a store is whole when its folder is renamed
    "cirlib/figures.py": "save",  # into memory first
    "cirlib/preferences/cells.py": "_without_docstrings",  # ast.dump
}


def calls(tree: ast.AST, inside: tuple[ast.AST, ...] = ()) -> list[tuple[ast.Call, tuple[ast.AST, ...]]]:
    """Every call, with what encloses it."""
    found = [(tree, inside)] if isinstance(tree, ast.Call) else []
    for child in ast.iter_child_nodes(tree):
        found += calls(child, (*inside, tree))
    return found


def writes(call: ast.Call) -> bool:
    function = call.func
    if isinstance(function, ast.Name):
        opens = function.id == "open" and _mode(call, 1)
        return opens or function.id == "save_file"
    if not isinstance(function, ast.Attribute):
        return False
    if function.attr == "open":
        return _mode(call, 0)
    saves = function.attr == "save" and isinstance(function.value, ast.Name) and function.value.id in SAVING
    return saves or function.attr in WRITING


def _mode(call: ast.Call, position: int) -> bool:
    modes = [*call.args[position : position + 1], *(k.value for k in call.keywords if k.arg == "mode")]
    return any(isinstance(m, ast.Constant) and isinstance(m.value, str) and set(m.value) & set("wx+") for m in modes)


def name_of(node: ast.AST) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""


def unguarded(source: str, allowed: str = "") -> list[str]:
    found = []
    for call, inside in calls(ast.parse(source)):
        functions = [node.name for node in inside if isinstance(node, ast.FunctionDef)]
        within = any(name_of(node) == "replace_file" for node in inside)
        in_memory = any("BytesIO" in ast.unparse(arg) or "buffer" in ast.unparse(arg) for arg in call.args)
        if writes(call) and not (within or in_memory or allowed == "*" or allowed in functions):
            found.append(f"line {call.lineno}: {ast.unparse(call)[:80]}")
    return found


@pytest.mark.parametrize("file", sorted((ROOT / "cirlib").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_module_writes_whole_files_only(file):
    name = str(file.relative_to(ROOT))
    assert unguarded(file.read_text(), OTHERWISE.get(name, "-")) == []


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda f: f.stem)
def test_a_notebook_writes_whole_files_only(file):
    cells = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert [one for source in cells for one in unguarded(source)] == []


def test_an_unguarded_write_is_seen():
    source = "table.to_csv(path)\nreplace_file(path, lambda part: part.write_text(text))\nopen(path, 'w')"
    assert unguarded(source, "-") == ["line 1: table.to_csv(path)", "line 3: open(path, 'w')"]
