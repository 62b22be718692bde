"""The README's example runs, its links lead somewhere, and its commands exist."""

import re
from pathlib import Path

import pytest

from cirlib.app.report import BEGIN, END

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "data/README.md", "tests/README.md")), *(ROOT / "docs").glob("*.md")]
)


def test_the_python_example_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(example, names)
    assert names["recall"].shape == (100,)
    assert names["loss"].item() > 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_make_target_that_is_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`?make ([a-z-]+)", README)) <= targets


def test_the_result_table_stands_between_its_marks():
    table = README.split(BEGIN)[1].split(END)[0]
    finding, _, head = table.strip().splitlines()[:3]
    assert finding.startswith("**") and finding.endswith(".**")
    assert head.startswith("| method | recall@1 |")
    assert "| qformer |" in table
