"""The README's example runs, its links lead somewhere, and its commands exist."""

import re
import shlex
from pathlib import Path

import pytest
from dvc.utils.cli_parse import to_path_overrides
from small_studies import compose

from cirlib.app.report import MARKS
from cirlib.study.parameters import load_study

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


def test_the_finding_and_the_result_table_stand_between_their_marks():
    _, finding, _, table, _ = re.split("|".join(MARKS), README)
    assert finding.startswith("\n**") and finding.endswith(".**\n")
    assert table.startswith("\n| method | recall@1 |") and "| Q-Former |" in table


def test_every_command_with_values_is_taken_by_dvc_as_it_stands(tmp_path):
    """Through the shell's quotes, DVC's own parsing and Hydra's grammar."""
    values = {}
    for line in re.findall(r"^dvc exp run -S.*$", README, re.MULTILINE):
        words = shlex.split(line, comments=True)[3:]
        overrides = to_path_overrides([word for word in words if "=" in word])["params.yaml"]
        study = load_study(compose(tmp_path / "params.yaml", *overrides))
        values |= {override: study for override in overrides}
    assert len(values) >= 6
    assert "/Größe 40/[new], a=b (2)/it's" in {str(study.data.root) for study in values.values()}


def test_the_experiments_are_shown_without_hashes_of_files_but_with_metrics_and_parameters():
    """DVC puts the file's name before a metric's where experiments are of several studies."""
    (pattern,) = re.findall(r"^dvc exp show .*--drop '(.*?)'", README, re.MULTILINE)
    columns = ["sum", "dpo.lr", "results/garments/metrics.json:sum", "cirlib/models", "results/garments/dpo"]
    assert [name for name in columns if not re.match(pattern, name)] == columns[:3]


@pytest.mark.parametrize(
    "path",
    ["/Größe/été", "/日本", "/[new]", "/a=b", "/a, b", "/it's", "/(1)", "/a:b", "/{c}", "/$HOME", "/a#b&c;d*?", "~/x"],
)
def test_the_quotes_that_are_named_take_any_path(tmp_path, path):
    composed = compose(tmp_path / "params.yaml", "study=custom", f'data.root="{path}"', f'data.images="{path}"')
    data = load_study(composed).data
    assert (str(data.root), data.images) == (path, path)
