"""The checkpoint of a training: read where it is whole, and used by one run at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import PartialState

from cirlib.study.locks import take_lock


@contextmanager
def alone_in(folder: Path | None, run: str) -> Iterator[None]:
    """Inside, no other run trains in ``folder`` (None: it is kept nowhere): a second one waits, and says so.

    >>> with alone_in(folder / "toy", "toy"):
    ...     pass
    """
    if folder is None or not PartialState().is_main_process:
        yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.with_name(f"{folder.name}.lock")
    if (held := take_lock(lock)) is None:
        print(f"{run}: another run trains the same, waits for it", flush=True)
        held = take_lock(lock, wait=True)
    try:
        yield
    finally:
        os.close(held)


def read_state(path: Path) -> dict | None:
    """The state that a training wrote; None where there is nothing, or nothing whole, which is said.

    >>> (folder / "state.pt").write_bytes(b"garbage")
    7
    >>> read_state(folder / "state.pt") is None  # doctest: +ELLIPSIS
    /...state.pt is damaged: what it kept is trained anew
    True
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file gives nearly any
        if path.exists():
            print(f"{path} is damaged: what it kept is trained anew")
        return None
    return state if isinstance(state, dict) and {"key", "trainer"} <= state.keys() else None
