"""The errors that are meant for the person who runs the study: their message is one whole sentence."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import extract_tb

LIBRARY = f"{Path(__file__).resolve().parents[1]}/"


class StudyError(Exception):
    """Something that the person can mend: the sentence says what is wrong, where, and what is allowed or to be done.

    Notebooks and command lines show it without a traceback.
    """


class ParameterError(StudyError, ValueError):
    """A parameter is unknown, of the wrong type or out of range; the message says which and what is allowed."""


class StageError(StudyError, RuntimeError):
    """A stage cannot run yet; the message says which command makes what it needs."""


class ResourceError(StudyError, RuntimeError):
    """There is too little disk or memory; the message says how much is wanted and which parameter wants less."""


class WriteError(StudyError, OSError):
    """A file cannot be written: the disk is full or may not be written. The message names the file."""


class ReadError(StudyError, ValueError):
    """A file is cut off or damaged; the message names it."""


class MethodError(StudyError, ValueError):
    """A method of one's own failed, or gave what cannot be scored; the message says what, and what is expected."""


@contextmanager
def own_code(what: str) -> Iterator[None]:
    """Inside runs code of one's own; what it raises becomes a sentence that begins with ``what`` and names the line.

    >>> with own_code("Mine.fit"):
    ...     [].pop()
    Traceback (most recent call last):
    cirlib.study.errors.MethodError: Mine.fit raised IndexError: pop from empty list (<doctest ...>, line 2)
    """
    try:
        yield
    except StudyError as error:
        error.args = (f"{what}: {error}",)
        raise
    except Exception as error:
        frames = [f for f in extract_tb(error.__traceback__) if not f.filename.startswith((LIBRARY, "<frozen"))]
        own = [f for f in frames if f.filename == frames[0].filename]  # not what it called
        where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
        raise MethodError(f"{what} raised {type(error).__name__}: {error}{where}") from error
