"""Work that does not fit into the memory, told in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class ResourceError(RuntimeError):
    """There is too little disk or memory; the message says how much is wanted and which parameter wants less."""


@contextmanager
def within_memory(what: str, advice: str) -> Iterator[None]:
    """Around work on one batch, whose size ``advice`` says how to lower.

    Raises:
        ResourceError: it does not fit into the memory, of the GPU or of the machine.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise ResourceError(f"{what} does not fit into the GPU's memory: {advice}") from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):  # torch's, of the CPU
            raise
        raise ResourceError(f"{what} does not fit into the memory: {advice}") from None
