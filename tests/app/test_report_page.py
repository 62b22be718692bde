"""The report's tables, pictures and surroundings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from cirlib import figures
from cirlib.app import report_page
from cirlib.app.environment import commit, hardware, versions
from cirlib.app.report import ResultError
from cirlib.app.report_page import flat, picture, table_of, times, write_report
from cirlib.retrieval.scoring import summarise


@pytest.fixture
def project(tmp_path, make_scored) -> Path:
    """A study of which nothing is there but its result table and one figure."""
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    home = tmp_path / "results" / "small"
    home.mkdir(parents=True)
    scored = [
        make_scored(method, c, [0, 40], complete=method != "<b>odd</b>")
        for method in ("sum", "<b>odd</b>")
        for c in ("hat", "shoe")
    ]
    summarise(scored).to_csv(home / "summary.csv", index=False)
    figures.save(figures.rank_histogram({"sum": [1, 5]}, gallery_size=50), tmp_path / "figures/small/qformer/ranks.png")
    return tmp_path


def test_the_report_says_what_has_not_run_and_escapes_what_it_shows(project):
    text = write_report(project).read_text()
    assert "<b>odd</b>" not in text and "&lt;b&gt;odd&lt;/b&gt;" in text
    assert text.count("Not run, or nothing to show: `dvc repro ") == 5  # every stage but the one with a figure
    assert "`dvc repro dpo` makes it" in text and "dpo_grid` makes" not in text
    assert "None has run." in text and "Images are missing" in text
    assert "qformer.lr" in text and "models.clip" in text
    assert not re.search(r'(src|href)="(https?:)?//', text)


def test_without_a_result_table_the_command_is_named(project):
    (project / "results" / "small" / "summary.csv").unlink()
    with pytest.raises(ResultError, match="run `dvc repro` first"):
        write_report(project)
    done = subprocess.run([sys.executable, "-m", "cirlib.app.report_page"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "results/small/summary.csv is missing: run `dvc repro` first\n"


DAMAGED = {
    "results/small/summary.csv": ["", "method,category\nsum,hat\n", '"cut'],
    "results/small/paper_vs_ours.csv": ["a,b\n1,2\n"],
    "results/small/data_prep/counts.csv": [b"\xff\xfe\x00\x01", 'a,b\n"1'],
    "results/small/notebooks/01.ipynb": ["", "{", "[]"],
    "figures/small/qformer/ranks.png": ["", "no picture", 1000],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, all in DAMAGED.items() for one in all])
def test_a_damaged_file_of_results_is_named_in_one_sentence(project, name, content):
    file = project / name
    file.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, int):  # so many bytes of what is there
        content = file.read_bytes()[:content]
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ResultError, match=f"{name} is no.*: delete it and run `dvc repro` again"):
        write_report(project)


def test_fractions_are_shown_as_per_cent_with_their_interval():
    table = pd.DataFrame(
        {
            "group": ["a"],
            "queries": [12],
            "value": [0.25],
            "ci_low": [0.1],
            "ci_high": [0.4],
            "p": [np.nan],
            "command": ["x"],
        }
    )
    shown = table_of(table, "Said.")
    assert shown.head == ["group", "queries", "value (%)", "p"]
    assert shown.rows == [["a", "12", "25.0 [10.0, 40.0]", "–"]]


def test_a_long_table_is_cut_and_says_so():
    shown = table_of(pd.DataFrame({"n": range(100)}), "Said.")
    assert len(shown.rows) == report_page.LONGEST
    assert shown.caption == f"Said. The first {report_page.LONGEST} of 100 rows."


def test_a_picture_says_in_words_what_its_file_says(tmp_path):
    figure = figures.rank_histogram({"sum": [1, 5, 40]}, gallery_size=50)
    figures.save(figure, tmp_path / "some_ranks.png")
    shown = picture(tmp_path / "some_ranks.png")
    assert shown.alt == figures.alt_text(figure) and "sum" in shown.alt
    assert shown.caption == "How far down is the target?" and shown.source.startswith("data:image/png;base64,")
    Image.new("RGB", (4, 3)).save(tmp_path / "bare.png")
    assert picture(tmp_path / "bare.png").alt == "bare"


def test_times_come_from_the_executed_notebooks(tmp_path):
    for name, metadata in (("01_a", {"papermill": {"duration": 12.4}}), ("02_b", {})):
        (tmp_path / f"{name}.ipynb").write_text(json.dumps({"metadata": metadata}))
    assert times(tmp_path) == [("01_a", "12")]


def test_parameters_are_listed_by_their_whole_name():
    assert list(flat({"a": {"b": None, "c": [1]}, "d": True})) == [("a.b", "null"), ("a.c", "[1]"), ("d", "True")]


def test_the_surroundings_name_machine_and_packages():
    machine = dict(hardware())
    assert int(machine["cores"]) >= 1 and machine["processor"] and machine["GPU"]
    packages = dict(versions())
    assert packages["torch"].startswith("2.") and "pandas" in packages


def test_the_commit_is_said_with_what_changed_since(tmp_path):
    assert commit(tmp_path) == "not in a git repository"

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert commit(tmp_path) == f"{head}, 1 files changed since"
