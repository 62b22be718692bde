"""A disk that is full or may not be written: one sentence, and what was finished before is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cirlib.files import replace_file


@pytest.fixture
def small_disk(tmp_path: Path):
    """A real file system of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=False, capture_output=True)
    subprocess.run(["umount", "-l", str(folder)], check=True)


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from cirlib.files import replace_file

def write(path):
    path.write_text("hal")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


def test_a_full_disk_keeps_the_old_file_and_says_what_to_do(small_disk):
    file = small_disk / "table.csv"
    replace_file(file, lambda path: path.write_text("old"))
    with pytest.raises(OSError, match=r"table\.csv could not be written: No space left on device.*make room"):
        replace_file(file, lambda path: path.write_bytes(b"n" * 8_000_000))
    assert [path.name for path in small_disk.iterdir()] == ["table.csv"]  # nothing half-written is left
    assert file.read_text() == "old"
    replace_file(file, lambda path: path.write_text("new"))  # the room is there again
    assert file.read_text() == "new"


def test_a_folder_that_may_not_be_written_is_named(small_disk):
    replace_file(small_disk / "table.csv", lambda path: path.write_text("old"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"table\.csv could not be written: Read-only file system"):
        replace_file(small_disk / "table.csv", lambda path: path.write_text("new"))
    assert (small_disk / "table.csv").read_text() == "old"


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED_WRITER, str(file)], env=os.environ, capture_output=True)
    assert done.returncode == -9
    assert file.read_text() == "old"
