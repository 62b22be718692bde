"""One run in a folder at a time: a lock on the folder itself, which the system frees when the process ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not Unix: nothing is locked
    fcntl = None  # type: ignore[assignment]

_held: dict[Path, int] = {}  # folder → its open descriptor, in this process


def hold(folder: Path) -> bool:
    """Takes ``folder`` for this process until :func:`release` or its end; whether it could be had.

    Taking it again is allowed. Where the file system knows no locks every folder can be had.

    >>> hold(folder), release(folder)
    (True, None)
    """
    if fcntl is None or folder in _held:
        return True
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    _held[folder] = descriptor
    return True


def release(folder: Path) -> None:
    """Leaves ``folder`` to others; nothing where it is not held.

    >>> release(folder)
    """
    if folder in _held:
        os.close(_held.pop(folder))


def _release_all() -> None:
    for folder in list(_held):
        release(folder)


if fcntl is not None:  # a forked worker may outlive a killed parent: the lock is not its own
    os.register_at_fork(after_in_child=_release_all)
