"""Every file is written within `replace_file`: no other call in the library or a notebook leaves one half-written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
WRITING = {"to_csv", "to_json", "to_excel", "write_text", "write_bytes", "savefig", "save_file"}
SAVING = {"torch", "np", "image", "picture"}  # whose `save` writes a file
# A function whose parameter is called so is handed to `replace_file`, or fills a folder that is renamed when whole.
UNFINISHED = {"part", "partial", "temporary"}
IN_MEMORY = {"drawn", "buffer"}
STAND_INS = "save_tiny"  # models of the rehearsal, made anew each time


def writes(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        name, owner = call.func.id, ""
    else:
        name, owner = getattr(call.func, "attr", ""), getattr(getattr(call.func, "value", None), "id", "")
    if name == "open":
        modes = [*call.args, *(k.value for k in call.keywords if k.arg == "mode")]
        return any(isinstance(m, ast.Constant) and m.value in ("w", "wb", "x", "xb", "w+", "wb+") for m in modes)
    method = isinstance(call.func, ast.Attribute)
    return name == "save_file" or (method and (name in WRITING or (name == "save" and owner in SAVING)))


def unguarded(tree: ast.AST, guarded: bool = False) -> Iterator[str]:
    """Calls that write a file and stand neither in a call of `replace_file` nor in a function of an unfinished one."""
    if isinstance(tree, ast.FunctionDef | ast.Lambda):
        guarded |= bool({argument.arg for argument in tree.args.args} & UNFINISHED)
        guarded |= getattr(tree, "name", "").lstrip("_").startswith(STAND_INS)
    if isinstance(tree, ast.With):
        guarded |= any("TemporaryDirectory" in ast.unparse(item) for item in tree.items)
    if isinstance(tree, ast.Call):
        guarded |= getattr(tree.func, "id", "") == "replace_file"
        guarded |= bool({getattr(argument, "id", "") for argument in tree.args} & IN_MEMORY)
        if writes(tree) and not guarded:
            yield f"line {tree.lineno}: {ast.unparse(tree)[:80]}"
    for child in ast.iter_child_nodes(tree):
        yield from unguarded(child, guarded)


@pytest.mark.parametrize("file", sorted((ROOT / "cirlib").rglob("*.py")), ids=lambda f: str(f.relative_to(ROOT)))
def test_a_module_writes_whole_files_only(file):
    assert list(unguarded(ast.parse(file.read_text()))) == []


@pytest.mark.parametrize("file", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda f: f.stem)
def test_a_notebook_writes_whole_files_only(file):
    cells = [cell.source for cell in nbformat.read(file, as_version=4).cells if cell.cell_type == "code"]
    assert [found for source in cells for found in unguarded(ast.parse(source))] == []


def test_an_unguarded_write_is_seen():
    source = "table.to_csv(path)\nreplace_file(path, lambda p: p.write_text(text))\nopen(path, 'w')"
    assert list(unguarded(ast.parse(source))) == ["line 1: table.to_csv(path)", "line 3: open(path, 'w')"]
