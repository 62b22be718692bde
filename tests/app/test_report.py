"""The study's table: gathered from its stages, in Markdown, in the README and on the screen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cirlib.app import report
from cirlib.app.report import (
    BEGIN,
    END,
    ResultError,
    caption,
    gather,
    gather_ranks,
    histogram,
    markdown,
    show,
    update_page,
)
from cirlib.retrieval.scoring import summarise, write_results
from cirlib.study.errors import StageError
from cirlib.study.parameters import Data, Study
from cirlib.study.stage import Stage


@pytest.fixture
def stage(tmp_path) -> Stage:
    study = Study(name="small", data=Data(root=Path("raw")))
    out = tmp_path / "results" / "small" / "failure_cases"
    out.mkdir(parents=True)
    return Stage("failure_cases", study, tmp_path, out, tmp_path / "figures", {})


@pytest.fixture
def methods(make_scored) -> dict[str, list]:
    """Stage → what it scored, on hats (2 queries) and shoes (4 queries)."""
    names = {"zero_shot": ["image_only", "sum"], "qformer": ["qformer"], "dpo": ["retrieval_dpo"]}
    ranks = {"image_only": 30, "sum": 9, "qformer": 0, "retrieval_dpo": 60}
    return {
        name: [
            make_scored(method, category, [ranks[method]] * queries)
            for method in own
            for category, queries in (("hat", 2), ("shoe", 4))
        ]
        for name, own in names.items()
    }


@pytest.fixture
def finished(stage, methods) -> Stage:
    """A study all of whose stages have run."""
    for name, scored in methods.items():
        stage.results(name).mkdir(parents=True)
        write_results(scored, stage.results(name))
    return stage


SUMMARY = pd.DataFrame(
    [
        ("sum", "hat", "recall@10", 0.5, 0.4, 0.6, 30, 99, 0.1, "the rules", True),
        ("sum", "mean", "recall@1", 0.25, 0.2, 0.3125, 70, 98, 0.0102, "the rules", True),
        ("sum", "mean", "recall@10", 0.5, 0.4, 0.6, 70, 98, 0.102, "the rules", True),
        ("qformer", "mean", "recall@1", 1.0, 1.0, 1.0, 70, 98, 0.0102, "the rules", True),
        ("qformer", "mean", "recall@10", 0.123, 0.0, 0.2, 70, 98, 0.102, "the rules", True),
    ],
    columns=[
        "method", "category", "metric", "value", "ci_low", "ci_high", "queries", "gallery", "chance", "protocol",
        "complete",
    ],
)  # fmt: skip

TABLE = """| method | recall@1 | recall@10 |
|---|---|---|
| sum | 25.0 [20.0, 31.2] | 50.0 [40.0, 60.0] |
| qformer | 100.0 [100.0, 100.0] | 12.3 [0.0, 20.0] |
| chance | 1 | 10 |

Percent with 95 % bootstrap interval, mean of the categories; 70 queries, 98 candidates each; the rules.
"""

# ------------------------------------------------------------------ gathering


def test_the_table_has_every_stage_in_order(finished, methods):
    table = gather(finished)
    assert list(dict.fromkeys(table["method"])) == ["image_only", "sum", "qformer", "retrieval_dpo"]
    everything = [one for scored in methods.values() for one in scored]
    expected = pd.concat([summarise(scored) for scored in methods.values()], ignore_index=True).round(6)
    pd.testing.assert_frame_equal(table, expected, check_dtype=False)
    assert len(everything) == 8


@pytest.mark.parametrize("missing", ["zero_shot", "qformer", "dpo"])
def test_a_stage_that_has_not_run_is_named_with_the_command_that_runs_it(finished, missing):
    for file, read in (("summary.csv", lambda: gather(finished)), ("ranks.csv", lambda: gather_ranks(finished, {}))):
        path = finished.results(missing) / file
        path.rename(path.with_suffix(".away"))
        with pytest.raises(StageError) as caught:
            read()
        where = f"results/small/{missing}/{file}"
        assert str(caught.value) == f"failure_cases needs {where}, which is missing: run `dvc repro {missing}` first"


def test_the_ranks_of_every_method_come_back(finished, methods):
    parts = {one.category: one.benchmark for one in methods["qformer"]}
    scored = gather_ranks(finished, parts)
    expected = [one for own in methods.values() for one in own]
    assert [(one.method, one.category) for one in scored] == [(one.method, one.category) for one in expected]
    assert [one.ranks.above.tolist() for one in scored] == [one.ranks.above.tolist() for one in expected]
    assert all(one.benchmark is parts[one.category] for one in scored)


def test_a_stage_that_trained_nothing_adds_nothing(finished, methods):
    write_results([], finished.results("dpo"))
    table = gather(finished)
    assert list(dict.fromkeys(table["method"])) == ["image_only", "sum", "qformer"]
    assert "; 6 queries, 100 candidates each; " in caption(table)
    assert "Incomplete" not in caption(table)
    assert "| qformer | 100.0 [100.0, 100.0] |" in markdown(table)
    parts = {one.category: one.benchmark for one in methods["qformer"]}
    assert len(gather_ranks(finished, parts)) == 6


# ------------------------------------------------------------------ showing


def test_the_table_in_markdown_is_the_mean_with_chance_and_what_was_measured():
    assert markdown(SUMMARY) == TABLE


def test_one_incomplete_number_marks_the_table():
    partly = SUMMARY.assign(complete=[False, True, True, True, True])
    assert caption(partly).endswith("; the rules. **Incomplete: images are missing.**")
    assert "Incomplete" not in caption(SUMMARY)


def test_the_readme_changes_between_its_marks_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n\n{BEGIN}\nold\n\nolder\n{END}\n\nThe end.\n")
    update_page(readme, SUMMARY)
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n{TABLE}{END}\n\nThe end.\n"
    update_page(readme, SUMMARY)
    assert readme.read_text() == f"# Title\n\n{BEGIN}\n{TABLE}{END}\n\nThe end.\n"


@pytest.mark.parametrize("text", ["no marks", f"{BEGIN}\n", f"{END}\n", f"{BEGIN}\n{END}\n{BEGIN}\n"])
def test_a_page_without_both_marks_is_named_and_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ResultError, match=f"{page} must have {BEGIN} and {END} once each"):
        update_page(page, SUMMARY)
    assert page.read_text() == text


@pytest.mark.parametrize("page", ["nowhere.md", ".", "latin.md"])
def test_what_is_no_page_is_named(tmp_path, page):
    (tmp_path / "latin.md").write_bytes(b"caf\xe9")
    with pytest.raises(ResultError, match=f"{tmp_path / page} cannot be read as text .*: name a page that has {BEGIN}"):
        update_page(tmp_path / page, SUMMARY)


@pytest.mark.parametrize("module", ["report", "report_page", "rehearsal"])
def test_outside_of_a_project_one_sentence_is_printed(tmp_path, module):
    command = [sys.executable, "-m", f"cirlib.{module}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"no params.yaml and dvc.yaml at or above {tmp_path}: start this inside the project\n"


def test_the_screen_shows_table_and_files(capsys, tmp_path):
    show(tmp_path, "small", SUMMARY)
    out = capsys.readouterr().out
    assert out.startswith("\nsmall: Percent with 95 %")
    assert "25.0 [20.0, 31.2]" in out
    for place in ("results/small/notebooks/", "figures/small/", "results/small/summary.csv"):
        assert place in out


def test_the_histogram_has_a_curve_a_method_over_all_categories_and_chance(make_scored):
    scored = [
        make_scored("sum", "hat", [0, 9], tied=[0, 4]),
        make_scored("sum", "shoe", [49, 49], size=51),
        make_scored("qformer", "hat", [0, 0]),
        make_scored("qformer", "shoe", [0, 1], size=51),
    ]
    (axes,) = histogram(scored).axes
    first, second, chance = axes.get_lines()
    assert first.get_label() == "sum  (median rank 31)"  # ranks 1, 12, 50, 50
    assert second.get_label() == "Q-Former  (median rank 1)"  # ranks 1, 1, 1, 2
    curve = dict(zip(first.get_xdata(), first.get_ydata(), strict=True))
    assert (curve[1], curve[11], curve[12], curve[100]) == (25, 25, 50, 100)
    assert chance.get_xdata()[-1] == 100  # the largest gallery without the reference


# ------------------------------------------------------------------ the command


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "README.md").write_text(f"a\n{BEGIN}\n{END}\nb\n")
    (tmp_path / "results" / "small").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "results")
    return tmp_path


def run(monkeypatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["report", *arguments])
    report.main()


def test_the_command_shows_the_active_study_and_leaves_the_readme_alone(project, monkeypatch, capsys):
    SUMMARY.to_csv(project / "results" / "small" / "summary.csv", index=False)
    run(monkeypatch)
    assert "12.3 [0.0, 20.0]" in capsys.readouterr().out
    assert (project / "README.md").read_text() == f"a\n{BEGIN}\n{END}\nb\n"


def test_the_command_puts_the_table_into_the_readme(project, monkeypatch, capsys):
    SUMMARY.to_csv(project / "results" / "small" / "summary.csv", index=False)
    run(monkeypatch, "--into", "../README.md")
    assert (project / "README.md").read_text() == f"a\n{BEGIN}\n{TABLE}{END}\nb\n"
    assert capsys.readouterr().out == ""


def test_without_results_the_command_says_what_to_run(project, monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch)
    assert caught.value.code == 1
    assert capsys.readouterr().err == "results/small/summary.csv is missing: run `dvc repro` first\n"
