"""Methods scored on benchmarks under a stated protocol: ranks a query, and one table row a number.

``python -m cirlib.retrieval.scoring --benchmark fashioniq --root DIR --category dress --run run.json`` scores anybody's
rankings; ``--help`` says more, :mod:`cirlib.retrieval.run_files` what a run file holds.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cirlib.benchmarks import Benchmark, BenchmarkError
from cirlib.benchmarks.base import check_choice
from cirlib.benchmarks.protocols import REFERENCES
from cirlib.retrieval.measures import (
    Values,
    chance,
    expected_precisions,
    field_size,
    precisions,
    ranks_in_subsets,
    subset_recalls,
)
from cirlib.retrieval.ranking import top_rows
from cirlib.retrieval.ranks import Array, Ranks, bootstrap_ci, holm, paired_test, recall_at_k, target_ranks
from cirlib.retrieval.run_files import Embeddings, RunError, list_ranks, list_subset_ranks, read_run
from cirlib.study.files import write_json, write_table
from cirlib.study.parameters import Evaluation

KS = (1, 5, 10, 50)
TOP = 5  # retrieved images kept of each query, for pictures
COLUMNS = (
    "method", "category", "metric", "value", "ci_low", "ci_high", "queries", "gallery", "chance", "protocol", "complete"
)  # fmt: skip


@dataclass(frozen=True)
class Scored:
    """One method on the queries of one category."""

    method: str
    category: str
    benchmark: Benchmark
    ranks: Ranks
    protocol: str
    reference_removed: bool
    top: list[list[str]]  # the ids of the best images of each query, best first
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # metric beside recall → (N,), for CIRR and CIRCO
    note: str = ""  # what could not be scored, and why

    def recall(self, k: int) -> np.ndarray:
        """Recall@k of each query, (N,) in [0, 1]; ties count their expectation."""
        return recall_at_k(self.ranks, k).numpy()

    @property
    def places(self) -> list[int]:
        """The rank of each query's target, from 1; the middle of those that ties allow, rounded down."""
        return (self.ranks.above + self.ranks.tied // 2 + 1).tolist()

    @property
    def metrics(self) -> list[str]:
        """What the benchmark is scored by."""
        return [*(f"recall@{k}" for k in KS), *self.extra]

    def values(self, metric: str) -> np.ndarray:
        """One of :attr:`metrics`, or any recall@k, of each query, (N,) in [0, 1]."""
        return self.extra[metric] if metric in self.extra else self.recall(int(metric.removeprefix("recall@")))

    @property
    def candidates(self) -> int:
        """Images a query is ranked among."""
        return len(self.benchmark.gallery) - self.reference_removed


def protocol_name(evaluation: Evaluation) -> str:
    """How a number was measured, in words: ``original gallery, reference removed, captions joined: and``."""
    gallery = evaluation.gallery.replace("_", " ")
    return f"{gallery} gallery, reference {evaluation.reference}, captions joined: {evaluation.captions}"


def average_texts(features: Tensor, rows: np.ndarray, queries: int) -> Tensor:
    """Features (texts, D) averaged over the texts of each query and normalised, (N, D)."""
    index = torch.from_numpy(rows)
    total = torch.zeros(queries, features.shape[1]).index_add_(0, index, features)
    return torch.nn.functional.normalize(total, dim=-1)


def score(
    method: str, category: str, queries: Tensor, gallery: Array, benchmark: Benchmark, evaluation: Evaluation
) -> Scored:
    """Ranks of the targets of ``benchmark``'s queries, and what else the benchmark is scored by.

    Args:
        queries: (N, D), row for row the benchmark's triplets.
        gallery: (M, D), or (M, T, D) token sets of which the best counts; row for row the benchmark's gallery. May
            be memory-mapped: it is read block by block.
    """
    row = benchmark.gallery_index
    targets = [row[triplet.targets[0]] for triplet in benchmark.triplets]
    removed = evaluation.reference == "removed"
    exclude = [row[triplet.reference] for triplet in benchmark.triplets] if removed else None
    ranks = target_ranks(queries, gallery, targets, exclude=exclude)
    extra: Values = {}
    if benchmark.name == "circo":
        extra = expected_precisions(*_ranks_of_all_targets(queries, gallery, exclude, benchmark))
    if benchmark.name == "cirr":
        extra = subset_recalls(ranks, ranks_in_subsets(queries, gallery, benchmark))
    top = [[benchmark.gallery[i] for i in rows] for rows in top_rows(queries, gallery, exclude, TOP)]
    return Scored(method, category, benchmark, ranks, protocol_name(evaluation), removed, top, extra)


def _ranks_of_all_targets(
    queries: Tensor, gallery: Array, exclude: list[int] | None, benchmark: Benchmark
) -> tuple[Ranks, list[int]]:
    """The rank of every target of every query, (P,), and the query of each."""
    row = benchmark.gallery_index
    pairs = [(n, row[target]) for n, triplet in enumerate(benchmark.triplets) for target in triplet.targets]
    owner = [n for n, _ in pairs]
    left_out = None if exclude is None else [exclude[n] for n in owner]
    return target_ranks(queries[owner], gallery, [target for _, target in pairs], exclude=left_out), owner


def score_run(
    run: str | Path | Mapping[str, Any], benchmark: Benchmark, *, method: str = "run", reference: str | None = None
) -> Scored:
    """Anybody's ranked ids or embeddings of ``benchmark``'s queries, scored.

    Args:
        run: a file (:mod:`cirlib.retrieval.run_files`), or its content: query id → image ids, best first, or the arrays.
        reference: "removed" strikes each query's reference out of its ranking, "kept" lets it count; None is what the
            benchmark's own server does: kept for CIRCO, removed elsewhere.

    Of CIRR, ranked ids that do not tell a query's subset leave recall_subset out; ``note`` names the query.

    Raises:
        RunError: the run is not as it must be; one sentence that names the first offender. The benchmark has no
            public targets.
        BenchmarkError: an unknown ``reference``.
    """
    reference = reference or ("kept" if benchmark.name == "circo" else "removed")
    check_choice(reference, REFERENCES, "reference")
    if lacking := next((t for t in benchmark.triplets if not t.targets), None):
        raise RunError(f"{benchmark.name} {benchmark.split}: query {lacking.id!r} has no public target to score.")
    removed, category = reference == "removed", _category(benchmark)
    joined = ", categories joined" if len(benchmark.categories) > 1 else ""
    protocol = f"{benchmark.protocol.replace('_', ' ')} gallery, reference {reference}{joined}"
    found = read_run(run, benchmark, removed=removed)
    if isinstance(found, Embeddings):
        scored = score(method, category, found.queries, found.gallery, benchmark, Evaluation(reference=reference))
        return replace(scored, protocol=protocol)
    ranks, extra, note = list_ranks(found, benchmark), {}, ""
    if benchmark.name == "circo":
        extra = precisions(found, benchmark)
    if benchmark.name == "cirr":
        try:
            extra = subset_recalls(ranks, list_subset_ranks(found, benchmark))
        except RunError as error:
            note = f"No recall_subset for {method}: {error}"
    top = [images[:TOP] for images in found]
    return Scored(method, category, benchmark, ranks, protocol, removed, top, extra, note)


def _category(benchmark: Benchmark) -> str:
    return benchmark.categories[0] if len(benchmark.categories) == 1 else benchmark.name


def mean_recall(scored: Sequence[Scored], k: int) -> float:
    """The mean over categories of one method's recall@k."""
    return float(np.mean([one.recall(k).mean() for one in scored]))


def summarise(scored: Sequence[Scored], ks: Sequence[int] | None = None) -> pd.DataFrame:
    """One row a number, per method and category, and the mean over categories, with 95 % intervals.

    The numbers are what the benchmark is scored by; with ``ks``, recall@k at those.

    Raises:
        ValueError: a method has a category twice, or one that is called "mean".
    """
    _by_method(scored)
    recalls = None if ks is None else [f"recall@{k}" for k in ks]
    rows = [_row(one.method, one.category, m, [one]) for one in scored for m in recalls or one.metrics]
    for method in dict.fromkeys(one.method for one in scored):
        parts = [one for one in scored if one.method == method]
        rows += [_row(method, "mean", m, parts) for m in recalls or parts[0].metrics]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(method: str, category: str, metric: str, parts: Sequence[Scored]) -> dict:
    values = [part.values(metric) for part in parts]
    groups = np.repeat(np.arange(len(parts)), [len(v) for v in values])
    low, high = bootstrap_ci(np.concatenate(values), groups=groups)
    return {
        "method": method,
        "category": category,
        "metric": metric,
        "value": float(np.mean([v.mean() for v in values])),
        "ci_low": low,
        "ci_high": high,
        "queries": sum(len(v) for v in values),
        "gallery": round(np.mean([field_size(metric, part.benchmark, part.candidates) for part in parts])),
        "chance": float(np.mean([chance(metric, part.benchmark, part.candidates) for part in parts])),
        "protocol": parts[0].protocol,
        "complete": all(part.benchmark.complete for part in parts),
    }


def compare(
    scored: Sequence[Scored], against: str, metrics: Sequence[str] = ("recall@10",), seed: int = 0
) -> pd.DataFrame:
    """Every other method against ``against``: difference in the mean over categories and a paired test.

    The queries of a category are paired one by one; p_holm is corrected for all rows of the table. Differences are
    fractions of 1.

    Raises:
        ValueError: no such method; one that has other categories, queries or another protocol.
    """
    methods = _by_method(scored)
    if against not in methods:
        raise ValueError(f"no method {against!r} to compare with, there are {', '.join(methods)}")
    base, rows = methods.pop(against), []
    groups = [category for category, one in base.items() for _ in one.benchmark.triplets]
    for name, parts in methods.items():
        _check_pairs(parts, base, name, against)
        for metric in metrics:
            own, theirs = (np.concatenate([of[c].values(metric) for c in base]) for of in (parts, base))
            test = paired_test(own, theirs, seed=seed, groups=groups)
            names = {"method": name, "against": against, "metric": metric}
            rows.append({**names, "difference": test.difference, "p": test.p_value})
    corrected = holm([row["p"] for row in rows]) if rows else []
    return pd.DataFrame([{**row, "p_holm": p} for row, p in zip(rows, corrected, strict=True)])


def _by_method(scored: Sequence[Scored]) -> dict[str, dict[str, Scored]]:
    """Method → category → its scores."""
    methods: dict[str, dict[str, Scored]] = {}
    for one in scored:
        parts = methods.setdefault(one.method, {})
        if one.category in parts or one.category == "mean":
            what = "is the name of the average" if one.category == "mean" else f"is there twice for {one.method!r}"
            raise ValueError(f"category {one.category!r} {what}, expected each category once")
        parts[one.category] = one
    return methods


def _check_pairs(parts: Mapping[str, Scored], base: Mapping[str, Scored], name: str, against: str) -> None:
    """The two have the same categories, queries and protocol."""
    if parts.keys() != base.keys():
        raise ValueError(f"{name} has the categories {', '.join(parts)}, {against} has {', '.join(base)}")
    for category, one in parts.items():
        other = base[category]
        if one.protocol != other.protocol:
            raise ValueError(f"{name} was scored with {one.protocol}, {against} with {other.protocol}")
        if [t.id for t in one.benchmark.triplets] != [t.id for t in other.benchmark.triplets]:
            raise ValueError(f"{name} and {against} have other queries in {category}")


def metrics_tree(summary: pd.DataFrame) -> dict[str, dict[str, float]]:
    """The summary for ``dvc metrics``: method → ``mean/recall@10`` → value, rounded to six digits."""
    tree: dict[str, dict[str, float]] = {}
    for row in summary.itertuples():
        tree.setdefault(row.method, {})[f"{row.category}/{row.metric}"] = round(row.value, 6)
    return tree


def write_ranks(scored: Sequence[Scored], path: Path) -> None:
    """A CSV with a row a query: method, category, query, target, images above and tied, the best ids (quoted).

    Then what CIRR and CIRCO are scored by beside recall, a column a metric.
    """
    columns = ["method", "category", "query", "target", "above", "tied", "top"]
    frames = [
        pd.DataFrame(
            {
                "method": one.method,
                "category": one.category,
                "query": [triplet.id for triplet in one.benchmark.triplets],
                "target": [triplet.targets[0] for triplet in one.benchmark.triplets],
                "above": one.ranks.above.numpy(),
                "tied": one.ranks.tied.numpy(),
                "top": [shlex.join(ids) for ids in one.top],
                **one.extra,
            }
        )
        for one in scored
    ]
    write_table(pd.concat(frames or [pd.DataFrame(columns=columns)]), path)


def read_ranks(path: Path, benchmarks: Mapping[str, Benchmark], evaluation: Evaluation) -> list[Scored]:
    """What :func:`write_ranks` wrote, back on the same benchmarks.

    Raises:
        BenchmarkError: the file is cut off, or is of other categories or queries than ``benchmarks``.
    """
    try:
        return _read_ranks(path, benchmarks, evaluation)
    except (ValueError, KeyError, TypeError) as error:
        stage = path.parent.name
        raise BenchmarkError(
            f"{path} is cut off or was measured on other data than the study's: run `dvc repro --force {stage}`."
        ) from error


def _read_ranks(path: Path, benchmarks: Mapping[str, Benchmark], evaluation: Evaluation) -> list[Scored]:
    scored = []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    metrics = table.columns[table.columns.get_loc("top") + 1 :]
    for (method, category), part in table.groupby(["method", "category"], sort=False):
        ranks = Ranks(*(torch.from_numpy(part[name].to_numpy(np.int64)) for name in ("above", "tied")))
        if part["query"].tolist() != [triplet.id for triplet in benchmarks[category].triplets]:
            raise ValueError("other queries")
        removed, top = evaluation.reference == "removed", [shlex.split(ids) for ids in part["top"]]
        extra = {metric: part[metric].to_numpy(np.float64) for metric in metrics}
        protocol = protocol_name(evaluation)
        scored.append(Scored(method, category, benchmarks[category], ranks, protocol, removed, top, extra))
    return scored


def write_results(scored: Sequence[Scored], folder: Path) -> pd.DataFrame:
    """Writes ``summary.csv``, ``metrics.json`` and ``ranks.csv`` into ``folder``; gives the summary."""
    summary = summarise(scored)
    write_summary(summary, folder)
    write_ranks(scored, folder / "ranks.csv")
    return summary


def write_summary(summary: pd.DataFrame, folder: Path) -> None:
    """Writes ``summary.csv`` and ``metrics.json`` into ``folder``."""
    write_table(summary.round(6), folder / "summary.csv")
    write_json(metrics_tree(summary), folder / "metrics.json")


def result_table(summary: pd.DataFrame, category: str = "mean") -> pd.DataFrame:
    """The summary for reading: a row a method, a column a metric, percent with its 95 % interval."""
    part = summary[summary["category"] == category]
    part = part.round(6)  # as in summary.csv, so that 0.5175 is read the same everywhere
    text = [f"{100 * r.value:.1f} [{100 * r.ci_low:.1f}, {100 * r.ci_high:.1f}]" for r in part.itertuples()]
    table = part.assign(text=text).pivot(index="method", columns="metric", values="text")
    chance = part.groupby("metric")["chance"].first().map(lambda value: f"{float(f'{100 * value:.2g}'):g}")
    table = table.loc[list(dict.fromkeys(part["method"])), list(dict.fromkeys(part["metric"]))]
    return pd.concat([table, chance.rename("chance").to_frame().T[table.columns]])
