"""The study as one HTML file to hand over: tables, figures, parameters, versions, hardware, commit, times.

``python -m cirlib.app.report_page`` writes ``results/<study>/report.html``, which needs nothing beside it, and the executed
notebooks as HTML in ``results/<study>/html/``, to which it links.
"""

from __future__ import annotations

import argparse
import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment
from nbconvert import HTMLExporter
from PIL import Image

from cirlib.app.environment import commit, hardware, versions
from cirlib.app.report import ResultError, caption, read_summary, read_table
from cirlib.figures import percent
from cirlib.retrieval.scoring import result_table
from cirlib.study.errors import ParameterError, WriteError
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


@dataclass(frozen=True)
class Table:
    """Cells as text; ``words``: of words, not of numbers."""

    caption: str
    head: list[str]
    rows: list[list[str]]
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """A figure of the study, as a data address, and what it says in words."""

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass
class Section:
    """A part of the page; ``links``: (name, address)."""

    id: str
    title: str
    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)


def write_report(root: Path) -> Path:
    """Writes the active study's report and its notebooks as HTML; the report's file.

    Raises:
        ResultError: no stage of it has run, or a file of it is damaged; the message names it.
    """
    study = load_study(root / "params.yaml")
    home = root / "results" / study.name
    summary = read_summary(root, study.name)
    pages = list(write_notebooks(home))
    sections = [results(home, summary), *stages(root, study), *about(root, study, pages)]
    page = Environment(autoescape=True, trim_blocks=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    text = page.render(study=study.name, lead=caption(summary), warnings=warnings(summary), sections=sections)
    replace_file(home / "report.html", lambda path: path.write_text(text, encoding="utf-8"))
    return home / "report.html"


def write_notebooks(home: Path) -> Iterator[tuple[str, str]]:
    """The executed notebooks as HTML: (name, address from the report) of each."""
    (home / "html").mkdir(parents=True, exist_ok=True)
    for notebook in sorted((home / "notebooks").glob("*.ipynb")):
        try:
            text, _ = HTMLExporter(embed_images=True).from_filename(str(notebook))
        except (ValueError, AttributeError) as error:
            raise ResultError(f"{notebook} is no whole notebook: delete it and run `dvc repro` again") from error
        target = home / "html" / f"{notebook.stem}.html"
        replace_file(target, lambda path, text=text: path.write_text(text, encoding="utf-8"))
        yield notebook.stem, f"html/{target.name}"


def warnings(summary: pd.DataFrame) -> list[str]:
    """What a reader must know before any number."""
    if summary["complete"].all():
        return []
    return ["Images are missing: every number marked incomplete is from a smaller gallery, and compares with no other."]


def results(home: Path, summary: pd.DataFrame) -> Section:
    """Every method: the mean of the categories, recall@10 by category, and the paper's numbers beside ours."""
    means = result_table(summary)
    rows = [[str(method), *map(str, row)] for method, row in zip(means.index, means.values, strict=True)]
    tables = [Table("Mean of the categories, per cent with 95 % interval.", ["method", *means.columns], rows)]
    categories = [category for category in summary["category"].unique() if category != "mean"]
    if len(categories) > 1:
        cells = summary[summary["metric"] == "recall@10"].set_index(["method", "category"])
        rows = [[m, *(_interval(cells, m, c) for c in categories)] for m in summary["method"].unique()]
        tables.append(Table("Recall@10 by category, per cent with 95 % interval.", ["method", *categories], rows))
    file = home / "paper_vs_ours.csv"
    if file.is_file():
        beside, columns = read_table(file), ["method", "source", "recall@10", "protocol"]
        if not set(columns) <= set(beside):
            raise ResultError(f"{file} is not whole: delete it and run `dvc repro` again")
        beside = beside.loc[beside["source"] != "published", columns]
        tables.append(
            table_of(beside, "The paper and this study; only what is of the same data and protocol compares.")
        )
    return Section("results", "Results", tables=tables)


def stages(root: Path, study: Study) -> Iterator[Section]:
    """A section a stage, with its tables and figures; a sentence where it has not run."""
    for stage, (title, captions) in STAGES.items():
        inner = Path(stage, study.dpo.grid) if stage == "dpo_grid" else Path(stage)
        folder, figures = (root / kind / study.name / inner for kind in ("results", "figures"))
        section = Section(stage, title)
        for file, said in captions.items():
            table = read_table(folder / file) if (folder / file).is_file() else pd.DataFrame()
            if len(table):
                section.tables.append(table_of(table, said))
        section.figures = [picture(file) for file in sorted(figures.glob("*.png"))]
        if not (section.tables or section.figures):
            grid = stage == "dpo_grid"
            section.sentences.append(
                "Not run: dpo.grid is none." if grid and study.dpo.grid == "none"
                else f"Not run, or nothing to show: `dvc repro {'dpo' if grid else stage}` makes it."
            )  # fmt: skip
        yield section


def about(root: Path, study: Study, pages: list[tuple[str, str]]) -> Iterator[Section]:
    """How the numbers came about: notebooks, times, parameters, versions, machine, commit."""
    yield Section("notebooks", "The executed notebooks", [] if pages else ["None has run."], links=pages)
    rows = [[name, seconds] for name, seconds in times(root / "results" / study.name / "notebooks")]
    made = [["written", f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"], ["commit", commit(root)], *hardware()]
    run = [Table("Seconds of each stage.", ["stage", "seconds"], rows)] if rows else []
    yield Section(
        "run", "The run", tables=[*run, Table("When, from what, and on what.", ["what", "value"], made, True)]
    )
    values = [[name, value] for name, value in flat(study.model_dump(mode="json"))]
    yield Section("parameters", "Parameters", tables=[Table("Every parameter.", ["parameter", "value"], values, True)])
    yield Section("versions", "Versions", tables=[Table("Packages.", ["package", "version"], versions(), True)])


def table_of(table: pd.DataFrame, said: str) -> Table:
    """A table for reading: fractions as per cent, an interval in one cell, at most ``LONGEST`` rows."""
    if len(table) > LONGEST:
        said = f"{said} The first {LONGEST} of {len(table)} rows."
    table = table.head(LONGEST).drop(columns=["command"], errors="ignore")
    head = [name for name in table.columns if name not in ("ci_low", "ci_high")]
    rows = [[_cell(row, name) for name in head] for row in table.to_dict("records")]
    return Table(said, [f"{name} (%)" if _is_fraction(name) else name.replace("_", " ") for name in head], rows)


def picture(file: Path) -> Picture:
    """A PNG of the study; its words come from the file itself."""
    try:
        with Image.open(file) as image:
            image.load()
            alt, size = image.info.get("Description", file.stem), image.size
    except OSError as error:
        raise ResultError(f"{file} is no whole picture: delete it and run `dvc repro` again") from error
    source = f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return Picture(source, alt, alt.partition(". ")[0], *size)  # under its title


def times(folder: Path) -> list[tuple[str, str]]:
    """Stage → seconds, from the executed notebooks."""
    found = []
    for file in sorted(folder.glob("*.ipynb")):
        seconds = json.loads(file.read_text()).get("metadata", {}).get("papermill", {}).get("duration")
        if seconds is not None:
            found.append((file.stem, f"{seconds:.0f}"))
    return found


def flat(tree: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """``a.b`` → value of every leaf."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", "null" if value is None else str(value)


def _interval(cells: pd.DataFrame, method: str, category: str) -> str:
    if (method, category) not in cells.index:
        return "–"
    row = cells.loc[(method, category)]
    return f"{percent(row['value'])} [{percent(row['ci_low'])}, {percent(row['ci_high'])}]"


def _is_fraction(name: str) -> bool:
    return name in FRACTIONS or "recall@" in name


def _cell(row: dict[str, Any], name: str) -> str:
    value = row[name]
    if pd.isna(value):
        return "–"
    if _is_fraction(name) and isinstance(value, float):
        low, high = row.get("ci_low"), row.get("ci_high")
        beside = f" [{100 * low:.1f}, {100 * high:.1f}]" if name in ("value", "difference") and low is not None else ""
        return f"{percent(value)}{beside}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Writes the active study's report as one HTML file, and its executed notebooks beside it."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.report_page", description=main.__doc__)
    parser.parse_args()
    try:
        root = project_root()
        print(f"Open  {write_report(root).relative_to(root)}")
    except (ParameterError, ResultError, WriteError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
