"""The study's result table: gathered from its stages, printed, and put into the README.

``python -m cirlib.app.report`` prints the table and the files to open; ``--into README.md`` writes it into a page.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from cirlib.benchmarks import Benchmark
from cirlib.figures import rank_histogram
from cirlib.retrieval.scoring import COLUMNS, Scored, read_ranks, result_table
from cirlib.study.errors import ParameterError, StudyError, WriteError
from cirlib.study.files import replace_file
from cirlib.study.parameters import load_study
from cirlib.study.stage import Stage, project_root

SCORED_STAGES = ("zero_shot", "qformer", "dpo")
BEGIN, END = "<!-- results -->", "<!-- /results -->"


class ResultError(StudyError, ValueError):
    """A file of results, or one to write them into, is missing or not whole; the message names it."""


def read_summary(root: Path, study: str) -> pd.DataFrame:
    """Every number of the study.

    Raises:
        ResultError: the study has not run, or the file is damaged.
    """
    file = root / "results" / study / "summary.csv"
    if not file.is_file():
        raise ResultError(f"results/{study}/summary.csv is missing: run `dvc repro` first")
    summary = read_table(file)
    if not set(COLUMNS) <= set(summary) or not (summary["category"] == "mean").any():
        raise ResultError(f"{file} is not whole: delete it and run `dvc repro` again")
    return summary


def read_table(file: Path) -> pd.DataFrame:
    """A CSV table of results; without rows where the file is empty.

    Raises:
        ResultError: it cannot be read as one.
    """
    try:
        return pd.read_csv(file)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ResultError(f"{file} is no table ({reason}): delete it and run `dvc repro` again") from None


def gather(stage: Stage) -> pd.DataFrame:
    """The summaries of the study's stages one after the other.

    Raises:
        StageError: one of them has not run.
    """
    files = [stage.require(stage.results(name) / "summary.csv", name) for name in SCORED_STAGES]
    return pd.concat([pd.read_csv(file) for file in files], ignore_index=True)


def gather_ranks(stage: Stage, parts: Mapping[str, Benchmark]) -> list[Scored]:
    """Every method of the study on the reported queries."""
    files = [stage.require(stage.results(name) / "ranks.csv", name) for name in SCORED_STAGES]
    return [one for file in files for one in read_ranks(file, parts, stage.study.evaluation)]


def histogram(scored: Sequence[Scored]) -> Figure:
    """Every method's ranks, all categories together."""
    ranks = {m: [] for m in dict.fromkeys(one.method for one in scored)}
    for one in scored:
        ranks[one.method] += one.target_ranks
    return rank_histogram(ranks, gallery_size=max(one.candidates for one in scored))


def markdown(summary: pd.DataFrame) -> str:
    """The mean over categories as a Markdown table, with what was measured below it."""
    table = result_table(summary)
    head = "| method | " + " | ".join(table.columns) + " |\n|" + "---|" * (len(table.columns) + 1) + "\n"
    body = "".join(f"| {method} | {' | '.join(row)} |\n" for method, row in zip(table.index, table.values, strict=True))
    return head + body + f"\n{caption(summary)}\n"


def caption(summary: pd.DataFrame) -> str:
    """Protocol, number of queries, gallery size and completeness of the numbers, in one sentence."""
    mean = summary[summary["category"] == "mean"].iloc[0]
    incomplete = "" if summary["complete"].all() else " **Incomplete: images are missing.**"
    return (
        f"Percent with 95 % bootstrap interval, mean of the categories; {mean['queries']} queries, "
        f"{mean['gallery']} candidates each; {mean['protocol']}.{incomplete}"
    )


def update_page(page: Path, summary: pd.DataFrame) -> None:
    """Puts the table between the page's two result marks.

    Raises:
        ResultError: the page cannot be read, or has not both marks.
    """
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ResultError(f"{page} cannot be read as text ({error}): name a page that has {BEGIN} and {END}") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ResultError(f"{page} must have {BEGIN} and {END} once each: the table goes between them")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    changed = f"{before}{BEGIN}\n{markdown(summary)}{END}{after}"
    replace_file(page, lambda path: path.write_text(changed, encoding="utf-8"))


def show(root: Path, study: str, summary: pd.DataFrame) -> None:
    """Prints the table and which files to open."""
    print(f"\n{study}: {caption(summary)}\n\n{result_table(summary).to_string()}\n")
    print(f"Open  results/{study}/notebooks/   the executed notebooks")
    print(f"      figures/{study}/             the figures")
    print(f"      results/{study}/summary.csv  every number with its interval, chance level and protocol")


def main() -> None:
    """Prints the active study's table; with ``--into`` puts it into a page instead."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.report", description=main.__doc__)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write the table between the page's result marks")
    arguments = parser.parse_args()
    try:
        root = project_root()
        study = load_study(root / "params.yaml").name
        summary = read_summary(root, study)
        if arguments.into:
            update_page(arguments.into, summary)
        else:
            show(root, study, summary)
    except (ParameterError, ResultError, WriteError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
