"""Methods against each other query by query: who finds what another misses."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from cirlib.analysis.failures.edit_kinds import edit_kinds
from cirlib.analysis.failures.examples import select_method
from cirlib.analysis.failures.groups import best_method
from cirlib.retrieval.ranks import holm
from cirlib.retrieval.scoring import Scored, compare

FAMILIES = {  # the best of each is compared
    "zero-shot": ("image_only", "text_only", "sum", "slerp"),
    "Q-Former": ("qformer", "qformer_hard_negatives"),
    "DPO": ("retrieval_dpo",),
}
METRIC = "recall@10"


def best_of_families(summary: pd.DataFrame) -> dict[str, str]:
    """Family → its best method in the study; families without one are left out."""
    present = set(summary["method"])
    own = {family: [m for m in methods if m in present] for family, methods in FAMILIES.items()}
    return {family: best_method(summary, METRIC, methods) for family, methods in own.items() if methods}


def exchanges(scored: Sequence[Scored], methods: Sequence[str], seed: int = 0) -> pd.DataFrame:
    """Every pair of methods: the queries that both, only one, or neither has among its first ten, and a paired test.

    Returns:
        columns first, second, both, only_first, only_second, neither (counts), difference (of the mean over
        categories, fraction of 1), p, p_holm.
    """
    rows = []
    for first, second in combinations(methods, 2):
        found, other = (_found(select_method(scored, method)) for method in (first, second))
        parts = (found & other, found & ~other, ~found & other, ~found & ~other)
        rows.append([first, second, *(int(part.sum()) for part in parts)])
    table = pd.DataFrame(rows, columns=["first", "second", "both", "only_first", "only_second", "neither"])
    return table.merge(_tests(scored, methods, seed), on=["first", "second"])


def per_query(scored: Sequence[Scored], methods: Sequence[str]) -> pd.DataFrame:
    """The rank that each method gives each query's target: columns category, query, kinds, then the methods."""
    parts = {method: select_method(scored, method) for method in methods}
    first = parts[methods[0]]
    table = pd.DataFrame(
        [
            {"category": one.category, "query": triplet.id, "kinds": ", ".join(edit_kinds(triplet.captions))}
            for one in first
            for triplet in one.benchmark.triplets
        ]
    )
    return table.assign(
        **{method: [place for one in own for place in one.target_ranks] for method, own in parts.items()}
    )


def _found(scored: Sequence[Scored]) -> np.ndarray:
    return np.concatenate([one.recall(10) >= 0.5 for one in scored])


def _tests(scored: Sequence[Scored], methods: Sequence[str], seed: int) -> pd.DataFrame:
    tests = []
    for first, second in combinations(methods, 2):
        pair = [one for one in scored if one.method in (first, second)]
        tests.append(compare(pair, first, (METRIC,), seed).rename(columns={"method": "second", "against": "first"}))
    columns = ["first", "second", "difference", "p"]
    table = pd.concat(tests, ignore_index=True)[columns] if tests else pd.DataFrame(columns=columns)
    return table.assign(p_holm=holm(table["p"].tolist()))
