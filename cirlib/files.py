"""Files that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path``, then puts it there in one step; nothing is left where it fails.

    Raises:
        OSError: the disk is full or may not be written; the message names the file and says what to do.
    """
    temporary = path.with_suffix(".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        advice = "make room on its disk, or move the folder to another"
        raise OSError(f"{path} could not be written: {error.strerror or error}: {advice}") from error
    finally:
        _remove(temporary)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # of a disk that may not be written
        return
