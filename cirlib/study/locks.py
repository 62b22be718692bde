"""One run at a time: a file that a process holds until it closes it, or ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cirlib.study.errors import StageError


def take_lock(file: Path, *, wait: bool = False) -> int | None:
    """The descriptor by which this process holds ``file``; None where another one does, for which ``wait`` waits.

    Its folder is made. A file system that knows no locks holds nobody up.

    >>> first = take_lock(folder / "a.lock")
    >>> take_lock(folder / "a.lock") is None
    True
    >>> os.close(first)
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor


def claim(file: Path, where: str) -> int:
    """The descriptor by which this process holds ``file``; a StageError, which says ``where``, where another one does.

    >>> os.close(claim(folder / "a.lock", "results"))
    """
    if (descriptor := take_lock(file)) is None:
        raise StageError(f"another run writes to {where}: wait for it, or stop it")
    return descriptor


@contextmanager
def alone(file: Path, where: str) -> Iterator[None]:
    """Inside, no other run holds ``file``; a StageError as of :func:`claim` where one does.

    >>> with alone(folder / "a.lock", "results"):
    ...     pass
    """
    descriptor = claim(file, where)
    try:
        yield
    finally:
        os.close(descriptor)


@contextmanager
def in_turn(file: Path, told: str) -> Iterator[None]:
    """Inside, no other run holds ``file``; where one does, ``told`` is shown and the other waited for.

    >>> with in_turn(folder / "a.lock", "another run trains the same, waits for it"):
    ...     pass
    """
    if (descriptor := take_lock(file)) is None:
        print(told, flush=True)
        descriptor = take_lock(file, wait=True)
    try:
        yield
    finally:
        os.close(descriptor)
