"""The report as one page: its tables, pictures, and what the numbers came from."""

import json
import re
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from cirlib import figures
from cirlib.app.environment import commit
from cirlib.app.report import ResultError
from cirlib.app.report_page import LONGEST, write_report
from cirlib.retrieval.scoring import summarise


@pytest.fixture
def project(tmp_path, make_scored) -> Path:
    """A study of which nothing is there but its result table and one figure."""
    (tmp_path / "params.yaml").write_text("name: small\ndata: {root: raw}\n")
    for folder in ("data_prep", "notebooks"):
        (tmp_path / "results" / "small" / folder).mkdir(parents=True)
    scored = [
        make_scored(method, category, [0, 40], complete=method == "sum")
        for method in ("sum", "<b>odd</b>")
        for category in ("hat", "shoe")
    ]
    summarise(scored).to_csv(tmp_path / "results" / "small" / "summary.csv", index=False)
    figures.save(figures.rank_histogram({"sum": [1, 5]}, gallery_size=50), tmp_path / "figures/small/qformer/ranks.png")
    return tmp_path


def cells(text: str) -> list[str]:
    """What stands in the page's tables."""
    return re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", text)


def test_the_report_says_what_has_not_run_and_escapes_what_it_shows(project):
    text = write_report(project).read_text()
    assert "<b>odd</b>" not in text and "&lt;b&gt;odd&lt;/b&gt;" in text
    assert text.count("Not run, or nothing to show: `dvc repro ") == 5  # every stage but the one with a figure
    assert "`dvc repro dpo` makes it" in text and "dpo_grid` makes" not in text
    assert "None has run." in text and "Images are missing" in text
    assert {"qformer.lr", "models.clip"} <= set(cells(text))
    assert "No stage has run that says where." in text
    assert not re.search(r'(src|href)="(https?:)?//', text)


DAMAGED = {
    "results/small/paper_vs_ours.csv": ["a,b\n1,2\n"],
    "results/small/data_prep/counts.csv": [b"\xff\xfe\x00\x01", 'a,b\n"1'],
    "results/small/notebooks/01.ipynb": ["", "[]"],
    "figures/small/qformer/ranks.png": ["", 1000],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, all in DAMAGED.items() for one in all])
def test_a_damaged_file_of_results_is_named_in_one_sentence(project, name, content):
    file = project / name
    if isinstance(content, int):  # so many bytes of what is there
        content = file.read_bytes()[:content]
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ResultError, match=f"{name} is no.*: delete it and run `dvc repro` again"):
        write_report(project)


def test_fractions_are_shown_as_per_cent_with_their_interval_and_long_tables_cut(project):
    values = {"value": [0.25] * 99 + [None], "ci_low": 0.1, "ci_high": 0.4}
    rows = {"group": "a", "queries": range(100), **values, "p": 0.12345, "command": "x"}
    pd.DataFrame(rows)[::-1].to_csv(project / "results" / "small" / "data_prep" / "counts.csv")
    text = write_report(project).read_text()
    shown = cells(text)
    assert shown.count("25.0 [10.0, 40.0]") == LONGEST - 1 and f"The first {LONGEST} of 100 rows." in text
    assert shown.count("–") == 1 and "0.1235" in shown
    assert "value (%)" in shown and "queries" in shown and "ci_low" not in shown and "command" not in shown
    assert "50.0 [1.3, 98.7]" in shown  # recall@10 of a category


def test_the_columns_of_a_wide_table_become_rows(project):
    wide = pd.DataFrame({"split": ["train", "val"], **{f"n{number}": [number, 100 + number] for number in range(12)}})
    wide.to_csv(project / "results" / "small" / "data_prep" / "audit.csv", index=False)
    shown = cells(write_report(project).read_text())
    start = shown.index("split")
    assert shown[start : start + 6] == ["split", "train", "val", "n0", "0", "100"]


def test_a_picture_says_in_words_what_its_file_says(project):
    Image.new("RGB", (4, 3)).save(project / "figures/small/qformer/bare.png")
    text = write_report(project).read_text()
    assert 'alt="bare" width="4" height="3"' in text and 'src="data:image/png;base64,' in text
    assert 'alt="How far down is the target? Recall@k of every method. ' in text
    assert "<figcaption>How far down is the target? Recall@k of every method</figcaption>" in text


def test_the_report_begins_with_what_the_notebooks_found_and_names_methods_as_figures_do(project):
    def cell(kind: str, source: str, **output: object) -> dict:
        return {"cell_type": kind, "metadata": {}, "source": source, "outputs": [output], "execution_count": 1}

    printed, shown = {"output_type": "stream", "name": "stdout"}, {"output_type": "display_data", "metadata": {}}
    noise, head = cell("code", "1", **printed, text="noise"), cell("markdown", "## What was found")
    ends = {
        "03_qformer": [noise, head, cell("code", "2", **printed, text=["It finds\n", "much."])],
        "04_dpo": [noise, head, cell("code", "2", **shown, data={"text/markdown": "**DPO** finds `x`.\n\nMore."})],
        "05_failure_cases": [noise],  # broken off
    }
    for name, cells_of in ends.items():
        content = {"metadata": {}, "cells": cells_of, "nbformat": 4, "nbformat_minor": 4}
        (project / "results" / "small" / "notebooks" / f"{name}.ipynb").write_text(json.dumps(content))
    text = write_report(project).read_text()
    assert re.findall("<li>(.*?)</li>", text.split("<nav")[0], re.DOTALL) == ["It finds\nmuch.", "DPO finds x."]
    assert re.search('<p class="soft">([^*`<]*)</p>', text)  # no marks of Markdown there
    assert text.count('<th scope="row">weighted sum</th>') == 2 and '<th scope="row">sum</th>' not in text


def test_times_and_links_come_from_the_executed_notebooks(project):
    for name, metadata in (("01_a", {"papermill": {"duration": 12.4}}), ("02_b", {})):
        content = {"metadata": metadata, "cells": [], "nbformat": 4, "nbformat_minor": 5}
        (project / "results" / "small" / "notebooks" / f"{name}.ipynb").write_text(json.dumps(content))
    text = write_report(project).read_text()
    assert '<a href="html/01_a.html">01_a, 12 s</a>' in text and ">02_b</a>" in text
    assert (project / "results" / "small" / "html" / "02_b.html").is_file()


def test_the_commit_is_said_with_what_changed_since(tmp_path):
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
    assert commit(tmp_path) == f"{head}, with changed files"
