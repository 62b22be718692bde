"""The study's result table, printed or put into a page.

``python -m cirlib.app.report`` prints the table and the files to open; ``--into README.md`` writes it into a page, and
copies tables and figures to ``docs/studies/<study>/``.
"""

import argparse
import re
import shutil
from collections.abc import Collection
from pathlib import Path

import pandas as pd

from cirlib.analysis.tables.study_tables import best_method, best_of_families, recall_by_method
from cirlib.app.environment import where_computed
from cirlib.retrieval.scoring import SUMMARY_COLUMNS, result_table
from cirlib.study.errors import ReadError, StudyError
from cirlib.study.files import load_table, replace_file, write_bytes
from cirlib.study.method_registry import ZERO_SHOT, labels, method_label
from cirlib.study.parameters import PIPELINE, load_study
from cirlib.study.provenance import read_provenance
from cirlib.study.stage import project_root
from cirlib.study.units import percent

SEED_COLUMNS = ("method", "metric", "category", "seed", "value")
MARKS = ("<!-- finding -->", "<!-- /finding -->", "<!-- results -->", "<!-- /results -->")  # in a page, in this order
LAST_EPOCH = " The Q-Former is trained on all of train and taken at its last epoch."
UNPUBLISHED = ("ranks.csv", "misses.csv", "provenance")
OPEN = """
Open  results/{study}/notebooks/   the executed notebooks
      figures/{study}/             the figures
      results/{study}/summary.csv  every number with its interval, chance level and protocol
      runs/{study}/logs/           what libraries said meanwhile

{finding}
Next: `make lab` opens the notebooks, `make search` the search page, `make report` makes one file to hand over."""


class ResultError(StudyError, ValueError):
    """A file of results, or one to write them into, is missing or not whole; the message names it."""


def read_summary(root: Path, study: str) -> pd.DataFrame:
    """Every number of the study; ResultError where it has not run, or the file is damaged.

    >>> read_summary(folder, "garments")
    Traceback (most recent call last):
    cirlib.app.report.ResultError: results/garments/summary.csv is missing: run `dvc repro` first
    """
    file = root / "results" / study / "summary.csv"
    if not file.is_file():
        raise ResultError(f"{file.relative_to(root)} is missing: run `dvc repro` first")
    summary = read_table(file, SUMMARY_COLUMNS)
    if "mean" not in set(summary["category"]):
        raise ResultError(f"{file} is not whole: delete it and run `dvc repro` again")
    return summary


def read_table(file: Path, columns: Collection[str] = ()) -> pd.DataFrame:
    """A CSV table with at least ``columns``, without rows where the file is empty; ResultError where it is none.

    >>> (folder / "a.csv").write_text("n\\n3\\n"), read_table(folder / "a.csv")["n"].tolist()
    (4, [3])
    """
    try:
        table = load_table(file)
    except (OSError, ReadError) as error:
        cause = error.__cause__ or error
        if not isinstance(cause, pd.errors.EmptyDataError):
            reason = " ".join(str(cause).split())
            raise ResultError(f"{file} is no table ({reason}): delete it and run `dvc repro` again") from None
        table = pd.DataFrame()
    if not set(columns) <= set(table):
        raise ResultError(f"{file} is not whole: delete it and run `dvc repro` again")
    return table


def caption(summary: pd.DataFrame) -> str:
    """Protocol, number of queries, gallery size and completeness of the numbers, in one sentence.

    >>> caption(pd.read_csv(results / "summary.csv"))[:60]
    'Percent with 95 % bootstrap interval, mean of the categories'
    """
    mean = summary[summary["category"] == "mean"].iloc[0]
    incomplete = "" if summary["complete"].all() else " **Incomplete: images are missing.**"
    return (
        f"Percent with 95 % bootstrap interval, mean of the categories; {mean['queries']:,} queries, "
        f"{mean['gallery']:,} candidates each; {mean['protocol']}.{incomplete}"
    )


def seed_spread(seeds: pd.DataFrame) -> pd.DataFrame:
    """A ``seeds.csv`` for reading: a row a method, a column a metric, percent as mean ± standard deviation (range).

    >>> rows = {"method": "sum", "metric": "recall@10", "category": "mean", "seed": [0, 1, 2], "value": [0.5, 0.5, 0.6]}
    >>> seed_spread(pd.DataFrame(rows)).loc["weighted sum", "recall@10"]
    '53.3 ± 5.8 (50.0 to 60.0)'
    """
    part = seeds[seeds["category"] == "mean"]
    groups = part.groupby(["method", "metric"], sort=False)["value"]
    text = groups.agg(lambda v: f"{percent(v.mean())} ± {percent(v.std())} ({percent(v.min())} to {percent(v.max())})")
    return text.unstack().loc[part["method"].unique(), part["metric"].unique()].rename(index=labels())


def full_table(summary: pd.DataFrame, folder: Path) -> tuple[pd.DataFrame, str]:
    """The result table, with recall@10 over the seeds where ``folder`` has a ``seeds.csv``; and what to say of them.

    >>> full_table(pd.read_csv(results / "summary.csv"), folder)[1]
    ' One training each: `make seeds` repeats them.'
    """
    table, file = result_table(summary), folder / "seeds.csv"
    if not file.is_file():
        return table, " One training each: `make seeds` repeats them."
    seeds = read_table(file, SEED_COLUMNS)
    shared = summary.merge(seeds, on=["method", "metric", "category"], suffixes=("", "_seed"))
    own = shared.assign(same=(shared["value"] - shared["value_seed"]).abs() < 1e-6)
    if not own.groupby(["method", "metric", "category"])["same"].any().all():
        return table, " seeds.csv is of an earlier run and left out: `make seeds` makes it anew."
    count = seeds["seed"].nunique()
    table[f"recall@10, {count} seeds"] = seed_spread(seeds)["recall@10"].reindex(table.index).fillna("")
    return table, f" Over {count} seeds, which train anew on the same data: mean ± standard deviation (range)."


def _finding(study: str, summary: pd.DataFrame, table: pd.DataFrame) -> str:
    """The table's best method and the best zero-shot one, with their recall@10, and that over seeds in ``table``."""
    means = recall_by_method(summary)
    best, zero_shot = best_method(summary), best_of_families(summary).get(ZERO_SHOT)
    label, named = method_label(best), labels()
    rows = [named.get(name, name) for name in dict.fromkeys([best, zero_shot]) if name]
    one = summary[(summary["category"] == "mean") & (summary["metric"] == "recall@10")].iloc[0]
    said = f"Of {one['queries']:,} queries in the {study} study, the best of {len(means)} methods ({label}) finds "
    said += f"{percent(means[best])} % of the targets"
    said += f" among its first ten of {one['gallery']:,} images (by chance {percent(one['chance'])} %)"
    if zero_shot not in (None, best):
        said += f", the best zero-shot method ({method_label(zero_shot)}) {percent(means[zero_shot])} %"
    for column in table.columns[table.columns.str.endswith(" seeds")]:
        numbers = [table.loc[name, column].split(" (")[0] for name in rows]
        said += f"; over {column.split(', ')[1]}: {' and '.join(numbers)} %"
    return f"{said}."


def _update_page(page: Path, table: pd.DataFrame, finding: str, said: str) -> None:
    """Puts the finding, and the table with what is said of it, between the page's marks, in Markdown."""
    try:
        text = page.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ResultError(f"{page} cannot be read as text ({error}): name a page that has {', '.join(MARKS)}") from None
    if re.findall("|".join(MARKS), text) != list(MARKS):
        raise ResultError(f"{page} must have {', '.join(MARKS)} once each, in this order")
    table = table.rename_axis("method").reset_index()
    head, *rows = (f"| {' | '.join(row)} |" for row in (table.columns, *table.values))
    lines = "\n".join([head, "|" + "---|" * table.shape[1], *rows])
    before, _, between, _, after = re.split("|".join(MARKS), text)
    parts = [before, f"\n**{finding}**\n", between, f"\n{lines}\n\n{said}\n", after]
    changed = "".join(part + mark for part, mark in zip(parts, [*MARKS, ""], strict=True))
    replace_file(page, lambda path: path.write_text(changed, encoding="utf-8"))


def _publish(root: Path, study: str) -> None:
    """Copies the study's tables and figures to ``docs/studies/<study>``, where git keeps what the docs show."""
    for kind, endings in {"results": (".csv", ".json", ".md"), "figures": (".png",)}.items():
        source, target = root / kind / study, root / "docs" / "studies" / study / kind
        shutil.rmtree(target, ignore_errors=True)
        for file in source.rglob("*"):
            if file.suffix in endings and not {file.name, file.parent.name} & {*UNPUBLISHED}:
                write_bytes(file.read_bytes(), target / file.relative_to(source))


def main() -> None:
    """Prints the active study's table and what to open; ``--into`` puts it into a page and all into docs/studies."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.report", description=main.__doc__)
    parser.add_argument("--into", type=Path, metavar="PAGE", help="write finding and table between the page's marks")
    arguments = parser.parse_args()
    try:
        root = project_root()
        params = load_study(root / "params.yaml")
        study = params.name
        summary = read_summary(root, study)
        table, of_seeds = full_table(summary, root / "results" / study)
        of_seeds += LAST_EPOCH * params.qformer.whole_train
        where = where_computed(read_provenance(root, study, PIPELINE))
        said, finding = f"{caption(summary)}{where}{of_seeds}", _finding(study, summary, table)
        if arguments.into:
            _update_page(arguments.into, table, finding, said)
            _publish(root, study)
        else:
            print(f"\n{study}: {said}\n\n{table.to_string()}\n{OPEN.format(study=study, finding=finding)}")
    except StudyError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
