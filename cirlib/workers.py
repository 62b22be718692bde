"""Worker processes that end when the process that started them ends, killed or not."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection, parent_process
from threading import Thread


def process_pool(workers: int | None = None) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes (None: one a core), none of which outlives this one."""
    return ProcessPoolExecutor(workers, initializer=end_with_parent)


def end_with_parent() -> None:
    """Has this process end when the one that started it ends."""
    Thread(target=_wait_and_end, daemon=True).start()


def _wait_and_end() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
