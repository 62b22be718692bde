"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path``, then puts it there in one step."""
    temporary = path.with_suffix(".tmp")
    write(temporary)
    temporary.replace(path)
