"""Every file is written within `replace_file`: no other line in the library or a notebook leaves one half-written."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WRITES = re.compile(
    r"\.(to_csv|to_json|to_excel|write_text|write_bytes|savefig)\(|\bsave_file\(|\b(torch|np|image|picture)\.save\("
    r"|open\([^)]*[\"'][wx]b?\+?\\?[\"']"
)
# What is called so is handed to `replace_file`, lies in a folder that is renamed when whole, or in memory.
WHOLE = re.compile(r"replace_file|\b_?(part|partial|temporary|task|stream|buffer|drawn)\b|>>> ")
STAND_INS = "rehearsal.py"  # its models are made anew each time


def unguarded(source: str) -> list[str]:
    return [line.strip() for line in source.splitlines() if WRITES.search(line) and not WHOLE.search(line)]


def test_whole_files_only_are_written():
    files = [*(ROOT / "cirlib").rglob("*.py"), *(ROOT / "notebooks").glob("*.ipynb")]
    found = {file.name: lines for file in files if (lines := unguarded(file.read_text()))}
    assert found.keys() - {STAND_INS} == set(), found


def test_an_unguarded_write_is_seen():
    source = "table.to_csv(path)\nreplace_file(path, lambda p: p.write_text(text))\nopen(path, 'w')\npath.open(\"wb\")"
    assert unguarded(source) == ["table.to_csv(path)", "open(path, 'w')", 'path.open("wb")']
