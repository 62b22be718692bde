"""Too little disk or memory, told in one sentence."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cirlib.study.errors import ResourceError

SPARE_DISK = 500_000_000  # bytes that are to stay free


def require_disk(folder: Path, needed: int, advice: str) -> None:
    """A ResourceError with the advice where ``needed`` bytes would not fit on the disk of ``folder``.

    >>> require_disk(folder / "features", 1000, "make room")
    """
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed + SPARE_DISK > free:
        wanted = f"{needed / 1e9:.3g} GB, {SPARE_DISK / 1e9:.3g} GB beside them"
        raise ResourceError(f"{folder} needs {wanted}, and its disk has {free / 1e9:.3g} GB free: {advice}")


@contextmanager
def within_memory(what: str, advice: str) -> Iterator[None]:
    """A ResourceError with the advice where the work inside does not fit into the memory, of GPU or machine.

    >>> with within_memory("a batch of 64 images", "lower batch_size"):
    ...     pixels = torch.zeros(64, 3, 8, 8)
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        gpu = isinstance(error, torch.OutOfMemoryError)
        if not (gpu or isinstance(error, MemoryError) or "can't allocate memory" in str(error)):  # torch's, of the CPU
            raise
        raise ResourceError(f"{what} does not fit into the {'GPU' if gpu else 'machine'}'s memory: {advice}") from None
