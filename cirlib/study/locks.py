"""One run at a time: a file that a process holds until it closes it, or ends."""

import fcntl
import os
from pathlib import Path


def take_lock(file: Path, *, wait: bool = False) -> int | None:
    """The descriptor by which this process holds ``file``; None where another one does, for which ``wait`` waits.

    A file system that knows no locks holds nobody up.

    >>> first = take_lock(folder / "a.lock")
    >>> take_lock(folder / "a.lock") is None
    True
    >>> os.close(first)
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        return None
    except OSError:
        pass
    return descriptor
