"""Files that are whole or not there."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from cirlib.study.errors import ReadError, WriteError

if TYPE_CHECKING:
    import pandas as pd

NAMES = ("method", "category", "metric", "query", "target", "image", "group", "first_category", "second_category")
ADVICE = "make room on its disk, or move the folder to another"


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Has ``write`` make a file beside ``path``, then puts it there in one step; nothing is left where it fails.

    Whatever ``write`` does, others may read the file as the umask has it. WriteError: the disk is full or may not be
    written.

    >>> replace_file(folder / "a.txt", lambda part: part.write_text("whole"))
    >>> [file.name for file in folder.iterdir()]
    ['a.txt']
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        temporary.replace(path)
    except Exception as error:
        cause = error  # torch has errors of its own for a full disk
        while cause is not None and not isinstance(cause, OSError | SafetensorError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        reason = getattr(cause, "strerror", None) or cause
        raise WriteError(f"{path} could not be written: {reason}: {ADVICE}") from error
    finally:
        with suppress(OSError):  # of a disk that may not be written
            temporary.unlink(missing_ok=True)


def check_new_folder(folder: Path) -> None:
    """A WriteError where ``folder`` is a file, is not empty, or may not be written.

    >>> check_new_folder(folder / "new")
    """
    try:
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        filled = any(place.iterdir()) and folder.exists()
    except OSError as error:  # a file on the way, a name too long, nothing that may be listed
        raise WriteError(f"{folder} cannot be a folder: {error.strerror}") from None
    if filled:
        raise WriteError(f"{folder} is not empty: name a new folder, or empty this one")
    if not os.access(place, os.W_OK):
        raise WriteError(f"{folder} could not be written: {place} is read-only")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` whose files move into it at the end; nothing is left where that fails.

    WriteError: the disk is full or may not be written.

    >>> with new_folder(folder / "new") as partial:
    ...     _ = (partial / "a.txt").write_text("whole")
    """
    partial = folder.resolve().with_name(f"{folder.resolve().name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        folder.mkdir(exist_ok=True)
        for file in partial.iterdir():
            file.chmod(partial.stat().st_mode & 0o666)  # as the umask has it
            file.replace(folder / file.name)
    except (OSError, SafetensorError) as error:
        raise WriteError(
            f"{folder} could not be written: {getattr(error, 'strerror', None) or error}: {ADVICE}"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def link_folder(source: Path, target: Path) -> None:
    """``target`` becomes a folder with the files of ``source``, hard links where the disk knows them, else copies.

    >>> write_bytes(b"content", folder / "new" / "a.bin")
    >>> link_folder(folder / "new", folder / "linked")
    >>> (folder / "linked" / "a.bin").samefile(folder / "new" / "a.bin")
    True
    """
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source, partial, copy_function=_link)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def write_bytes(content: bytes, path: Path) -> None:
    """``content`` as a file; its folder is made.

    >>> write_bytes(b"content", folder / "new" / "a.bin")
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_bytes(content))


def write_json(content: Any, path: Path, *, indent: int | None = 2) -> None:
    """``content`` as a JSON file that ends with a line's end.

    >>> write_json({"sum": 0.3}, folder / "weights.json", indent=None)
    >>> (folder / "weights.json").read_text()
    '{"sum": 0.3}\\n'
    """
    replace_file(path, lambda part: part.write_text(json.dumps(content, indent=indent) + "\n"))


def read_json(path: Path) -> Any:
    """What a JSON file holds; a ReadError, which names it, where it is damaged.

    >>> (folder / "a.json").write_text("[1")
    2
    >>> read_json(folder / "a.json")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    cirlib.study.errors.ReadError: /...a.json is damaged (Expecting ...): delete it and run what makes it again
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ReadError:
    return ReadError(f"{path} is damaged ({' '.join(str(error).split())}): delete it and run what makes it again")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, 16 or 32, whose byte-order mark, where some program wrote one, does not count.

    >>> _ = (folder / "a.json").write_text("[1]", encoding="utf-8-sig")
    >>> read_text(folder / "a.json")
    '[1]'
    """
    content = path.read_bytes()
    return content.decode(json.detect_encoding(content))


def write_table(table: "pd.DataFrame", path: Path) -> None:
    """``table`` as a CSV file without its index.

    >>> write_table(pd.DataFrame({"rank": [1, 3]}), folder / "ranks.csv")
    """
    replace_file(path, lambda part: table.to_csv(part, index=False))


def load_table(path: Path) -> "pd.DataFrame":
    """A table of :func:`write_table`; in the columns `NAMES` all is text, ``001`` and ``NA`` too.

    A ReadError, which names the file, where it is damaged.

    >>> write_table(pd.DataFrame({"category": ["NA"], "value": [None]}), folder / "a.csv")
    >>> load_table(folder / "a.csv").values.tolist()
    [['NA', nan]]
    """
    import pandas as pd

    try:
        others = pd.read_csv(path, nrows=0).columns.difference(NAMES)
        empty = {name: [""] for name in others}
        return pd.read_csv(path, dtype=dict.fromkeys(NAMES, str), keep_default_na=False, na_values=empty)
    except ValueError as error:  # pandas' and Python's of what is no text
        raise _damaged(path, error) from error
