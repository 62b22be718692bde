"""A method's recall by what is asked: kind of edit, number of edits, words, likeness of reference and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from cirlib.analysis.failures.edit_kinds import edit_kinds, kind_names, subjects, unclassified_share
from cirlib.benchmarks import Triplet
from cirlib.models.feature_store import FeatureStore
from cirlib.retrieval.ranks import bootstrap_ci
from cirlib.retrieval.scoring import Scored

COLUMNS = ["group", "queries", "value", "ci_low", "ci_high", "chance"]
BINS = 5  # of words and likeness
MANY = 4  # edits and more are one group


def best_method(summary: pd.DataFrame, metric: str = "recall@10", among: Sequence[str] | None = None) -> str:
    """The method with the highest mean ``metric``, of all or of those in ``among``."""
    mean = summary[(summary["category"] == "mean") & (summary["metric"] == metric)]
    if among is not None:
        mean = mean[mean["method"].isin(among)]
    return str(mean.loc[mean["value"].idxmax(), "method"])


def by_kind(scored: Sequence[Scored], k: int = 10) -> pd.DataFrame:
    """Recall@k by kind of edit; a query counts with every kind its edit is of."""
    return _recall_by(scored, lambda triplet: edit_kinds(triplet.captions), kind_names(), k)


def by_number(scored: Sequence[Scored], k: int = 10) -> pd.DataFrame:
    """Recall@k by how many things the edit changes, as its captions tell."""
    names = [str(number) for number in range(MANY)] + [f"{MANY} or more"]
    return _recall_by(scored, lambda triplet: [names[min(MANY, len(subjects(triplet.captions)))]], names, k)


def by_words(scored: Sequence[Scored], k: int = 10) -> pd.DataFrame:
    """Recall@k by the number of words of all captions together, in fifths."""
    return _by_fifths(scored, [[_words(t) for t in one.benchmark.triplets] for one in scored], "{:.0f}", k)


def by_likeness(scored: Sequence[Scored], store: FeatureStore, k: int = 10) -> pd.DataFrame:
    """Recall@k by the cosine of reference and target in the two-tower space, in fifths."""
    cosines = []
    for one in scored:
        references = store[[triplet.reference for triplet in one.benchmark.triplets]]  # (N, D)
        targets = store[[triplet.targets[0] for triplet in one.benchmark.triplets]]  # (N, D)
        cosines.append((references * targets).sum(-1).tolist())
    return _by_fifths(scored, cosines, "{:.2f}", k)


def unclassified(scored: Sequence[Scored]) -> float:
    """The share of the queries whose edit has no known word, in [0, 1]."""
    return unclassified_share([triplet.captions for one in scored for triplet in one.benchmark.triplets])


def miss_table(scored: Sequence[Scored], reasons: Sequence[Sequence[str]], k: int = 10) -> pd.DataFrame:
    """Every query whose target is not surely in the top k, worst first.

    Args:
        reasons: of every category the reason of each query, as :func:`~cirlib.analysis.failures.reasons.judge` gives them.
    """
    rows = [
        {
            "category": one.category,
            "query": triplet.id,
            "kinds": ", ".join(edit_kinds(triplet.captions)),
            "reason": reason,
            "rank": place,
            "captions": " / ".join(triplet.captions),
            "reference": triplet.reference,
            "target": triplet.targets[0],
            "top": " ".join(top),
        }
        for one, why in zip(scored, reasons, strict=True)
        for triplet, reason, place, top, recall in zip(
            one.benchmark.triplets, why, one.target_ranks, one.top, one.recall(k), strict=True
        )
        if recall < 1
    ]
    columns = ["category", "query", "kinds", "reason", "rank", "captions", "reference", "target", "top"]
    return pd.DataFrame(rows, columns=columns).sort_values("rank", ascending=False, kind="stable", ignore_index=True)


def _words(triplet: Triplet) -> int:
    return sum(len(caption.split()) for caption in triplet.captions)


def _recall_by(
    scored: Sequence[Scored], groups_of: Callable[[Triplet], list[str]], order: Sequence[str], k: int
) -> pd.DataFrame:
    """One row a group that has queries, in ``order``: :data:`COLUMNS`, fractions of 1."""
    queries = pd.DataFrame(
        [
            (group, recall, min(1.0, k / one.candidates))
            for one in scored
            for triplet, recall in zip(one.benchmark.triplets, one.recall(k), strict=True)
            for group in groups_of(triplet)
        ],
        columns=["group", "recall", "chance"],
    )
    rows = []
    for name, inside in queries.groupby("group"):
        value = inside["recall"].to_numpy()
        rows.append([name, len(value), value.mean(), *bootstrap_ci(value), inside["chance"].mean()])
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values("group", key=lambda column: column.map(list(order).index), ignore_index=True)


def _by_fifths(scored: Sequence[Scored], values: Sequence[Sequence[float]], form: str, k: int) -> pd.DataFrame:
    """Recall@k in fifths of the queries by a number of each; fewer groups where many are equal."""
    flat = np.concatenate([np.asarray(part, float) for part in values])
    bins = pd.qcut(flat, min(BINS, len(np.unique(flat))), duplicates="drop").codes
    names = []
    for number in range(bins.max() + 1):
        low, high = (form.format(end) for end in (flat[bins == number].min(), flat[bins == number].max()))
        names.append(low if low == high else f"{low} to {high}")
    labels = iter(names[code] for code in bins)
    return _recall_by(scored, lambda _: [next(labels)], list(dict.fromkeys(names)), k)
