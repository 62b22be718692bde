"""Bars: a notebook's widget, text in a terminal, the line that a stage's runner shows, or one below papermill's."""

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import tqdm.auto
import tqdm.std

from cirlib.study.files import write_bytes

STATUS = "CIRLIB_STATUS"  # names the file that a stage's runner reads (cirlib.app.run_stage); unset: nobody does
LINE = "{desc}  {percentage:.0f} %  {remaining} left{postfix}"


class _LastWord:
    """A stream of which the last line stays, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, text: str) -> None:
        with suppress(OSError):  # of a full disk: the work goes on unseen
            write_bytes(text.strip().encode(), self.path)

    def flush(self) -> None:
        """Every write is whole already."""


def _papermills_terminal() -> str | None:
    """The terminal where papermill runs this notebook; None: it has none, or something else runs it."""
    parent = psutil.Process().parent()
    by_papermill = parent is not None and any(Path(word).stem == "papermill" for word in parent.cmdline()[:3])
    return parent.terminal() if by_papermill else None


def _bar_class() -> type[tqdm.std.tqdm] | partial:
    short = partial(tqdm.std.tqdm, bar_format=LINE, mininterval=1, leave=False)
    if STATUS in os.environ:
        return partial(short, file=_LastWord(Path(os.environ[STATUS])))
    if terminal := _papermills_terminal():
        return partial(short, file=open(terminal, "w"), position=1)
    return tqdm.auto.tqdm


progress = _bar_class()
