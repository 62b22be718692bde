"""The study as one HTML file to hand over: tables, figures, parameters, versions, hardware, commit, times.

``python -m cirlib.app.report_page`` writes ``results/<study>/report.html``, which needs nothing beside it, and the
executed notebooks as HTML in ``results/<study>/html/``, to which it links.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from nbconvert import HTMLExporter
from PIL import Image

from cirlib.app.environment import commit, hardware, versions
from cirlib.app.report import ResultError, caption, read_summary, read_table
from cirlib.figures import percent
from cirlib.retrieval.scoring import result_table
from cirlib.study.errors import StudyError
from cirlib.study.files import replace_file
from cirlib.study.parameters import Study, load_study
from cirlib.study.stage import project_root

TEMPLATE = Path(__file__).with_name("report_page.html")
STAGES = {  # folder → (title of its section, its tables: file → caption)
    "data_prep": ("The data", {
        "counts.csv": "Queries and images of every part.",
        "audit.csv": "What the audit of the files found.",
    }),
    "zero_shot": ("Zero-shot baselines", {"protocols.csv": "What the protocol alone is worth: one model under each."}),
    "qformer": ("The Q-Former", {}),
    "dpo": ("Retrieval-DPO", {}),
    "dpo_grid": ("Retrieval-DPO taken apart", {
        "effects.csv": "What each level of each switch adds to the paper's, in recall@10.",
        "recipe.csv": "Preferences after InfoNCE on the fused model.",
    }),
    "failure_cases": ("Where it fails", {
        "kinds.csv": "Recall@10 by kind of edit.",
        "reasons.csv": "Why targets are missed, of each method's misses.",
        "exchanges.csv": "Who finds what another misses.",
    }),
}  # fmt: skip
FRACTIONS = ("value", "chance", "difference", "q25", "q75")
LONGEST = 40  # rows of a table
WARNING = "Images are missing: every number marked incomplete is from a smaller gallery, and compares with no other."


@dataclass(frozen=True)
class Table:
    """Cells as text; ``words``: of words, not of numbers."""

    caption: str
    cells: pd.DataFrame
    words: bool = False


@dataclass
class Section:
    """A part of the page; ``links``: (name, address)."""

    id: str
    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


def write_report(root: Path) -> Path:
    """Writes the active study's report and its notebooks as HTML; the report's file.

    Raises:
        ResultError: no stage of it has run, or a file of it is damaged; the message names it.

    >>> (folder / "params.yaml").write_text("name: small\\ndata: {root: raw}"), write_report(folder)
    Traceback (most recent call last):
    cirlib.app.report.ResultError: results/small/summary.csv is missing: run `dvc repro` first
    """
    study = load_study(root / "params.yaml")
    home = root / "results" / study.name
    summary = read_summary(root, study.name)
    links = list(_write_notebooks(home))
    sections = [_results(home, summary), *_stages(root, study), *_about(root, study, links)]
    page = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    warnings = [] if summary["complete"].all() else [WARNING]
    _write(home / "report.html", page.render(
        study=study.name, lead=caption(summary), warnings=warnings, sections=sections
    ))  # fmt: skip
    return home / "report.html"


def _write(file: Path, text: str) -> None:
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def _write_notebooks(home: Path) -> Iterator[tuple[str, str]]:
    """The executed notebooks as HTML: (name, address from the report) of each."""
    (home / "html").mkdir(parents=True, exist_ok=True)
    for notebook in sorted((home / "notebooks").glob("*.ipynb")):
        try:
            text, _ = HTMLExporter(embed_images=True).from_filename(str(notebook))
        except (ValueError, AttributeError) as error:
            raise ResultError(f"{notebook} is no whole notebook: delete it and run `dvc repro` again") from error
        _write(home / "html" / f"{notebook.stem}.html", text)
        yield notebook.stem, f"html/{notebook.stem}.html"


def _results(home: Path, summary: pd.DataFrame) -> Section:
    """Every method: the mean of the categories, recall@10 by category, and the paper's numbers beside ours."""
    means = result_table(summary).rename_axis("method").reset_index()
    tables = [Table("Mean of the categories, per cent with 95 % interval.", means)]
    categories = [category for category in summary["category"].unique() if category != "mean"]
    if len(categories) > 1:
        rows = summary[summary["metric"] == "recall@10"]
        rows = rows.assign(cell=[_cell(row, "value") for row in rows.to_dict("records")])
        cells = rows.pivot(index="method", columns="category", values="cell").fillna("–")
        cells = cells.reindex(summary["method"].unique(), columns=categories).reset_index()
        tables.append(Table("Recall@10 by category, per cent with 95 % interval.", cells))
    if (file := home / "paper_vs_ours.csv").is_file():
        columns = ("method", "source", "recall@10", "protocol")
        beside = read_table(file, columns)
        beside = beside.loc[beside["source"] != "published", list(columns)]
        tables.append(_table(beside, "The paper and this study; only what is of the same data and protocol compares."))
    return Section("results", "Results", tables=tables)


def _stages(root: Path, study: Study) -> Iterator[Section]:
    """A section a stage, with its tables and figures; a sentence where it has not run."""
    for stage, (title, captions) in STAGES.items():
        grid = stage == "dpo_grid"
        inner = Path(stage, study.dpo.grid) if grid else Path(stage)
        folder, figures = (root / kind / study.name / inner for kind in ("results", "figures"))
        tables = {said: read_table(folder / file) for file, said in captions.items() if (folder / file).is_file()}
        section = Section(stage, title, tables=[_table(table, said) for said, table in tables.items() if len(table)])
        section.figures = [_picture(file) for file in sorted(figures.glob("*.png"))]
        if not (section.tables or section.figures):
            command = f"Not run, or nothing to show: `dvc repro {'dpo' if grid else stage}` makes it."
            section.sentences.append("Not run: dpo.grid is none." if grid and study.dpo.grid == "none" else command)
        yield section


def _about(root: Path, study: Study, links: list[tuple[str, str]]) -> Iterator[Section]:
    """How the numbers came about: notebooks, times, parameters, versions, machine, commit."""
    yield Section("notebooks", "The executed notebooks", [] if links else ["None has run."], links=links)
    times = [
        (file.stem, f"{seconds:.0f}")
        for file in sorted((root / "results" / study.name / "notebooks").glob("*.ipynb"))
        if (seconds := json.loads(file.read_text())["metadata"].get("papermill", {}).get("duration")) is not None
    ]
    made = [("written", f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"), ("commit", commit(root)), *hardware()]
    yield Section("run", "The run", tables=[
        *([_pairs("Seconds of each stage.", "stage", times, words=False)] if times else []),
        _pairs("When, from what, and on what.", "what", made),
    ])  # fmt: skip
    values = list(_flat(study.model_dump(mode="json")))
    yield Section("parameters", "Parameters", tables=[_pairs("Every parameter.", "parameter", values)])
    yield Section("versions", "Versions", tables=[_pairs("Packages.", "package", versions())])


def _pairs(said: str, name: str, rows: list[tuple[str, str]], words: bool = True) -> Table:
    return Table(said, pd.DataFrame(rows, columns=[name, "value"]), words)


def _flat(tree: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """``a.b`` → value of every leaf."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "null" if value is None else str(value)


def _table(table: pd.DataFrame, said: str) -> Table:
    """A table for reading: fractions as per cent, an interval in one cell, at most ``LONGEST`` rows."""
    if len(table) > LONGEST:
        said = f"{said} The first {LONGEST} of {len(table)} rows."
    rows = table.head(LONGEST).to_dict("records")
    names = [name for name in table if name not in ("ci_low", "ci_high", "command")]
    heads = [f"{name} (%)" if _is_fraction(name) else name.replace("_", " ") for name in names]
    return Table(said, pd.DataFrame([[_cell(row, name) for name in names] for row in rows], columns=heads))


def _is_fraction(name: str) -> bool:
    return name in FRACTIONS or "recall@" in name


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if not _is_fraction(name):
        return f"{value:.4g}"
    interval = name in ("value", "difference") and "ci_low" in row
    return percent(value) + (f" [{percent(row['ci_low'])}, {percent(row['ci_high'])}]" if interval else "")


def _picture(file: Path) -> dict[str, Any]:
    """A PNG of the study as the template shows it; its words come from the file itself."""
    try:
        with Image.open(file) as image:
            image.load()
            alt, (width, height) = image.info.get("Description", file.stem), image.size
    except OSError as error:
        raise ResultError(f"{file} is no whole picture: delete it and run `dvc repro` again") from error
    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return {"source": source, "alt": alt, "caption": alt.partition(". ")[0], "width": width, "height": height}


def main() -> None:
    """Writes the active study's report as one HTML file, and its executed notebooks beside it."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.report_page", description=main.__doc__)
    parser.parse_args()
    try:
        root = project_root()
        print(f"Open  {write_report(root).relative_to(root)}")
    except StudyError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
