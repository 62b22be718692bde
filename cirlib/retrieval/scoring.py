"""Methods scored on benchmarks under a stated protocol: ranks a query, and one table row a number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cirlib.benchmarks import Benchmark
from cirlib.benchmarks.base import MADE, check_choice
from cirlib.benchmarks.families import families
from cirlib.benchmarks.protocols import REFERENCES
from cirlib.retrieval.cirr_circo import chance, extra_values, field_size, target_pairs
from cirlib.retrieval.ranks import Array, Ranks, subset_ranks, target_ranks, top_rows
from cirlib.retrieval.recall_and_precision import recall_at_k
from cirlib.retrieval.run_files import Embeddings, Lists, RunError, list_ranks, read_run
from cirlib.retrieval.statistics import bootstrap_ci, holm, paired_test
from cirlib.study.method_registry import labels
from cirlib.study.parameters import Evaluation
from cirlib.study.units import percent

KS = (1, 5, 10, 50)
TOP = 5  # retrieved images kept of each query, for pictures
SUMMARY_COLUMNS = (
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

    @property
    def target_ranks(self) -> list[int]:
        """The rank of each query's target, from 1; the middle of those that ties allow, rounded down."""
        return (self.ranks.above + self.ranks.tied // 2 + 1).tolist()

    @property
    def metrics(self) -> list[str]:
        """What the benchmark is scored by."""
        return [*(f"recall@{k}" for k in KS), *self.extra]

    def recall(self, k: int) -> np.ndarray:
        """Recall@k of each query, (N,) in [0, 1]; ties count their expectation."""
        return recall_at_k(self.ranks, k).numpy()

    def values(self, metric: str) -> np.ndarray:
        """Of each query one of :attr:`metrics`, or any recall@k, (N,) in [0, 1]."""
        return self.extra[metric] if metric in self.extra else self.recall(int(metric.removeprefix("recall@")))

    @cached_property
    def families(self) -> np.ndarray:
        """Each query's image family, (N,), by which queries are drawn for intervals and tests."""
        return families(self.benchmark.triplets)

    @property
    def candidates(self) -> int:
        """Images a query is ranked among."""
        return len(self.benchmark.gallery) - self.reference_removed


def protocol_name(evaluation: Evaluation) -> str:
    """How a number was measured, in words.

    >>> protocol_name(Evaluation(reference="kept"))
    'original gallery, reference kept, captions joined: and'
    """
    gallery = evaluation.gallery.replace("_", " ")
    return f"{gallery} gallery, reference {evaluation.reference}, captions joined: {evaluation.captions}"


def average_texts(features: Tensor, rows: np.ndarray, queries: int) -> Tensor:
    """Features (texts, D) averaged over the texts of each query and normalised, (N, D).

    >>> average_texts(torch.eye(2), np.array([0, 0]), queries=1).round(decimals=2).tolist()
    [[0.7099999785423279, 0.7099999785423279]]
    """
    index = torch.from_numpy(rows)
    total = torch.zeros(queries, features.shape[1]).index_add_(0, index, features)
    return torch.nn.functional.normalize(total, dim=-1)


def score(
    method: str, category: str, queries: Tensor, gallery: Array, benchmark: Benchmark, evaluation: Evaluation
) -> Scored:
    """Ranks of the targets of ``benchmark``'s queries, and what else the benchmark is scored by.

    Args:
        queries, gallery: (N, D) and (M, D) or (M, T, D), row for row the benchmark's triplets and gallery.

    >>> hats, embeddings = make_scored("sum", "hat", [0], size=3).benchmark, torch.eye(3)  # from image 0 to image 1
    >>> score("mine", "hat", embeddings[1:2], embeddings, hats, Evaluation()).target_ranks
    [1]
    """
    row, triplets = benchmark.gallery_index, benchmark.triplets
    removed = evaluation.reference == "removed"
    exclude = [row[triplet.reference] for triplet in triplets] if removed else None
    query, images = target_pairs(benchmark)
    targets, left_out = [row[image] for image in images], [exclude[n] for n in query] if removed else None
    every = target_ranks(queries[query], gallery, targets, exclude=left_out)
    subsets = [[row[image] for image in triplet.subset] for triplet in triplets]
    within = subset_ranks(queries, gallery, targets, subsets) if benchmark.name == "cirr" else None
    top = [[benchmark.gallery[i] for i in rows] for rows in top_rows(queries, gallery, exclude, TOP)]
    size, extra = len(triplets), extra_values(benchmark, every, within)
    ranks = Ranks(every.above[:size], every.tied[:size])
    return Scored(method, category, benchmark, ranks, protocol_name(evaluation), removed, top, extra)


def score_run(
    run: str | Path | Mapping[str, Any], benchmark: Benchmark, *, method: str = "run", reference: str | None = None
) -> Scored:
    """Anybody's run (:func:`~cirlib.retrieval.run_files.read_run`) of ``benchmark``'s queries, scored.

    Args:
        reference: "removed" strikes each query's reference out of its ranking, "kept" lets it count; None is what the
            benchmark's own server does: kept for CIRCO, removed elsewhere.

    Of CIRR, ranked ids that do not tell a query's subset leave recall_subset out; ``note`` names the query.

    >>> hats = make_scored("sum", "hat", [0], size=3).benchmark
    >>> score_run({"hat-query-0": ["hat-0", "hat-2", "hat-1"]}, hats).target_ranks  # hat-0 is the reference
    [2]
    """
    reference = reference or ("kept" if benchmark.name == "circo" else "removed")
    check_choice(reference, REFERENCES, "reference")
    if lacking := next((t for t in benchmark.triplets if not t.targets), None):
        raise RunError(f"{benchmark.name} {benchmark.split}: query {lacking.id!r} has no public target to score.")
    removed, categories = reference == "removed", benchmark.categories
    category = categories[0] if len(categories) == 1 else benchmark.name
    protocol = f"{benchmark.protocol.replace('_', ' ')} gallery, reference {reference}"
    protocol += ", categories joined" if len(categories) > 1 else ""
    found = read_run(run, benchmark, removed=removed)
    if isinstance(found, Embeddings):
        scored = score(method, category, found.queries, found.gallery, benchmark, Evaluation(reference=reference))
        return replace(scored, protocol=protocol)
    query, images = target_pairs(benchmark)
    every = list_ranks([found[n] for n in query], images, [len(benchmark.gallery)] * len(query))
    extra, note = {}, ""
    try:
        within = _ranks_in_subsets(found, benchmark) if benchmark.name == "cirr" else None
        extra = extra_values(benchmark, every, within)
    except RunError as error:
        note = f"No recall_subset for {method}: {error}"
    ranks, top = Ranks(every.above[: len(found)], every.tied[: len(found)]), [ids[:TOP] for ids in found]
    return Scored(method, category, benchmark, ranks, protocol, removed, top, extra, note)


def _ranks_in_subsets(lists: Lists, benchmark: Benchmark) -> Ranks:
    """CIRR's targets among the members of their subsets that are listed."""
    targets, subsets = zip(*((triplet.targets[0], triplet.subset) for triplet in benchmark.triplets), strict=True)
    members = [[image for image in images if image in own] for images, own in zip(lists, subsets, strict=True)]
    for triplet, own in zip(benchmark.triplets, members, strict=True):
        if triplet.targets[0] not in own and len(own) < min(3, len(triplet.subset) - 1):
            raise RunError(
                f"query {triplet.id!r} has neither its target nor three others of its subset: for recall_subset "
                "give longer lists, or put the subset's members, in their order, behind the first 50."
            )
    return list_ranks(members, targets, [len(own) for own in subsets])


def mean_recall(scored: Sequence[Scored], k: int) -> float:
    """The mean over categories of one method's recall@k.

    >>> mean_recall([make_scored("sum", "hat", [0, 9]), make_scored("sum", "shoe", [3])], 5)
    0.75
    """
    return float(np.mean([one.recall(k).mean() for one in scored]))


def summarise(scored: Sequence[Scored], ks: Sequence[int] | None = None) -> pd.DataFrame:
    """One row a number (what the benchmark is scored by, or recall at ``ks``), of each category and of their mean.

    >>> table = summarise([make_scored("sum", "hat", [0, 9]), make_scored("sum", "shoe", [3])], ks=[5])
    >>> table[["category", "value", "chance"]].values.tolist()
    [['hat', 0.5, 0.05], ['shoe', 1.0, 0.05], ['mean', 0.75, 0.05]]
    """
    recalls = None if ks is None else [f"recall@{k}" for k in ks]
    rows = [_row(one.category, m, [one]) for one in scored for m in recalls or one.metrics]
    for parts in _by_method(scored).values():
        rows += [_row("mean", m, list(parts.values())) for m in recalls or next(iter(parts.values())).metrics]
    return pd.DataFrame(rows, columns=list(SUMMARY_COLUMNS))


def _row(category: str, metric: str, parts: Sequence[Scored]) -> tuple:
    """The :data:`SUMMARY_COLUMNS` of one number of one method."""
    values = [part.values(metric) for part in parts]
    groups = np.repeat(np.arange(len(parts)), [len(v) for v in values])
    clusters = np.concatenate([part.families for part in parts])
    return (
        parts[0].method,
        category,
        metric,
        float(np.mean([v.mean() for v in values])),
        *bootstrap_ci(np.concatenate(values), groups=groups, clusters=clusters),
        sum(len(v) for v in values),
        round(np.mean([field_size(metric, part.benchmark, part.candidates) for part in parts])),
        float(np.mean([chance(metric, part.benchmark, part.candidates) for part in parts])),
        parts[0].protocol + ", edits made from the catalogue" * any(part.category == MADE for part in parts),
        all(part.benchmark.complete for part in parts),
    )


def compare(
    scored: Sequence[Scored], against: str, metrics: Sequence[str] = ("recall@10",), seed: int = 0
) -> pd.DataFrame:
    """Every other method against ``against``: difference in the mean over categories, its interval, a paired test.

    The queries of a category are paired one by one, and those of an image family are tested as one; p_holm is
    corrected for all rows of the table.

    >>> compare([make_scored("sum", "hat", [20, 3]), make_scored("qformer", "hat", [0, 0])], "sum")["difference"].item()
    0.5
    """
    methods = _by_method(scored)
    if against not in methods:
        raise ValueError(f"no method {against!r} to compare with, there are {', '.join(methods)}")
    base, rows = methods.pop(against), []
    groups = [category for category, one in base.items() for _ in one.benchmark.triplets]
    clusters = np.concatenate([one.families for one in base.values()])
    for name, parts in methods.items():
        shared = [{c: (of[c].protocol, *(t.id for t in of[c].benchmark.triplets)) for c in of} for of in (parts, base)]
        if shared[0] != shared[1]:
            both = " and ".join(", ".join(f"{c} ({of[c].protocol})" for c in of) for of in (parts, base))
            raise ValueError(f"{name} and {against} must have the same categories, queries and protocol, got {both}")
        for metric in metrics:
            own, theirs = (np.concatenate([of[c].values(metric) for c in base]) for of in (parts, base))
            test = paired_test(own, theirs, seed=seed, groups=groups, clusters=clusters)
            ends = bootstrap_ci(own - theirs, groups=groups, clusters=clusters, bounds=(-1, 1))
            rows.append((name, against, metric, test.difference, *ends, test.p_value))
    table = pd.DataFrame(rows, columns=["method", "against", "metric", "difference", "ci_low", "ci_high", "p"])
    return table.assign(p_holm=holm(table["p"]))


def _by_method(scored: Sequence[Scored]) -> dict[str, dict[str, Scored]]:
    """Method → category → its scores."""
    methods: dict[str, dict[str, Scored]] = {}
    for one in scored:
        parts = methods.setdefault(one.method, {})
        if one.category in (*parts, "mean"):
            raise ValueError(f"category {one.category!r} of {one.method!r} is there twice, or named as the average")
        parts[one.category] = one
    return methods


def result_table(summary: pd.DataFrame, category: str = "mean") -> pd.DataFrame:
    """The summary for reading: a row a method, a column a metric, percent with its 95 % interval.

    >>> result_table(summarise([make_scored("sum", "hat", [0, 0])], ks=[1, 5])).loc["weighted sum"].tolist()
    ['100.0 [15.8, 100.0]', '100.0 [15.8, 100.0]']
    """
    part = summary[summary["category"] == category]
    text = [f"{percent(r.value)} [{percent(r.ci_low)}, {percent(r.ci_high)}]" for r in part.itertuples()]
    table = part.assign(text=text).pivot(index="method", columns="metric", values="text")
    guessed = part.groupby("metric")["chance"].first().map(lambda value: f"{float(f'{100 * value:.2g}'):g}")
    table = table.loc[list(dict.fromkeys(part["method"])), list(dict.fromkeys(part["metric"]))]
    return pd.concat([table.rename(index=labels()), guessed.rename("chance").to_frame().T[table.columns]])
