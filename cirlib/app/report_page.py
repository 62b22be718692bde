"""The study as one HTML file to hand over: tables, figures, parameters, versions, hardware, commit, times.

``python -m cirlib.app.report_page`` writes ``results/<study>/report.html``, which needs nothing beside it, and the
executed notebooks as HTML in ``results/<study>/html/``, to which it links.
"""

import argparse
import base64
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from nbconvert import HTMLExporter
from PIL import Image

from cirlib.app.environment import where_computed
from cirlib.app.report import ResultError, caption, read_summary, read_table
from cirlib.retrieval.percent_tables import percent_table
from cirlib.retrieval.scoring import result_table
from cirlib.study.errors import StudyError
from cirlib.study.files import replace_file
from cirlib.study.parameters import PIPELINE, Study, load_study
from cirlib.study.provenance import read_provenance
from cirlib.study.stage import project_root

STAGES = {  # folder → (title of its section, its tables: file → caption)
    "data_prep": ("The data", {
        "counts.csv": "Queries and images of every part.",
        "audit.csv": "What the audit of the files found.",
    }),
    "zero_shot": ("Zero-shot baselines", {"protocols.csv": "What the protocol alone is worth: one model under each."}),
    "qformer": ("The Q-Former", {}),
    "dpo": ("Retrieval-DPO", {}),
    "dpo_grid": ("Retrieval-DPO taken apart", {
        "effects.csv": "What DPO changes from each fusion's own start, and what each switch changes, in recall@10.",
        "mistakes.csv": "Where each mistake ends, beside chance.",
        "recipe.csv": "What a second training of the fine-tuned Q-Former adds, in recall@10.",
    }),
    "failure_cases": ("Where it fails", {
        "kinds.csv": "Recall@10 by kind of edit.",
        "reasons.csv": "Why targets are missed, of each method's misses.",
        "exchanges.csv": "Who finds what another misses.",
    }),
}  # fmt: skip
MARKS = re.compile(r"\*\*|`")  # of Markdown
FOUND_BY = ("03_qformer", "04_dpo", "05_failure_cases")  # notebooks that end with what was found
LONGEST, WIDEST = 40, 12  # rows and columns of a table; of a wider one the columns become rows


@dataclass
class Section:
    """A part of the page: tables as (caption, cells as text), links as (name, address)."""

    id: str
    title: str
    tables: list[tuple[str, pd.DataFrame]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    note: str = ""


def write_report(root: Path) -> Path:
    """Writes the active study's report and its notebooks as HTML; a ResultError names what is missing or damaged.

    >>> (folder / "params.yaml").write_text("name: small\\ndata: {root: raw}"), write_report(folder)
    Traceback (most recent call last):
    cirlib.app.report.ResultError: results/small/summary.csv is missing: run `dvc repro` first
    """
    study = load_study(root / "params.yaml")
    home = root / "results" / study.name
    summary = read_summary(root, study.name)
    links = list(_write_notebooks(home))
    notebooks = Section("notebooks", "The executed notebooks", links=links, note="" if links else "None has run.")
    sections = [_results(home, summary), *_stages(root, study), notebooks, *_about(root, study)]
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True).get_template("report_page.html")
    where = where_computed(read_provenance(root, study.name, PIPELINE))
    lead = MARKS.sub("", f"{caption(summary)}{where}")
    texts = {"study": study.name, "lead": lead, "complete": summary["complete"].all()}
    found = [said for name in FOUND_BY if (said := _found(home / "notebooks" / f"{name}.ipynb"))]
    _write(home / "report.html", page.render(texts, sections=sections, found=found))
    return home / "report.html"


def _write(file: Path, text: str) -> None:
    replace_file(file, lambda path: path.write_text(text, encoding="utf-8"))


def _write_notebooks(home: Path) -> Iterator[tuple[str, str]]:
    """The executed notebooks as HTML: of each its name, with the seconds that it took, and its address."""
    (home / "html").mkdir(parents=True, exist_ok=True)
    for file in sorted((home / "notebooks").glob("*.ipynb")):
        try:
            text, _ = HTMLExporter(embed_images=True).from_filename(str(file))
        except (ValueError, AttributeError) as error:
            raise ResultError(f"{file} is no whole notebook: delete it and run `dvc repro` again") from error
        _write(home / "html" / f"{file.stem}.html", text)
        seconds = json.loads(file.read_text())["metadata"].get("papermill", {}).get("duration")
        yield file.stem + ("" if seconds is None else f", {seconds:.0f} s"), f"html/{file.stem}.html"


def _found(notebook: Path) -> str:
    """What an executed notebook says was found, of several paragraphs the first; empty where it does not say so."""
    cells = json.loads(notebook.read_text())["cells"] if notebook.is_file() else []
    heads = [number for number, cell in enumerate(cells) if "".join(cell["source"]).startswith("## What was found")]
    outputs = [output for cell in cells[heads[-1] :] for output in cell.get("outputs", ())] if heads else []
    said = [output.get("text") or output.get("data", {}).get("text/markdown") or "" for output in outputs]
    first = next(filter(None, map("".join, said)), "").split("\n\n")[0]
    return MARKS.sub("", first).strip()


def _results(home: Path, summary: pd.DataFrame) -> Section:
    """Every method: the mean of the categories, recall@10 by category, and the paper's numbers beside ours."""
    means = result_table(summary).rename_axis("method").reset_index()
    tables = [("Mean of the categories, per cent with 95 % interval.", means)]
    categories = [category for category in summary["category"].unique() if category != "mean"]
    if len(categories) > 1:
        cells = pd.DataFrame({category: result_table(summary, category)["recall@10"] for category in categories})
        cells = cells.rename_axis("method").reset_index()
        tables.append(("Recall@10 by category, per cent with 95 % interval.", cells))
    if (file := home / "paper_vs_ours.csv").is_file():
        columns = ["method", "source", "data", "recall@10", "protocol"]
        beside = read_table(file, columns)
        beside = beside.loc[beside["source"] != "published", columns]
        tables.append(_table(beside, "The paper and this study; only what is of the same data and protocol compares."))
    return Section("results", "Results", tables)


def _stages(root: Path, study: Study) -> Iterator[Section]:
    """A section a stage, with its tables and figures; a sentence where it has not run."""
    for stage, (title, captions) in STAGES.items():
        grid = stage == "dpo_grid"
        inner = Path(stage, study.dpo.grid) if grid else Path(stage)
        folder, figures = (root / kind / study.name / inner for kind in ("results", "figures"))
        tables = {said: read_table(folder / file) for file, said in captions.items() if (folder / file).is_file()}
        section = Section(stage, title, [_table(table, said) for said, table in tables.items() if len(table)])
        section.figures = [_picture(file) for file in sorted(figures.glob("*.png"))]
        if not (section.tables or section.figures):
            command = f"Not run, or nothing to show: `dvc repro {'dpo' if grid else stage}` makes it."
            section.note = "Not run: dpo.grid is none." if grid and study.dpo.grid == "none" else command
        yield section


def _about(root: Path, study: Study) -> Iterator[Section]:
    """How the numbers came about: machine, commit and times of each stage, parameters, versions."""
    stages = read_provenance(root, study.name, PIPELINE)
    kept = {stage: pd.json_normalize(facts, sep=": ").iloc[0] for stage, facts in stages.items()}
    facts = pd.DataFrame(kept, dtype=str)
    made, packages = (facts.filter(regex=pattern, axis=0) for pattern in ("^(?!parameters|versions)", "^versions"))
    packages = packages.T.drop_duplicates().T  # one column where all stages had the same
    parameters = pd.json_normalize(study.model_dump(mode="json")).iloc[0].map(str).replace("None", "null")
    for id, title, said, table in (
        ("run", "The run", "When, from what, and on what each stage was computed.", made),
        ("parameters", "Parameters", "Every parameter.", parameters.to_frame("value")),
        ("versions", "Versions", "Packages.", packages),
    ):
        tables = [(said, table.rename_axis("what").reset_index())] if len(table) else []
        yield Section(id, title, tables, note="" if tables else "No stage has run that says where.")


def _table(table: pd.DataFrame, said: str) -> tuple[str, pd.DataFrame]:
    """A table for reading."""
    if len(table) > LONGEST:
        said = f"{said} The first {LONGEST} of {len(table)} rows."
    shown = percent_table(table.head(LONGEST).drop(columns="command", errors="ignore"))
    if shown.shape[1] > WIDEST:
        first = shown.columns[0]
        shown = shown.set_index(first).T.rename_axis(index=first, columns=None).reset_index()
    return said, shown


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
