"""The study's table on the screen and in a page."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cirlib.app import report
from cirlib.app.report import MARKS, ResultError, caption, full_table, read_summary, read_table
from cirlib.retrieval.result_files import write_results
from cirlib.retrieval.scoring import SUMMARY_COLUMNS

SUMMARY = pd.DataFrame(
    [
        ("sum", "hat", "recall@10", 0.5, 0.4, 0.6, 30, 99, 0.1, "the rules", True),
        ("sum", "mean", "recall@1", 0.25, 0.2, 0.3125, 70, 98, 0.0102, "the rules", True),
        ("sum", "mean", "recall@10", 0.5, 0.4, 0.6, 70, 98, 0.102, "the rules", True),
        ("qformer", "mean", "recall@1", 1.0, 1.0, 1.0, 70, 98, 0.0102, "the rules", True),
        ("qformer", "mean", "recall@10", 0.123, 0.0, 0.2, 70, 98, 0.102, "the rules", True),
    ],
    columns=list(SUMMARY_COLUMNS),
)
FINDING = (
    "**Of 70 queries in the small study, the best of 2 methods (weighted sum) finds 50.0 % of the targets among its "
    "first ten of 98 images (by chance 10.2 %).**"
)
TABLE = """| method | recall@1 | recall@10 |
|---|---|---|
| weighted sum | 25.0 [20.0, 31.2] | 50.0 [40.0, 60.0] |
| Q-Former | 100.0 [100.0, 100.0] | 12.3 [0.0, 20.0] |
| chance | 1 | 10 |

Percent with 95 % bootstrap interval, mean of the categories; 70 queries, 98 candidates each; the rules. \
One training each: `make seeds` repeats them.
"""
PAGE = "# Title\n\n{}\nold\n{}\n\nWords.\n\n{}\nold\n\nolder\n{}\n\nThe end.\n".format(*MARKS)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project whose study has nothing but its result table."""
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "README.md").write_text(PAGE)
    (tmp_path / "results" / "small").mkdir(parents=True)
    SUMMARY.to_csv(tmp_path / "results" / "small" / "summary.csv", index=False)
    monkeypatch.chdir(tmp_path / "results")
    return tmp_path


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command; what it prints, and what it says where it ends with 1."""

    def run(*arguments: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        try:
            report.main()
        except SystemExit as end:
            assert end.code == 1
        return capsys.readouterr()

    return run


def test_the_command_shows_the_table_and_the_files_and_leaves_the_readme_alone(project, run):
    out, _ = run()
    assert out.startswith("\nsmall: Percent with 95 %") and "25.0 [20.0, 31.2]" in out
    assert all(p in out for p in ("results/small/notebooks/", "figures/small/", "results/small/summary.csv"))
    assert (project / "README.md").read_text() == PAGE


def test_the_readme_changes_between_its_marks_only_however_often(project, run):
    for _ in range(2):
        assert run("--into", "../README.md") == ("", "")
        changed = PAGE.replace("\nold\n\nolder\n", f"\n{TABLE}").replace("\nold\n", f"\n{FINDING}\n")
        assert (project / "README.md").read_text() == changed


def seeds_of(values: dict[str, list[float]]) -> pd.DataFrame:
    """A ``seeds.csv`` whose first seed is `SUMMARY`'s own run; of the others, recall@10 of each method."""
    own = SUMMARY[["method", "metric", "category", "value"]].assign(seed=0)
    others = [(m, "recall@10", "mean", value, n + 1) for m, of in values.items() for n, value in enumerate(of)]
    return pd.concat([own, pd.DataFrame(others, columns=own.columns)])


def test_what_other_seeds_gave_stands_beside_the_intervals(tmp_path):
    seeds_of({"sum": [0.5, 0.5], "qformer": [0.223, 0.323]}).to_csv(tmp_path / "seeds.csv", index=False)
    table, said = full_table(SUMMARY, tmp_path)
    column = table["recall@10, 3 seeds"].to_dict()
    assert column == {
        "weighted sum": "50.0 ± 0.0 (50.0 to 50.0)",
        "Q-Former": "22.3 ± 10.0 (12.3 to 32.3)",
        "chance": "",
    }
    assert "Over 3 seeds" in said


def test_seeds_of_an_earlier_run_are_not_shown(tmp_path):
    seeds_of({"sum": [0.5]}).assign(value=lambda t: t["value"] + 0.01).to_csv(tmp_path / "seeds.csv", index=False)
    table, said = full_table(SUMMARY, tmp_path)
    assert list(table) == ["recall@1", "recall@10"]
    assert said == " seeds.csv is of an earlier run and left out: `make seeds` makes it anew."


def test_without_results_the_command_says_what_to_run(project, run):
    (project / "results" / "small" / "summary.csv").unlink()
    assert run() == ("", "results/small/summary.csv is missing: run `dvc repro` first\n")


@pytest.mark.parametrize("content", ["", "method,category\nsum,hat\n", '"cut', ",".join(SUMMARY_COLUMNS)])
def test_a_damaged_table_is_named(project, content):
    (project / "results" / "small" / "summary.csv").write_text(content)
    with pytest.raises(ResultError, match=r"summary.csv is no.*: delete it and run `dvc repro` again"):
        read_summary(project, "small")


def test_one_incomplete_number_marks_the_table():
    partly = SUMMARY.assign(complete=[False, True, True, True, True])
    assert caption(partly).endswith("; the rules. **Incomplete: images are missing.**")


@pytest.mark.parametrize(
    "content", [b"no marks", "\n".join(MARKS * 2).encode(), "\n".join(MARKS[::-1]).encode(), b"\xe9"]
)
def test_a_page_without_its_marks_or_without_text_is_named_and_left_alone(project, run, content):
    page = project / "page.md"
    page.write_bytes(content)
    assert str(page) in run("--into", str(page)).err and page.read_bytes() == content


@pytest.mark.parametrize("module", ["report", "report_page", "rehearsal", "seeds"])
def test_outside_of_a_project_one_sentence_is_printed(tmp_path, module):
    done = subprocess.run([sys.executable, "-m", f"cirlib.app.{module}"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"no params.yaml and dvc.yaml at or above {tmp_path}: start this inside the project\n"


@pytest.mark.parametrize("category", ["001", "NA", "null", "1e3", "True"])
def test_names_that_look_like_numbers_or_nothing_stay_names(tmp_path, make_scored, category):
    write_results([make_scored("sum", category, [0, 9])], tmp_path)
    summary = read_table(tmp_path / "summary.csv", SUMMARY_COLUMNS)
    assert set(summary["category"]) == {category, "mean"}
    assert summary["value"].dtype == float and summary["complete"].dtype == bool
    assert read_table(tmp_path / "ranks.csv")["category"].tolist() == [category] * 2
