"""The checkpoint of a training: read where it is whole, and used by one run at a time."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState

from cirlib.study.locks import in_turn


def alone_in(folder: Path | None, run: str) -> AbstractContextManager:
    """Inside, no other run trains in ``folder`` (None: it is kept nowhere): a second one waits, and says so.

    >>> with alone_in(folder / "toy", "toy"):
    ...     pass
    """
    if folder is None or not PartialState().is_main_process:
        return nullcontext()
    return in_turn(folder.with_name(f"{folder.name}.lock"), f"{run}: another run trains the same, waits for it")


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
