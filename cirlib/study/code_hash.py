"""What code of the library does, as a hash: comments, docstrings and layout do not count."""

import ast
import hashlib
from functools import cache
from pathlib import Path

LIBRARY = Path(__file__).parents[1]


@cache
def code_hash(*folders: str) -> str:
    """Changes with every statement in these folders of cirlib, so that what other code made is not taken for theirs.

    >>> code_hash("losses") == code_hash("losses", "training")
    False
    """
    files = sorted(file for folder in folders for file in (LIBRARY / folder).rglob("*.py"))
    return hashlib.sha256("".join(map(_statements, files)).encode()).hexdigest()


def _statements(file: Path) -> str:
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return ast.dump(tree)
