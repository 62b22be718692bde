"""Bars: a notebook's widget, text in a terminal, or the line that a stage's runner shows."""

import os
from functools import partial
from pathlib import Path

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
        write_bytes(text.strip().encode(), self.path)

    def flush(self) -> None:
        """Every write is whole already."""


def _bar_class() -> type[tqdm.std.tqdm] | partial:
    if STATUS not in os.environ:
        return tqdm.auto.tqdm
    stream = _LastWord(Path(os.environ[STATUS]))
    return partial(tqdm.std.tqdm, file=stream, bar_format=LINE, mininterval=1, leave=False)


progress = _bar_class()
